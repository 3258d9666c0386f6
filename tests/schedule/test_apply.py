"""Applying: what runs is what the plan says, and nothing is left behind."""

import copy
import gc
import weakref

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler

from search import Schedule, ScheduleError
from search.kernels.forecast import combine
from search.schedule.apply.forecast import newton_weights
from search.schedule.apply.handle import apply_document
from search.schedule.model.nodes import ROOT, Tree
from search.testing.models import tiny_model
from tests.helpers import pipelines
from tests.helpers.pixart_by_hand import ByHand

PLANS = {
    "component": [["transformer_blocks.1:attn1", "CRCRSR"], ["transformer_blocks.*:attn2", "CCRRSC"]],
    "components": [["transformer_blocks.*:*", "CRCRCR"]],
    "block": [["transformer_blocks.0", "CRSCRR"], ["transformer_blocks.2", "CCRSCR"]],
    "stack": [["transformer_blocks", "CRSCRC"]],
    "denoiser": [["denoiser", "CRCCRR"]],
    "nested": [
        ["denoiser", "CCCRCC"],
        ["transformer_blocks", "CCRCCR"],
        ["transformer_blocks.[1-2]", "CRCCRC"],
        ["transformer_blocks.*:ff", "CCCRCR"],
    ],
    "forecast component": [["transformer_blocks.[0,2]:ff", "CCF1CF1F2"]],
    "forecast block": [["transformer_blocks.2", "CCF1CCF3"]],
    "forecast stack": [["transformer_blocks", "CCF1CF2R"]],
    "forecast denoiser": [["denoiser", "CCF1CF2F1"]],
    "forecast orders": [["transformer_blocks.*:attn2", "CC F1*2 C F1"], ["transformer_blocks.1:ff", "CCC F2 C F3"]],
    "forecast and skip a block": [["transformer_blocks.1", "CRSCRF1"], ["transformer_blocks.0", "CSCSCC"]],
    "forecast and skip the stack": [["transformer_blocks", "CRCF1CS"]],
    "forecast above components": [["denoiser", "CRCF1CF2"], ["transformer_blocks.*:ff", "CCRCRC"]],
    "skip": [["transformer_blocks.*:attn1", "CRRCRR"], ["transformer_blocks.[0,2]:ff", "CSCSCS"]],
    "all levels": [
        ["denoiser", "CCRCCC"],
        ["transformer_blocks", "CCCRCC"],
        ["transformer_blocks.2", "CCCCRC"],
        ["transformer_blocks.*:*", "CRCCCR"],
    ],
}


def test_a_run_of_one_step_ends_where_the_step_ends():
    """PixArt's pipeline then takes the second value of the scheduler's step, which most schedulers do not return."""
    pipe = pipelines.pixart()
    content = pipelines.content(pipe, []) | {"steps": 1}
    content.pop("plan", None)
    sampler = {"class": "DPMSolverMultistepScheduler", "timesteps": [999.0], "sigmas": [100.0, 0.0]}
    with Schedule.from_dict(content | {"sampler": sampler}).apply(pipe) as handle:
        assert pipelines.run(pipe, steps=1).isfinite().all()
        assert handle.stats()["denoiser_calls"] == 1


@pytest.mark.parametrize("axis", ["index", "logsnr"])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("name", PLANS)
def test_the_stock_pipeline_does_what_a_loop_by_hand_does(name, guidance, axis):
    pipe = pipelines.pixart()
    schedule = pipelines.schedule(pipe, PLANS[name], axis=axis)
    hand = ByHand(pipe, schedule.plan.tokens, axis)
    expected = hand(guidance=guidance)
    bare = pipelines.run(pipe, guidance=guidance)
    with schedule.apply(pipe) as handle:
        found = pipelines.run(pipe, guidance=guidance)
        stats = handle.stats()
    if "forecast" in name:
        assert (found - expected).norm() < 1e-4 * expected.norm()
    else:
        assert torch.equal(found, expected)
    assert not torch.allclose(found, bare, rtol=1e-3)  # the plan does something
    counts = {n: sum(ran == n for _, ran in hand.ran) for n in schedule.plan.tokens}
    assert stats["block_executions"] == sum(counts[n.name] for n in schedule.tree if n.kind == "block")
    for node, actions in stats["nodes"].items():
        tokens = [t for t in schedule.plan.tokens[node] if t != "-"]
        assert actions == {t: tokens.count(t) for t in set(tokens)}
        assert actions.get("C", 0) == counts[node]


