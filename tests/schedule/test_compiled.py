"""Compiling beneath the hooks: the same values, few graphs, and no trace of it."""

import itertools
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch._dynamo.backends.common import aot_autograd

from search import Schedule, ScheduleError
from search.schedule.apply.compiled import MAX_VARIANTS, compiler
from tests.helpers import pipelines, unknown_module
from tests.helpers.counting_compiler import Counting

ALL = "transformer_blocks.*:*"
PLANS = {
    "off": [],
    "fora": [[ALL, "CRCRCR"]],
    "rows": [["transformer_blocks.*:attn1", "CRRCRC"], ["transformer_blocks.[0,2]:ff", "CCRRCR"]],
    "skip": [["transformer_blocks.*:attn2", "CSRCSS"], ["transformer_blocks.1:ff", "SCCSRC"]],
    "forecast": [["transformer_blocks.*:ff", "CCF1CF2F1"], ["transformer_blocks.1:attn1", "CCRCF1C"]],
    "blocks": [["transformer_blocks.1", "CRSCRC"], ["transformer_blocks.*:attn1", "CCRRCC"]],
    "stack": [["transformer_blocks", "CRCCRC"], ["transformer_blocks.*:ff", "CCRCCR"]],
    "steps": [["denoiser", "CRCCRC"], ["transformer_blocks.0:attn2", "CCCRCC"]],
}


@pytest.fixture
def backend():
    torch._dynamo.reset()
    yield Counting(dynamic=False, fullgraph=True)
    torch._dynamo.reset()


def rows(schedule: Schedule) -> set[tuple[str, ...]]:
    """By hand: what the planned components of a computed block do, over all blocks and steps."""
    tokens = schedule.plan.tokens
    kinds = [
        kind
        for kind in ("attn1", "attn2", "ff")
        if any(set(tokens[f"transformer_blocks.{i}:{kind}"]) - {"C", "-"} for i in range(3))
    ]
    return {
        tuple(tokens[f"transformer_blocks.{i}:{kind}"][step][0].replace("F", "R") for kind in kinds)
        for i, step in itertools.product(range(3), range(6))
        if tokens[f"transformer_blocks.{i}"][step] == "C"
    }


