"""Contracts of every denoiser class, against the denoisers themselves and against loops written by hand."""

import re

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from search.profile.count import count_costs
from search.schedule import Schedule, ScheduleError
from search.schedule.model.contracts import CONTRACTS, Contract
from search.schedule.model.identity import model_part
from search.schedule.model.modules import blocks_of
from search.schedule.model.nodes import Tree
from search.schedule.values import leaves, map_tensors
from tests.helpers.denoiser_loops import BATCH, TINY, pipeline, run

EVERY = pytest.mark.parametrize("name", sorted(CONTRACTS))
STEPS = 6


def schedule(pipe, rules, **parts):
    return Schedule.from_dict(
        {"format": "schedule/1", "model": model_part(pipe.denoiser), "steps": STEPS, "plan": {"rules": rules}} | parts
    )


def traces(denoiser):
    return [n for n, m in denoiser.named_modules() if "_diffusers_hook" in vars(m) or "forward" in vars(m)]


def test_every_class_with_a_contract_is_tried_here():
    assert set(TINY) == set(CONTRACTS)


@EVERY
def test_off_is_bit_exact_and_leaves_no_trace(name):
    pipe = pipeline(name)
    expected = run(pipe)
    tree = Tree.of(pipe.denoiser)
    every = [[f"{s}.*:*", "C*6"] for s in tree.stacks if tree.components(s)] + [[f"{s}.*", "C*6"] for s in tree.stacks]
    for off in (Schedule.off(pipe), schedule(pipe, every)):
        with off.apply(pipe):
            assert torch.equal(run(pipe), expected)
        assert traces(pipe.denoiser) == []
    with pytest.raises((RuntimeError, ValueError), match="shape|size|unpack"), Schedule.off(pipe).apply(pipe):
        pipe.scheduler.set_timesteps(STEPS)
        pipe.denoiser(torch.zeros(1, 3, 3, 3), **TINY[name].given(), timestep=torch.zeros(BATCH))
    assert traces(pipe.denoiser) == [] and torch.equal(run(pipe), expected)


@EVERY
def test_blocks_return_what_the_contract_says(name):
    pipe = pipeline(name)
    tree = Tree.of(pipe.denoiser)
    seen = []

    def after(stack):
        def look(module, args, kwargs, output):
            names = list(__import__("inspect").signature(type(module).forward).parameters)[1:]
            given = dict(zip(names, args, strict=False)) | kwargs
            outputs = output if isinstance(output, tuple) else (output,)
            assert len(outputs) == len(stack.outputs)
            for argument, value in zip(stack.outputs, outputs, strict=True):
                seen.append(value is None or value.shape == given[argument].shape)

        return look

    for stack in tree.stack_contracts:
        for block in blocks_of(pipe.denoiser, stack) if stack.outputs else ():
            block.register_forward_hook(after(stack), with_kwargs=True)
    run(pipe)
    assert all(seen) and (seen or name.startswith("UNet"))


def by_hand(pipe, tokens):
    """The same plan by plain forward hooks: what a module gave at its last computed step is what it gives again."""
    tree, kept, handles, now = Tree.of(pipe.denoiser), {}, [], [0]

    def hook(node):
        def after(module, args, output):
            if tokens[node.name][now[0]] == "C":
                kept[node.name] = map_tensors(torch.clone, output)
                return None
            return kept[node.name]

        return after

    for node in tree:
        if node.name in tokens:
            handles.append(tree.module(pipe.denoiser, node).register_forward_hook(hook(node)))

    def call(step, *args, **kwargs):
        now[0] = step
        return pipe.denoiser(*args, **kwargs)

    try:
        return run(pipe, STEPS, call)
    finally:
        for handle in handles:
            handle.remove()


@EVERY
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_plan_of_reuse_equals_a_loop_with_forward_hooks(name, data):
    pipe = pipeline(name)
    tree = Tree.of(pipe.denoiser)
    nodes = [node.name for node in tree if node.kind in ("block", "component")]
    chosen = data.draw(st.lists(st.sampled_from(nodes), unique=True, min_size=1, max_size=8))
    tokens = {n: "C" + data.draw(st.text("CR", min_size=STEPS - 1, max_size=STEPS - 1)) for n in chosen}
    plan = schedule(pipe, [[n, t] for n, t in tokens.items()])
    settled = {n: plan.plan.tokens[n] for n in chosen}  # below a reused block nothing is computed or kept
    expected = by_hand(pipe, settled)
    with plan.apply(pipe) as handle:
        assert torch.equal(run(pipe), expected)
        counts = handle.stats()["nodes"]
    for node in (n for n in chosen if "R" in settled[n]):
        assert counts[node].get("C", 0) == settled[node].count("C")


@EVERY
def test_forecasts_of_tuples_are_linear_in_every_tensor(name):
    """F1 through two equal values gives that value again: with one input repeated every action is exact."""
    pipe = pipeline(name)
    tree = Tree.of(pipe.denoiser)
    rules = [[f"{s}.*:*", "C C F1 F1 F1 F1"] for s in tree.stacks if tree.components(s)]
    plan = schedule(pipe, rules)
    latents = torch.randn(TINY[name].sample, generator=torch.Generator().manual_seed(3))
    given = TINY[name].given() | {"timestep": torch.full((BATCH,), 0.5), "return_dict": False}
    with torch.no_grad(), plan.apply(pipe):
        pipe.scheduler.set_timesteps(STEPS)
        outputs = []
        for t in pipe.scheduler.timesteps:
            outputs.append(pipe.denoiser(latents, **given)[0])
            pipe.scheduler.step(outputs[-1], t, latents)
    for output in outputs[1:]:
        assert torch.allclose(output, outputs[0], rtol=1e-4, atol=1e-5)