@pytest.mark.parametrize("axis", ["timestep", "sigma", "logsnr"])
def test_forecasts_stand_on_the_true_places(axis):
    pipe, rules = pipelines.pixart(), [["transformer_blocks.*:ff", "CCF1CF2C"]]
    schedule = pipelines.schedule(pipe, rules, axis=axis)
    expected = ByHand(pipe, schedule.plan.tokens, axis)()
    with schedule.apply(pipe):
        found = pipelines.run(pipe)
    assert (found - expected).norm() < 1e-4 * expected.norm()
    with pipelines.schedule(pipe, rules, axis="index").apply(pipe):
        assert not torch.equal(pipelines.run(pipe), found)


def test_random_plans_do_what_a_loop_by_hand_does():
    rng = np.random.default_rng(0)
    pipe = pipelines.pixart()
    nodes = [n.name for n in Tree.of(pipe.transformer)]
    for _ in range(12):
        rules = []
        for name in rng.permutation(nodes)[:6]:
            rules.append([str(name), "C" + "".join(rng.choice(list("CCRS" if name != ROOT else "CCR"), 5))])
        try:
            schedule = pipelines.schedule(pipe, rules)
        except ScheduleError:  # a reader whose only compute fell away below an ancestor
            continue
        expected = ByHand(pipe, schedule.plan.tokens, "index")()
        with schedule.apply(pipe):
            assert torch.equal(pipelines.run(pipe), expected), rules


def test_dit_blocks_and_components_follow_a_plan():
    pipe = pipelines.dit()
    bare = pipelines.classes(pipe)
    for rules in (
        [["transformer_blocks.0", "CSSCRR"]],  # the last layer still reads block 0's embedding
        [["transformer_blocks.*:attn1", "CRCRCR"]],
        [["denoiser", "CRCF1CR"]],
    ):
        with pipelines.schedule(pipe, rules).apply(pipe) as handle:
            once, again = pipelines.classes(pipe), pipelines.classes(pipe)
            assert handle.stats()["runs"] == 2
        assert torch.equal(once, again) and not torch.equal(once, bare)
    assert torch.equal(pipelines.classes(pipe), bare)
    assert Tree.of(pipe.transformer).select("transformer_blocks.*:*") == [
        f"transformer_blocks.{i}:{c}" for i in range(2) for c in ("attn1", "ff")
    ]


# Off and off again


def test_off_is_bit_exact_at_any_number_of_steps():
    pipe = pipelines.pixart()
    bare = {n: pipelines.run(pipe, steps=n) for n in (4, 7)}
    with Schedule.off(pipe).apply(pipe) as handle:
        for n, expected in bare.items():
            assert torch.equal(pipelines.run(pipe, steps=n), expected)
        stats = handle.stats()
    assert stats["denoiser_calls"] == 11 and stats["block_executions"] == 33 and stats["peak_bytes"] == 0
    assert Schedule.off(pipe).steps is None


def attributes(denoiser: torch.nn.Module) -> dict[str, tuple]:
    """Names of the attributes of every module, and the function that is its forward."""
    modules = denoiser.named_modules()
    return {name: (set(module.__dict__), getattr(module.forward, "__func__", None)) for name, module in modules}


@pytest.mark.parametrize("name", PLANS)
def test_remove_is_bit_exact_and_leaves_nothing(name):
    pipe = pipelines.pixart()
    scheduler, config, before = pipe.scheduler, dict(pipe.config), pipelines.run(pipe)
    state, untouched = copy.deepcopy(scheduler.__dict__), attributes(pipe.transformer)
    handle = pipelines.schedule(pipe, PLANS[name]).apply(pipe)
    assert attributes(pipe.transformer) != untouched
    pipelines.run(pipe)
    handle.remove()
    handle.remove()  # twice is once
    assert attributes(pipe.transformer) == untouched
    assert pipelines.traces(pipe.transformer) == []
    assert pipe.scheduler is scheduler and dict(pipe.config) == config
    assert scheduler.__dict__.keys() == state.keys()
    assert torch.equal(pipelines.run(pipe), before)


class Broken(RuntimeError):
    pass


