"""Contracts by observation: at least what the hand-written ones say, proved, and nothing stays on the pipeline."""

from dataclasses import replace
from functools import cache
from io import StringIO
from types import SimpleNamespace

import pytest
import torch
import yaml
from diffusers import FlowMatchEulerDiscreteScheduler
from rich.console import Console
from torch import nn

import search
from search import Schedule, ScheduleError
from search.observe.contract import observe
from search.observe.proofs import prove
from search.observe.run import branch_weights, observe_run
from search.observe.table import contracts_yaml, observation_table
from search.schedule.model.contracts import CONTRACTS, Contract
from search.schedule.model.identity import denoiser_of, model_part
from search.testing import pipelines

TEXT = {"prompt": "red apple", "num_inference_steps": 2, "output_type": "latent"}
SMALL = {"height": 32, "width": 32}
PIPELINES = {
    "PixArtTransformer2DModel": (pipelines.pixart, TEXT | SMALL | {"use_resolution_binning": False}),
    "UNet2DConditionModel": (pipelines.stable_diffusion, TEXT | SMALL),
    "DiTTransformer2DModel": (pipelines.dit, {"class_labels": [1], "num_inference_steps": 2}),
    "FluxTransformer2DModel": (pipelines.flux, TEXT | SMALL),
    "SD3Transformer2DModel": (pipelines.stable_diffusion_3, TEXT | SMALL),
    "WanTransformer3DModel": (pipelines.wan, TEXT | SMALL | {"num_frames": 5}),
}


def traces(pipe):
    """What could be left: hooks and attributes of the denoiser's modules, methods of the scheduler's class."""
    modules = list(denoiser_of(pipe).modules())
    hooks = [(*m._forward_hooks, *m._forward_pre_hooks) for m in modules]
    return hooks, [sorted(vars(m)) for m in modules], type(pipe.scheduler).step, vars(pipe.scheduler).get("step")


@cache
def observed(name):
    """A pipeline, what it had on it before it was observed, and what was seen."""
    build, call = PIPELINES[name]
    pipe = build()
    pipe.set_progress_bar_config(disable=True)
    denoiser_of(pipe).eval()
    pipe(**call)  # diffusers itself leaves a registry of hooks behind where it names the branches
    before = traces(pipe)
    return pipe, before, search.contract(pipe, call=call)


def test_every_hand_written_contract_is_an_oracle_here():
    assert set(PIPELINES) == set(CONTRACTS)


@pytest.mark.parametrize("name", sorted(PIPELINES))
def test_at_least_what_the_hand_written_contract_says(name):
    pipe, before, observation = observed(name)
    (seen,) = observation.contracts
    assert denoiser_of(pipe) is seen.denoiser.module and dict(seen.denoiser.calls).keys() == {0, 1}
    stacks = {stack.name: stack for stack in seen.contract.stacks}
    written = CONTRACTS[name]
    for stack in written.stacks:
        seen_stack = stacks[stack.name]
        assert {*stack.components} <= {*seen_stack.components}
        assert not stack.outputs or seen_stack.outputs == stack.outputs
        assert (seen_stack.single, seen_stack.uniform) == (stack.single, stack.uniform)
        assert {path: seen_stack.zeros.get(path) for path in stack.zeros if path in seen_stack.components} == {
            path: names for path, names in stack.zeros.items() if path in seen_stack.components
        }
        assert {*stack.passes} <= {*seen_stack.passes}
    assert list(stacks) == [stack.name for stack in written.stacks]
    assert seen.contract.sample == written.sample and seen.contract.copies >= written.copies
    if observation.run.halves:
        assert seen.contract.conditional == written.conditional
    assert [proof for proof in seen.proofs if proof.failure] == []
    assert traces(pipe) == before


def test_an_observed_contract_goes_into_a_schedule_that_runs():
    pipe, _, observation = observed("PixArtTransformer2DModel")
    call, contract = PIPELINES["PixArtTransformer2DModel"][1], observation.contracts[0].contract
    data = {"format": "schedule/1", "model": model_part(pipe.transformer, contract), "steps": 2}
    schedule = Schedule.from_dict(data | {"plan": {"rules": [["transformer_blocks.*:ff", "C R"]]}})
    with schedule.apply(pipe) as handle:
        pipe(**call, generator=torch.Generator().manual_seed(0))
        assert handle.stats()["nodes"]["transformer_blocks.0:ff"] == {"C": 1, "R": 1}


# What is no stock denoiser