@EVERY
def test_a_skipped_node_passes_on_or_adds_nothing(name):
    pipe = pipeline(name)
    tree = Tree.of(pipe.denoiser)
    skippable = [n for n in tree if n.kind in ("block", "component") and tree.skipped(n) is not None]
    assert skippable
    for node in skippable:
        with schedule(pipe, [[node.name, "CSCSCS"]]).apply(pipe) as handle:
            assert run(pipe).isfinite().all()
            assert handle.stats()["nodes"][node.name] == {"C": 3, "S": 3}
    for node in tree:
        if node.kind in ("block", "component") and tree.skipped(node) is None:
            with pytest.raises(ScheduleError, match=f"plan: {re.escape(node.name)} cannot be skipped at step 1; use R"):
                schedule(pipe, [[node.name, "CSCCCC"]])


@EVERY
@pytest.mark.parametrize("level", ["component", "block"])
def test_counted_costs_are_those_of_the_run(name, level):
    """MACs and peak bytes of the tables equal what torch counts and what the handle kept in an applied run."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    pipe = pipeline(name)
    tree = Tree.of(pipe.denoiser)
    given = TINY[name].given() | {"timestep": torch.full((BATCH,), 0.5)}
    latents = torch.zeros(TINY[name].sample)
    costs = count_costs(pipe.denoiser, tree, STEPS, lambda: pipe.denoiser(latents, **given))
    names = [n.name for n in tree if n.kind == level and not n.nested]
    tokens = ["CRRCRR", "CCRRCC", "CRCRCR", "CCCRRR"]
    plan = schedule(pipe, [[n, tokens[i % 4]] for i, n in enumerate(names)])
    with plan.apply(pipe) as handle, sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run(pipe)
    assert costs.macs(plan) == counter.get_total_flops() // 2
    assert costs.peak_bytes(plan) == handle.stats()["peak_bytes"]


@EVERY
def test_a_contract_survives_its_file(name):
    assert Contract.from_dict(CONTRACTS[name].to_dict()) == CONTRACTS[name]
    pipe = pipeline(name)
    part = model_part(pipe.denoiser)
    assert Tree(part["class"], part["stacks"]).nodes == Tree.of(pipe.denoiser).nodes


def test_nested_components_lie_in_their_parents():
    tree = Tree.of(pipeline("UNet2DConditionModel").denoiser)
    ff = tree.nodes["down_blocks.0:attentions.1.transformer_blocks.0.ff"]
    assert ff.nested and ff.parent == "down_blocks.0:attentions.1"
    assert tree.components("down_blocks", 0)[:4] == [
        "resnets.0",
        "attentions.0",
        "attentions.0.transformer_blocks.0.attn1",
        "attentions.0.transformer_blocks.0.attn2",
    ]
    assert tree.components("down_blocks", 1) == ["resnets.0", "resnets.1"]
    assert tree.select("up_blocks.*:upsamplers.*") == ["up_blocks.0:upsamplers.0"]
    assert tree.select("mid_block.0:*") == [
        "mid_block.0:resnets.0",
        "mid_block.0:attentions.0",
        "mid_block.0:resnets.1",
    ]
    assert tree.node_of("mid_block.attentions.0.proj_in").name == "mid_block.0:attentions.0"
    assert tree.node_of("down_blocks.0.attentions.1.transformer_blocks.0.ff.net.2") == ff
    assert tree.node_of("time_embedding.linear_1").name == "denoiser"
    with pytest.raises(ScheduleError, match=r"the blocks of up_blocks are not a chain .* use 'up_blocks.\*'"):
        tree.select("up_blocks")


def test_shapes_of_stacks_are_checked():
    with pytest.raises(ScheduleError, match=r"model.stacks.\w+ is .*; it must be a number of equal blocks"):
        Tree("PixArtTransformer2DModel", {"transformer_blocks": [{"attn1": 1}]})
    with pytest.raises(ScheduleError, match=r"model.stacks.\w+ is 3; it must be a list with the contents of each bl"):
        Tree("SD3Transformer2DModel", {"transformer_blocks": 3})
    with pytest.raises(ScheduleError, match="transformer_blocks has lists of 0 to 1000 modules, not 5000"):
        Tree("SD3Transformer2DModel", {"transformer_blocks": [{"attn": 5000}]})


def test_values_of_two_streams_are_tuples():
    pipe = pipeline("SD3Transformer2DModel")
    plan = schedule(pipe, [["transformer_blocks.*", "CRCRCR"]])
    kept = []
    with plan.apply(pipe) as handle:
        pipe.scheduler.set_timesteps(STEPS)
        latents = torch.zeros(TINY["SD3Transformer2DModel"].sample)
        with torch.no_grad():
            pipe.denoiser(latents, **TINY["SD3Transformer2DModel"].given(), timestep=torch.zeros(BATCH))
        for i in range(3):
            kept.append(handle.stores[f"transformer_blocks.{i}"].values[0][0][1])
    assert [[v is None for v in value] for value in kept] == [[False, False], [False, False], [True, False]]
    assert len(list(leaves(kept[2]))) == 1