@pytest.mark.parametrize("value", ["out", pytest.param("residual", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", PLANS)
def test_compiled_blocks_are_the_same_bit_for_bit(name, value, backend):
    """One graph for each set of components in use, however many blocks and steps have it; none at later runs."""
    pipe = pipelines.pixart()
    bare = pipelines.run(pipe)
    content = pipelines.content(pipe, PLANS[name])
    if name != "off":
        content["plan"]["value"] = value
    schedule = Schedule.from_dict(content)
    with schedule.apply(pipe) as handle:
        expected, stats = pipelines.run(pipe), handle.stats()
    with schedule.apply(pipe, compile=backend.compile) as handle:
        assert torch.equal(pipelines.run(pipe), expected)
        graphs = backend.graphs
        assert 1 <= graphs <= len(rows(schedule))
        assert torch.equal(pipelines.run(pipe), expected) and backend.graphs <= len(rows(schedule))
        found = handle.stats()
    assert found["peak_bytes"] == stats["peak_bytes"] and found["block_executions"] == 2 * stats["block_executions"]
    assert pipelines.traces(pipe.transformer) == [] and torch.equal(pipelines.run(pipe), bare)
    graphs = backend.graphs
    with schedule.apply(pipe, compile=backend.compile):  # torch still has them
        assert torch.equal(pipelines.run(pipe), expected) and backend.graphs == graphs


def test_a_second_plan_of_the_same_rows_costs_nothing(backend):
    pipe = pipelines.pixart()
    for text in ("CRCRCR", "CCRRRR", "CRRRRC"):
        with pipelines.schedule(pipe, [[ALL, text]]).apply(pipe, compile=backend.compile):
            pipelines.run(pipe)
            pipelines.run(pipe)
        assert backend.graphs == 2


def test_what_serves_a_reused_component_alone_is_not_computed(backend):
    graphs = []

    def look(graph, inputs):
        graphs.append([str(node.target) for node in graph.graph.nodes])
        return graph.forward

    traced = partial(torch.compile, backend=aot_autograd(fw_compiler=look), dynamic=False)
    pipe = pipelines.pixart()
    with pipelines.schedule(pipe, [[ALL, "CRCRCR"]]).apply(pipe, compile=traced):
        pipelines.run(pipe)
    counts = sorted(sum("layer_norm" in target for target in graph) for graph in graphs)
    assert counts == [0, 2]  # of the two norms of a block: none where all components are reused


def test_values_in_use_are_those_of_the_branch(backend):
    """A pipeline that calls the denoiser once per CFG branch: values of each branch go to its own call."""
    pipe = pipelines.pixart()
    schedule = pipelines.schedule(pipe, PLANS["rows"])
    given, latents = pipelines.embeddings(1), torch.randn(1, 4, 8, 8)

    @torch.no_grad()
    def run():
        pipe.scheduler.set_timesteps(6)
        found = []
        for t in pipe.scheduler.timesteps:
            for scale in (1.0, 2.0):
                states = given["prompt_embeds"] * scale
                out = pipe.transformer(latents, encoder_hidden_states=states, timestep=t.expand(1), return_dict=False)
                found.append(out[0])
            pipe.scheduler.step(found[-1][:, :4], t, latents)
        return torch.stack(found)

    with schedule.apply(pipe):
        expected = run()
    with schedule.apply(pipe, compile=backend.compile):
        assert torch.equal(run(), expected)


def test_other_shapes_are_compiled_once_each(backend):
    pipe = pipelines.pixart()
    with pipelines.schedule(pipe, [[ALL, "CRCRCR"]]).apply(pipe, compile=backend.compile):
        for batch, graphs in ((2, 2), (1, 4), (2, 4), (1, 4)):
            pipelines.run(pipe, batch=batch)
            assert backend.graphs == graphs


def test_guidance_that_computes_half_of_the_batch(backend):
    pipe = pipelines.pixart()
    guidance = {"call": 3.0, "branch": "CROCOC"}
    schedule = pipelines.schedule(pipe, [["transformer_blocks.*:attn1", "CRCRRC"]], guidance=guidance)
    with schedule.apply(pipe):
        expected = pipelines.run(pipe)
    with schedule.apply(pipe, compile=backend.compile):
        assert torch.equal(pipelines.run(pipe), expected)


def test_dit_reads_the_embedding_of_a_block_that_is_skipped(backend):
    pipe = pipelines.dit()
    schedule = pipelines.schedule(pipe, [["transformer_blocks.0", "CSSCRR"], ["transformer_blocks.*:ff", "CCRCCC"]])
    with schedule.apply(pipe):
        expected = pipelines.classes(pipe)
    with schedule.apply(pipe, compile=backend.compile):
        assert torch.equal(pipelines.classes(pipe), expected)
    assert pipelines.traces(pipe.transformer) == []


def test_weights_are_the_blocks_own(backend):
    """Loaded or changed while a schedule is applied, they count at the next run."""
    pipe = pipelines.pixart()
    schedule = pipelines.schedule(pipe, PLANS["rows"])
    with schedule.apply(pipe, compile=backend.compile):
        before = pipelines.run(pipe)
        block = pipe.transformer.transformer_blocks[1]
        with torch.no_grad():
            block.ff.net[2].weight.mul_(2)
        block.attn1.to_q.load_state_dict(torch.nn.Linear(pipelines.WIDTH, pipelines.WIDTH, bias=True).state_dict())
        block.scale_shift_table = torch.nn.Parameter(block.scale_shift_table.detach() * 0.5)
        after = pipelines.run(pipe)
    with schedule.apply(pipe):
        assert torch.equal(pipelines.run(pipe), after) and not torch.equal(after, before)


# Where whole blocks do not fit


def compiled_names(pipe, schedule, **options) -> list[str]:
    names = []

    def compile(function):
        names.append(getattr(function, "__qualname__", repr(function)))
        return function

    with schedule.apply(pipe) as handle:
        expected = pipelines.run(pipe)
    with schedule.apply(pipe, compile=compile, **options) as handle:
        assert torch.equal(pipelines.run(pipe), expected)
        assert handle.memory.now == 0
    return names


def test_whole_blocks_are_compiled_where_the_plan_is_all_that_is_at_work():
    pipe = pipelines.pixart()
    names = compiled_names(pipe, pipelines.schedule(pipe, PLANS["fora"]))
    assert set(names) == {"BasicTransformerBlock_CCC", "BasicTransformerBlock_RRR"}


COMPONENTS = {"Attention.forward", "FeedForward.forward"}


def test_too_many_variants_are_not_compiled(monkeypatch):
    pipe = pipelines.pixart()
    rules = [[f"transformer_blocks.{i}:{kind}", text] for i, kind, text in (
        (0, "attn1", "CRRRRC"), (0, "attn2", "CCRRCC"), (0, "ff", "CRSCCR"),
        (1, "attn1", "CCRRRR"), (1, "attn2", "CRCSRC"), (1, "ff", "CCCRSR"),
        (2, "attn2", "CSCSCS"), (2, "attn1", "CCCCRC"),
    )]  # fmt: skip
    schedule = pipelines.schedule(pipe, rules)
    assert len(rows(schedule)) > MAX_VARIANTS
    names = compiled_names(pipe, schedule)
    assert set(names) == COMPONENTS and len(names) == 9
    monkeypatch.setattr("search.schedule.apply.compiled.MAX_VARIANTS", len(rows(schedule)))
    assert set(compiled_names(pipe, schedule)).isdisjoint(COMPONENTS)


def test_gates_corrections_and_simulated_bits_leave_blocks_as_they_are():
    pipe = pipelines.pixart()
    plan = pipelines.schedule(pipe, PLANS["fora"])
    gate = {"group": "transformer_blocks.[1-2]", "actions": "C G*5", "signal": "first_block_residual"}
    gated = pipelines.schedule(pipe, gates=[gate | {"threshold": 0.1, "value": "residual"}])
    tensors = {
        f"transformer_blocks.1:ff.{k}": torch.full((3, pipelines.WIDTH), v) for k, v in (("scale", 1.1), ("shift", 0))
    }
    corrected = plan.with_corrections(tensors)
    bits = pipelines.schedule(pipe, PLANS["fora"], bits={
        "formats": {"w8": {"weight": 8}}, "layers": {"transformer_blocks.0.ff.net.2": "w8"},
    })  # fmt: skip
    for schedule in (gated, corrected, bits):
        assert set(compiled_names(pipe, schedule)) == COMPONENTS


def test_modules_that_somebody_listens_to_are_left_as_they_are():
    pipe = pipelines.pixart()
    seen = []
    remover = pipe.transformer.transformer_blocks[1].attn1.register_forward_hook(lambda *_: seen.append(1))
    names = compiled_names(pipe, pipelines.schedule(pipe, [["transformer_blocks.0:ff", "CRCRCR"]]))
    assert set(names) == COMPONENTS and len(seen) == 12
    remover.remove()


def test_components_within_components_are_compiled_as_they_are_called():
    pipe = unknown_module.pipeline()
    made = unknown_module.schedule(pipe, [["trunk.blocks.*:net.1", "CRCRCR"], ["trunk.blocks.1:turn", "CCRCRS"]])
    with made.apply(pipe):
        expected = unknown_module.run(pipe)
    names = []
    with made.apply(pipe, compile=lambda f: names.append(f.__qualname__) or f):
        assert torch.equal(unknown_module.run(pipe), expected)
    assert not [name for name in names if name.startswith("Block_")] and names


@pytest.mark.parametrize(
    ("zeros", "told"),
    [
        ({"turn": ["x", "y"]}, r"trunk.blocks.1:turn returns float32 \[2, 6\], but .*zeros like x, y where it is"),
        ({"turn": ["z"]}, r"trunk.blocks.1:turn returns .* None where it is skipped, after z"),
        ({"turn": ["x"]}, None),
    ],
)
def test_contracts_are_verified_all_the_same(zeros, told):
    pipe = unknown_module.pipeline()
    rules = [["trunk.blocks.1:turn", "CCCSCS"], ["trunk.blocks.0:net", "CRCRCR"]]
    made = unknown_module.schedule(pipe, rules, unknown_module.contract(zeros=zeros, passes=[]))
    names = []
    with made.apply(pipe, compile=lambda f: names.append(f.__name__) or f):
        assert set(names) == {"Block_CC", "Block_CR", "Block_SC", "Neck_"} or told
        with pytest.raises(ScheduleError, match=told) if told else nullcontext():
            unknown_module.run(pipe)
    with made.apply(pipe, compile=lambda f: f):
        looked = [block._forward_hooks for block in pipe.denoiser.trunk.blocks]
    assert not any(looked) and not any(block.turn._forward_hooks for block in pipe.denoiser.trunk.blocks)


# What compiles


class Elsewhere(torch.nn.Module):
    """What asks a denoiser where it is."""

    def __init__(self, is_cuda: bool) -> None:
        super().__init__()
        self.parameter = SimpleNamespace(is_cuda=is_cuda)

    def parameters(self, recurse=True):
        yield self.parameter


def test_what_true_means():
    assert compiler(None, Elsewhere(True), True) == compiler(False, Elsewhere(True), True) == (None, False)
    assert compiler(torch.compile, Elsewhere(True), True) == (torch.compile, False)
    for is_cuda, static, graphs in ((False, True, False), (True, True, True), (True, False, False)):
        found, made = compiler(True, Elsewhere(is_cuda), static)
        assert isinstance(found, partial) and found.func is torch.compile and made is graphs
        assert found.keywords == {"dynamic": False, "mode": "reduce-overhead" if graphs else None}


def test_cuda_graphs_get_copies_and_are_told_of_every_call(monkeypatch):
    """No GPU: a stand-in whose graphs write into the same output at every call, as CUDA graphs do."""
    pipe = pipelines.pixart()
    schedule = pipelines.schedule(pipe, [["transformer_blocks.*:ff", "CCF1CF1R"], ["transformer_blocks.1", "CCRCCF1"]])
    with schedule.apply(pipe):
        expected = pipelines.run(pipe)
    calls: list[int] = []
    memory: dict[tuple, torch.Tensor] = {}  # of a call: its outputs, wherever it is called

    def replayed(function):
        def run(block, *given):
            output, computed = function(block, *given)
            found = []
            for i, value in enumerate([output, *computed]):
                place = memory.setdefault((block.scale_shift_table.data_ptr(), i), torch.empty_like(value))
                found.append(place.copy_(value))
            return found[0], found[1:]

        return run

    monkeypatch.setattr("search.schedule.apply.handle.compiler", lambda *_: (replayed, True))
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: calls.append(1))
    with schedule.apply(pipe, compile=True):
        for _ in range(2):
            assert torch.equal(pipelines.run(pipe), expected)
    assert len(calls) == 12 and len(memory) > 0
    monkeypatch.setattr("search.schedule.apply.handle.compiler", lambda *_: (replayed, False))
    with schedule.apply(pipe, compile=True):
        pipelines.run(pipe)
        assert not torch.equal(pipelines.run(pipe), expected)  # the stand-in bites


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fora", "skip"])
def test_inductor(name, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    pipe = pipelines.pixart()
    schedule = pipelines.schedule(pipe, PLANS[name])
    with schedule.apply(pipe):
        expected = pipelines.run(pipe)
    torch._dynamo.utils.counters.clear()
    with schedule.apply(pipe, compile=True):
        found = [pipelines.run(pipe) for _ in range(2)]
    assert torch.equal(*found) and (found[0] - expected).norm() < 1e-3 * expected.norm()
    counters = torch._dynamo.utils.counters
    assert 1 <= counters["stats"]["unique_graphs"] <= len(rows(schedule)) and not counters["graph_break"]
    torch._dynamo.reset()