class Part(nn.Module):
    def __init__(self):
        super().__init__()
        self.line = nn.Linear(4, 4)

    def forward(self, x):
        return self.line(x)


class Block(nn.Module):
    """`mix` writes into its input, so that a stored value of it does not stand for the call."""

    def __init__(self, writes=False):
        super().__init__()
        self.writes, self.mix, self.feed = writes, Part(), Part()

    def forward(self, x, scale):
        y = self.mix(x)
        if self.writes:
            y = y + self.mix.line.weight.sum() * scale
        return x + y * scale + self.feed(x)


class Counting(Part):
    """Gives something else at each call."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.line(x) * self.calls


class Denoiser(nn.Module):
    def __init__(self, blocks):
        super().__init__()
        self.entry = nn.Linear(4, 4)
        self.layers = nn.ModuleList(blocks)

    def forward(self, x, timestep):
        x = self.entry(x)
        for block in self.layers:
            x = block(x, timestep)
        return (x,)


class Pipe:
    def __init__(self, denoiser):
        self.denoiser, self.scheduler, self.other = denoiser, FlowMatchEulerDiscreteScheduler(), nn.Linear(2, 2)

    def __call__(self, num_inference_steps=3, fail=False):
        self.scheduler.set_timesteps(num_inference_steps)
        x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
        for i, t in enumerate(self.scheduler.timesteps):
            if fail and i == 1:
                raise ValueError("no such picture")
            with torch.no_grad():
                e = self.denoiser(x, t / 1000)[0]
            x = self.scheduler.step(e, t, x)[0]
        return x


def made(*blocks):
    torch.manual_seed(0)
    return Pipe(Denoiser(blocks or [Block(), Block(), Block()]))


def test_any_callable_object_with_a_scheduler_is_observed():
    pipe = made()
    (seen,) = observe(pipe, {}).contracts
    (stack,) = seen.contract.stacks
    assert (stack.name, stack.components, stack.outputs) == ("layers", ("mix", "feed"), ("x",))
    assert dict(stack.zeros) == {"mix": ("x",), "feed": ("x",)}
    assert seen.contract.sample == "x" and seen.found[0].chain == "identity"
    assert dict(seen.denoiser.calls) == {0: 1, 1: 1, 2: 1}


def test_what_does_not_hold_is_left_out_with_the_reason():
    pipe = made()
    calls = [[c] for c in observe_run(pipe, {}).denoisers[0].recorded]
    honest, _ = prove(pipe.denoiser, observe(pipe, {}).contracts[0].contract, calls)
    stack = honest.stacks[0]
    wrong = replace(stack, outputs=("scale",), zeros={"mix": ("nothing",)}, components=("mix", "feed"))
    contract, proofs = prove(pipe.denoiser, Contract((wrong,), sample="x"), calls)
    failures = {(proof.node, proof.action): proof.failure for proof in proofs if proof.failure}
    assert "is in place of scale" in failures["layers.*", "reuse"]
    assert contract.stacks[0].components == () and contract.stacks[0].outputs == ()
    wrong = replace(stack, zeros={"mix": ("nothing",), "feed": ("x",)})
    contract, proofs = prove(pipe.denoiser, Contract((wrong,), sample="x"), calls)
    failures = {(proof.node, proof.action): proof.failure for proof in proofs if proof.failure}
    assert list(failures) == [("layers.*:mix", "skip")] and "promises None where" in failures["layers.*:mix", "skip"]
    assert contract.stacks[0].components == ("mix", "feed") and dict(contract.stacks[0].zeros) == {"feed": ("x",)}


def test_a_denoiser_that_is_not_deterministic_is_refused():
    block = Block()
    block.feed = Counting()
    pipe = made(block, Block())
    with pytest.raises(ScheduleError, match="a schedule that changes nothing, .*: it is in training mode, call .eval"):
        observe(pipe, {})
    pipe.denoiser.eval()
    with pytest.raises(
        ScheduleError, match="a schedule that changes nothing, .*: it is not deterministic, or it keeps"
    ):
        observe(pipe, {})


def test_two_denoisers_side_by_step_range():
    pipe = made()
    pipe.second = Denoiser([Block(), Block()])
    first = pipe.denoiser

    def call(**_):
        pipe.scheduler.set_timesteps(4)
        x = torch.randn(2, 3, 4)
        for i, t in enumerate(pipe.scheduler.timesteps):
            with torch.no_grad():
                e = (first if i < 2 else pipe.second)(x, t / 1000)[0]
            x = pipe.scheduler.step(e, t, x)[0]

    pipe = SimpleNamespace(**vars(pipe))
    observation = observe_run(Callable(pipe, call), {})
    assert [(seen.name, seen.steps) for seen in observation.denoisers] == [("denoiser", [0, 1]), ("second", [2, 3])]


class Callable:
    def __init__(self, parts, call):
        vars(self).update(vars(parts))
        self.call = call

    def __call__(self, **arguments):
        return self.call(**arguments)


# Guidance


@pytest.mark.parametrize("count", [2, 3])
def test_weights_of_branches_that_are_calls(count):
    branches = [torch.randn(1, 4, 5) for _ in range(count)]
    wanted = [1.5, -2.0, 1.5][:count]
    weights, halves = branch_weights(branches, sum(w * b for w, b in zip(wanted, branches, strict=True)))
    assert weights == pytest.approx(wanted, abs=1e-4) and not halves


def test_weights_of_branches_that_are_halves_of_a_batch():
    output = torch.randn(4, 8, 5)  # eight channels: half of them a learned variance that the scheduler is not given
    uncond, cond = output[:, :4].chunk(2)
    assert branch_weights([output], uncond + 3 * (cond - uncond)) == (pytest.approx((-2, 3), abs=1e-4), True)
    both = torch.cat([uncond + 3 * (cond - uncond)] * 2)  # a pipeline that steps both halves alike
    assert branch_weights([output], both) == (pytest.approx((-2, 3), abs=1e-4), True)


def test_no_weights_where_there_is_no_guidance():
    output = torch.randn(2, 4)
    assert branch_weights([output], output) == ((), False)
    assert branch_weights([output], "text") == ((), False) and branch_weights([], output) == ((), False)
    assert branch_weights([output, output * 2], torch.randn(2, 4)) == ((), False)
    assert branch_weights([output, torch.randn(3)], output) == ((), False)


# Bad input


def test_without_a_scheduler():
    with pytest.raises(ScheduleError, match="SimpleNamespace has no scheduler with `step`; give a pipeline"):
        observe(SimpleNamespace(unet=nn.Linear(1, 1)), {})


def test_a_call_that_fails_says_the_call_and_leaves_nothing():
    pipe = made()
    step = type(pipe.scheduler).step
    with pytest.raises(ScheduleError, match=r"calling Pipe\(fail=True\) failed: ValueError: no such picture; give"):
        observe(pipe, {"fail": True})
    with pytest.raises(ScheduleError, match=r"calling Pipe\(size=3\) failed: TypeError: .*'size'"):
        observe(pipe, {"size": 3})
    assert type(pipe.scheduler).step is step
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in pipe.denoiser.modules())


def test_a_call_without_steps():
    pipe = made()
    with pytest.raises(ScheduleError, match=r"called none of its modules \(denoiser, other\) before a step"):
        observe(Callable(pipe, lambda: None), {})


def test_a_denoiser_without_lists_of_blocks():
    pipe = made()
    pipe.denoiser = Leaf()
    with pytest.raises(ScheduleError, match="Leaf has no blocks that could be planned .it has no lists of blocks"):
        observe(pipe, {})


class Leaf(nn.Module):
    def __init__(self):
        super().__init__()
        self.line = nn.Linear(4, 4)

    def forward(self, x, timestep):
        return (self.line(x),)


def test_a_list_that_runs_twice_is_named():
    class Twice(Denoiser):
        def forward(self, x, timestep):
            for block in [*self.layers, *self.layers]:
                x = block(x, timestep)
            return (x,)

    with pytest.raises(ScheduleError, match=r"layers: its blocks ran \[2\] times in one call"):
        observe(Pipe(Twice([Block(), Block()])), {})


# What people read


def text_of(observation):
    out = StringIO()
    Console(file=out, width=120).print(observation_table(observation))
    return out.getvalue()


def test_the_table_and_the_file():
    _, _, observation = observed("UNet2DConditionModel")
    text = text_of(observation)
    assert "unet, a UNet2DConditionModel: steps 0 to 1, 1 call at each; guided by halves of the batch" in text
    assert "attentions.*.transformer_blocks.*.attn1" in text and "passes its input on" in text
    assert "up_blocks: blocks are not skipped nor the stack reused whole; " in text
    assert Contract.from_dict(yaml.safe_load(contracts_yaml(observation))) == observation.contracts[0].contract