@pytest.mark.parametrize("where", ["block", "component", "callback"])
def test_an_exception_in_mid_call_leaves_nothing(where):
    pipe = pipelines.pixart()
    before = pipelines.run(pipe)
    schedule = pipelines.schedule(pipe, [["transformer_blocks.*:*", "CRCRCR"], ["denoiser", "CCCCCR"]])
    with schedule.apply(pipe):
        expected = pipelines.run(pipe)
    calls = []

    def fail(*_):
        calls.append(1)
        if len(calls) == 3:
            raise Broken

    block = pipe.transformer.transformer_blocks[1]
    module = {"block": block.norm1, "component": block.ff.net[0]}.get(where)
    hook = module.register_forward_hook(fail) if module else None
    with pytest.raises(Broken), schedule.apply(pipe) as handle:
        pipelines.run(pipe, callback=fail if where == "callback" else None, callback_steps=1)
    if hook:
        hook.remove()
    assert pipelines.traces(pipe.transformer) == [] and handle.memory.now == 0
    assert torch.equal(pipelines.run(pipe), before)

    with schedule.apply(pipe) as handle:  # and one handle survives a failed run
        calls.clear()
        hook = module.register_forward_hook(fail) if module else None
        with pytest.raises(Broken):
            pipelines.run(pipe, callback=fail if where == "callback" else None, callback_steps=1)
        if hook:
            hook.remove()
            assert handle.memory.now == 0  # known at once; after a callback, at the next run
        assert torch.equal(pipelines.run(pipe), expected)
        assert handle.memory.now == 0


def test_runs_of_other_batch_resolution_and_guidance_do_not_meet():
    pipe = pipelines.pixart()
    schedule = pipelines.schedule(pipe, [["transformer_blocks.*:attn1", "CRCRF1R"], ["denoiser", "CCCCCR"]])
    calls = [{}, {}, {"batch": 1}, {"size": 12}, {"guidance": 1.0}, {}, {"guidance": 1.0, "batch": 3, "size": 4}]
    alone = []
    for arguments in calls:
        with schedule.apply(pipe):
            alone.append(pipelines.run(pipe, **arguments))
    with schedule.apply(pipe) as handle:
        for arguments, expected in zip(calls, alone, strict=True):
            assert torch.equal(pipelines.run(pipe, **arguments), expected)
        assert handle.stats()["runs"] == len(calls) and handle.memory.now == 0


def test_two_calls_per_step_are_two_branches_with_values_of_their_own():
    """Pipelines that call the denoiser once per CFG branch must get what the batched call gives."""
    model = tiny_model()
    rules = [["transformer_blocks.*:*", "CRCRCR"], ["denoiser", "CCCCRC"]]
    prompts, seeds = ["red apple", "blue boat"], [0, 1]
    (halves,), given = model.begin(prompts, seeds)
    texts, masks = (given[f"encoder_{name}"].chunk(2) for name in ("hidden_states", "attention_mask"))
    with Schedule.from_dict(model.target.schedule({"plan": {"rules": rules}})).apply(model.pipe) as handle:
        batched = model.sample(prompts, seeds)
        scheduler = model.pipe.scheduler
        scheduler.set_timesteps(6)
        latents = halves.chunk(2)[0]
        for t in scheduler.timesteps:
            empty, conditioned = (
                model.denoiser(
                    latents,
                    encoder_hidden_states=text,
                    encoder_attention_mask=mask,
                    timestep=t.expand(2),
                    added_cond_kwargs={"resolution": None, "aspect_ratio": None},
                    return_dict=False,
                )[0]
                for text, mask in zip(texts, masks, strict=True)
            )
            latents = scheduler.step(empty + 4.0 * (conditioned - empty), t, latents, return_dict=False)[0]
        assert torch.allclose(latents, batched, atol=1e-5)
        assert handle.stats()["denoiser_calls"] == 6 + 12


def test_stats_are_of_all_runs_together():
    pipe = pipelines.pixart()
    rules = [["transformer_blocks.*:attn1", "CRRCRR"], ["transformer_blocks.1", "CCSCCC"], ["denoiser", "C*5 R"]]
    with pipelines.schedule(pipe, rules).apply(pipe) as handle:
        pipelines.run(pipe)
        pipelines.run(pipe)
        stats = handle.stats()
    assert stats["runs"] == 2 and stats["denoiser_calls"] == 12
    assert stats["nodes"]["denoiser"] == {"C": 10, "R": 2}
    assert stats["nodes"]["transformer_blocks.1"] == {"C": 8, "S": 2}
    assert stats["nodes"]["transformer_blocks.1:attn1"] == {"C": 4, "R": 4}
    assert stats["block_executions"] == 2 * (5 * 3 - 1)


def test_a_user_scheduler_of_another_class_is_given_back():
    model, mine = tiny_model(), EulerDiscreteScheduler()
    made = Schedule.from_dict(model.target.schedule({"plan": {"rules": [["transformer_blocks.*:*", "CRCRCR"]]}}))
    model.pipe.scheduler = mine
    with made.apply(model.pipe):
        assert type(model.pipe.scheduler).__name__ == "DPMSolverMultistepScheduler"  # the schedule's own
        model.sample(["red apple"], [0])
    assert model.pipe.scheduler is mine


# Hooks


def test_what_computes_and_keeps_nothing_is_called_as_if_nothing_was_planned():
    pipe = pipelines.pixart()
    ff, attn = pipe.transformer.transformer_blocks[1].ff, pipe.transformer.transformer_blocks[1].attn1
    seen: list[list[bool]] = []

    def look(*_):
        own = [getattr(module.__dict__["forward"], "__func__", None) is type(module).forward for module in (ff, attn)]
        seen.append(own)

    rules = [["transformer_blocks.1:ff", "CCRCCC"], ["transformer_blocks.1:attn1", "CCCCSC"]]
    with pipelines.schedule(pipe, rules).apply(pipe):
        between = ff.__dict__["forward"]
        remover = pipe.transformer.transformer_blocks[1].register_forward_pre_hook(look)
        pipelines.run(pipe)
        seen.clear()
        pipelines.run(pipe)  # the first time that each is computed it is looked at
        remover.remove()
        assert ff.__dict__["forward"] is between  # diffusers' own chain
    assert seen == [[True, True], [False, True], [False, True], [True, True], [True, False], [True, True]]


@pytest.mark.parametrize("first", ["wrapper", "schedule"])
@pytest.mark.parametrize("last", ["wrapper", "schedule"])
def test_components_that_somebody_else_wraps(first, last):
    """As sequential offloading does: the wrapper stays outside, whatever is taken off first."""
    hooks = pytest.importorskip("accelerate.hooks")
    pipe = pipelines.pixart()
    bare, components = pipelines.run(pipe), [block.ff for block in pipe.transformer.transformer_blocks]
    made = pipelines.schedule(pipe, [["transformer_blocks.*:ff", "CRCCRC"]])
    with made.apply(pipe):
        expected = pipelines.run(pipe)
    calls: list[int] = []

    class Wrapper(hooks.ModelHook):
        def pre_forward(self, module, *args, **kwargs):
            calls.append(1)
            return args, kwargs

    def wrap():
        for component in components:
            hooks.add_hook_to_module(component, Wrapper())

    if first == "wrapper":
        wrap()
        handle = made.apply(pipe)
    else:
        handle = made.apply(pipe)
        pipelines.run(pipe)
        wrap()
    assert torch.equal(pipelines.run(pipe), expected) and len(calls) == 18
    if last == "schedule":
        handle.remove()
    for component in components:
        hooks.remove_hook_from_module(component)
    if last == "wrapper":
        assert torch.equal(pipelines.run(pipe), expected)
        handle.remove()
    assert torch.equal(pipelines.run(pipe), bare) and len(calls) == 18


def test_snapshots_share_what_is_kept():
    pipe = pipelines.pixart()
    made = pipelines.schedule(pipe, [["transformer_blocks.*:*", "CRCRCR"]])
    keep = {node.name: 1 for node in made.tree}
    taken: list[dict] = []
    with apply_document(made.document, pipe, keep=keep) as handle:
        pipelines.run(pipe, callback=lambda *_: taken.append(handle.snapshot()), callback_steps=1)
    first, second = (snapshot["values"]["transformer_blocks.1:ff"] for snapshot in taken[:2])
    assert [step for step, _ in first[0]] == [step for step, _ in second[0]] == [0]
    assert first[0][0][1] is second[0][0][1]
    assert [step for step, _ in taken[2]["values"]["transformer_blocks.1:ff"][0]] == [2]  # and the first is as it was


# Memory


@pytest.mark.parametrize(
    ("rules", "values"),
    [
        ([["transformer_blocks.1:ff", "CRRCRC"]], 1),  # one value at a time; the last is not kept
        ([["transformer_blocks.1:ff", "CCF1CCF2"]], 3),
        ([["transformer_blocks.*:attn2", "CRCRCR"]], 3),
        ([["transformer_blocks.0", "CRCCCC"], ["transformer_blocks.1", "CCCCCR"]], 1),  # never both at once
        ([["transformer_blocks", "CRCRCR"]], 1),
        ([["transformer_blocks.1:ff", "C*6"]], 0),
        ([["transformer_blocks.1:ff", "CSSSSS"]], 0),
    ],
)
def test_peak_bytes_are_those_of_a_count_by_hand(rules, values):
    pipe = pipelines.pixart()
    one = 4 * 16 * pipelines.WIDTH * 4  # two prompts under guidance, 4x4 tokens, fp32
    with pipelines.schedule(pipe, rules).apply(pipe) as handle:
        pipelines.run(pipe)
        assert handle.stats()["peak_bytes"] == values * one
        assert handle.memory.now == 0
        pipelines.run(pipe, guidance=1.0)
        assert handle.stats()["peak_bytes"] == values * one


def test_values_are_freed_after_their_last_reader():
    pipe, seen = pipelines.pixart(), []
    with pipelines.schedule(pipe, [["transformer_blocks.*:ff", "CRCCRC"]]).apply(pipe) as handle:
        pipelines.run(pipe, batch=1, callback=lambda *_: seen.append(handle.memory.now), callback_steps=1)
    size = 3 * 2 * 16 * 16 * 4  # blocks x CFG halves x tokens x width x bytes
    # kept after step 0, read and freed at 1, not kept at 2 (computed anew at 3), kept at 3, freed at 4
    assert seen == [size, 0, 0, size, 0, 0]
    assert handle.memory.peak == size


def test_the_denoisers_value_counts_its_own_shape():
    pipe = pipelines.pixart()
    with pipelines.schedule(pipe, [["denoiser", "CRCRCR"]]).apply(pipe) as handle:
        pipelines.run(pipe)
    assert handle.stats()["peak_bytes"] == 4 * 8 * 8 * 8 * 4


def test_kept_tensors_are_really_freed():
    pipe = pipelines.pixart()
    kept: list[weakref.ref] = []
    with pipelines.schedule(pipe, [["transformer_blocks.*:ff", "CRCRCR"]]).apply(pipe) as handle:

        def look(step, *_):
            kept.extend(weakref.ref(v) for s in handle.stores.values() for b in s.values.values() for _, v in b)

        pipelines.run(pipe, callback=look, callback_steps=1)
        gc.collect()
        assert len(kept) == 9 and all(ref() is None for ref in kept)


# Forecasts


def test_order_one_is_the_straight_line_on_uneven_places():
    a, b = newton_weights([0.3, 1.7], 2.2)
    assert a == pytest.approx(-(2.2 - 1.7) / (1.7 - 0.3)) and b == pytest.approx((2.2 - 0.3) / (1.7 - 0.3))
    assert newton_weights([2.0, 4.0], 5.0) == pytest.approx([-0.5, 1.5])


@pytest.mark.parametrize("order", [1, 2, 3, 5, 9])
def test_weights_are_those_of_the_interpolating_polynomial(order):
    rng = np.random.default_rng(order)
    places = np.sort(rng.uniform(-3, 3, order + 1)) + 0.3 * np.arange(order + 1)
    values = rng.normal(size=order + 1)
    at = places[-1] + 0.4
    expected = np.polyval(np.polyfit(places, values, order), at)
    assert np.dot(newton_weights(list(places), at), values) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_polynomials_of_its_degree_are_forecast_exactly(order):
    coefficients, places = [0.5, -1.0, 2.0, 0.25][: order + 1], [0.0, 0.4, 1.1, 1.3][: order + 1]
    values = [torch.full((2,), np.polyval(coefficients, x), dtype=torch.float64).float() for x in places]
    found = combine(values, newton_weights(places, 2.0))
    assert torch.allclose(found, torch.full((2,), float(np.polyval(coefficients, 2.0))), atol=1e-5)


def test_forecasts_keep_the_dtype_and_accumulate_in_fp32():
    values = [torch.tensor([1.0], dtype=torch.bfloat16), torch.tensor([1.0078125], dtype=torch.bfloat16)]
    found = combine(values, newton_weights([0, 1], 2))
    assert found.dtype == torch.bfloat16 and found.item() == 1.015625


def test_equal_places_are_refused():
    with pytest.raises(ScheduleError, match=r"puts computed steps at equal places \[1.0, 1.0\]; use axis 'index'"):
        newton_weights([1.0, 1.0], 2.0)
