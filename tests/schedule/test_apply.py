"""Applying: what runs is what the plan says, and nothing is left behind."""

import copy
import gc
import weakref

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, IPNDMScheduler, UNet2DModel

from search import Schedule, ScheduleError
from search.kernels.forecast import combine
from search.schedule.apply.forecast import newton_weights
from search.schedule.apply.handle import Handle
from search.schedule.model.identity import denoiser_of, fingerprint, model_part
from search.schedule.model.nodes import ROOT, Tree
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
}


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


@pytest.mark.parametrize("name", PLANS)
def test_remove_is_bit_exact_and_leaves_nothing(name):
    pipe = pipelines.pixart()
    scheduler, config, before = pipe.scheduler, dict(pipe.config), pipelines.run(pipe)
    state = copy.deepcopy(scheduler.__dict__)
    handle = pipelines.schedule(pipe, PLANS[name]).apply(pipe)
    pipelines.run(pipe)
    handle.remove()
    handle.remove()  # twice is once
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
    with Handle(made._document, pipe, keep=keep) as handle:
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
    with pytest.raises(ScheduleError, match=r"equal places \[1.0, 1.0\]; use axis 'index'"):
        newton_weights([1.0, 1.0], 2.0)


# Refusals


def test_a_changed_batch_in_mid_run_is_refused():
    pipe = pipelines.pixart()
    embeddings, empty = pipelines.embeddings(2), pipelines.embeddings(1)
    with torch.no_grad(), pipelines.schedule(pipe, [["transformer_blocks.1:ff", "CRCRCR"]]).apply(pipe) as handle:
        pipe.scheduler.set_timesteps(6)
        latents = torch.randn(2, 4, 8, 8)

        def call(x, given):
            return pipe.transformer(
                x,
                encoder_hidden_states=given["prompt_embeds"],
                timestep=torch.tensor([500]).expand(len(x)),
                return_dict=False,
            )[0]

        out = call(latents, embeddings)
        pipe.scheduler.step(out.chunk(2, 1)[0], pipe.scheduler.timesteps[0], latents)
        with pytest.raises(
            ScheduleError, match=r"input changed from .*\(2, 4, 8, 8\).* to .*\(1, 4, 8, 8\).* at step 1"
        ):
            call(latents[:1], empty)
        assert handle.stats()["denoiser_calls"] == 1
    with torch.no_grad(), pipelines.schedule(pipe, [["transformer_blocks.1:ff", "CRCRCR"]]).apply(pipe):
        pipe.scheduler.set_timesteps(6)
        out = call(latents, embeddings)
        pipe.scheduler.step(out.chunk(2, 1)[0], pipe.scheduler.timesteps[0], latents)
        call(latents, embeddings)
        with pytest.raises(ScheduleError, match="input changed from None"):  # a second branch appears
            call(latents, embeddings)


def test_a_branch_that_computed_nothing_reads_nothing():
    from search.schedule.apply.clock import Clock
    from search.schedule.apply.stores import MemoryMeter, Store
    from search.schedule.plan.plan import Plan

    plan = Plan.resolve([(ROOT, "CR")], Tree("PixArtTransformer2DModel", {"transformer_blocks": 1}), 2)
    store = Store(ROOT, plan, MemoryMeter())
    with pytest.raises(ScheduleError, match="denoiser reads 1 value.* at step 1, but this CFG branch computed 0"):
        store.read(1, 1, Clock())


def test_a_node_called_twice_in_one_call_is_refused():
    pipe = pipelines.pixart()
    with pipelines.schedule(pipe, [["transformer_blocks.1:ff", "CRCRCR"]]).apply(pipe):
        pipe.transformer.transformer_blocks[1].set_chunk_feed_forward(8, 1)
        with pytest.raises(
            ScheduleError, match="transformer_blocks.1:ff was called twice in one denoiser call at step 0"
        ):
            pipelines.run(pipe)


def test_another_number_of_steps_is_refused():
    pipe = pipelines.pixart()
    with pipelines.schedule(pipe, [["denoiser", "CRCRCR"]]).apply(pipe):
        with pytest.raises(
            ScheduleError, match="this schedule has 6 steps, but the pipeline runs 8; call it with num_inf"
        ):
            pipelines.run(pipe, steps=8)
        pipelines.run(pipe)


def test_calls_outside_of_a_run_are_refused():
    pipe = pipelines.pixart()
    given = {"encoder_hidden_states": torch.zeros(1, 5, pipelines.CAPTION), "timestep": torch.tensor([5])}
    with torch.no_grad(), Schedule.off(pipe).apply(pipe):
        with pytest.raises(ScheduleError, match="the denoiser was called outside of a run"):
            pipe.transformer(torch.zeros(1, 4, 8, 8), **given)
        with pytest.raises(ScheduleError, match="scheduler.step was called more often than there are steps"):
            pipe.scheduler.step(torch.zeros(1, 4, 8, 8), 5, torch.zeros(1, 4, 8, 8))
        pipelines.run(pipe)
        with pytest.raises(ScheduleError, match="called outside of a run"):
            pipe.transformer(torch.zeros(1, 4, 8, 8), **given)


def test_partial_runs_are_refused():
    pipe = pipelines.pixart()
    given = {"encoder_hidden_states": torch.zeros(1, 5, pipelines.CAPTION), "timestep": torch.tensor([5])}
    with torch.no_grad(), pipelines.schedule(pipe, [["denoiser", "CRCRCR"]]).apply(pipe):
        pipe.scheduler.set_timesteps(6)
        pipe.scheduler.set_begin_index(3)
        with pytest.raises(ScheduleError, match="the run starts at step 3; a schedule applies to whole runs"):
            pipe.transformer(torch.zeros(1, 4, 8, 8), **given)
    pipe.scheduler = DDIMScheduler()  # knows no begin index
    with torch.no_grad(), pipelines.schedule(pipe, [["denoiser", "CRCRCR"]]).apply(pipe):
        pipe.scheduler.set_timesteps(6)
        x = torch.zeros(1, 4, 8, 8)
        out = pipe.transformer(x, **given).sample[:, :4]
        with pytest.raises(ScheduleError, match="the run starts at timestep 498 instead of 830; a schedule applies to"):
            pipe.scheduler.step(out, pipe.scheduler.timesteps[2], x)


def test_a_swapped_scheduler_is_refused_and_kept():
    pipe = pipelines.pixart()
    swapped = EulerDiscreteScheduler()
    with pipelines.schedule(pipe, [["denoiser", "CRCRCR"]]).apply(pipe):
        pipe.scheduler = swapped
        with pytest.raises(ScheduleError, match="scheduler was replaced by EulerDiscreteScheduler after the schedule"):
            pipelines.run(pipe)
    assert pipe.scheduler is swapped  # the user's choice stays
    pipelines.run(pipe)


def test_a_second_schedule_is_refused():
    pipe = pipelines.pixart()
    with Schedule.off(pipe).apply(pipe), pytest.raises(ScheduleError, match="already applied .*call .remove"):
        Schedule.off(pipe).apply(pipe)
    with Schedule.off(pipe).apply(pipe):
        pipelines.run(pipe)


def test_copies_are_refused():
    pipe = pipelines.pixart()
    with pipelines.schedule(pipe, [["transformer_blocks.*:ff", "CRCRCR"]]).apply(pipe):
        before = pipelines.run(pipe)
        for part in (pipe.scheduler, pipe.transformer, pipe.transformer.transformer_blocks[1], pipe):
            with pytest.raises(ScheduleError, match="a schedule is applied here; remove it before copying"):
                copy.deepcopy(part)
        assert torch.equal(pipelines.run(pipe), before)
    clean = copy.deepcopy(pipe.transformer)
    assert pipelines.traces(clean) == []


def test_a_failed_apply_leaves_nothing():
    pipe = pipelines.pixart()
    before, scheduler = pipelines.run(pipe), pipe.scheduler

    def broken(forward):
        raise Broken

    with pytest.raises(Broken):
        pipelines.schedule(pipe, [["transformer_blocks.*:ff", "CRCRCR"]]).apply(pipe, compile=broken)
    assert pipelines.traces(pipe.transformer) == [] and pipe.scheduler is scheduler
    assert torch.equal(pipelines.run(pipe), before)


def test_other_models_are_refused():
    pipe, other, dit = pipelines.pixart(), pipelines.pixart(blocks=2), pipelines.dit()
    schedule = pipelines.schedule(pipe, [["denoiser", "CRCRCR"]])
    with pytest.raises(ScheduleError, match="model.class is 'PixArt.*', but the pipeline's denoiser is a DiT"):
        schedule.apply(dit)
    with pytest.raises(ScheduleError, match=r"model.stacks is {'transformer_blocks': 3}, but this .* has .*: 2}"):
        schedule.apply(other)
    larger = pipelines.pixart(sample_size=16)
    with pytest.raises(ScheduleError, match=r"model.fingerprint is '\w{16}', but this denoiser's is .*strict=False"):
        schedule.apply(larger)
    with schedule.apply(larger, strict=False):
        pipelines.run(larger)


def test_pipelines_without_a_known_denoiser_are_refused():
    class Nothing:
        pass

    with pytest.raises(ScheduleError, match="Nothing has neither a transformer, a unet nor a denoiser"):
        denoiser_of(Nothing())
    with pytest.raises(ScheduleError, match="model.class 'UNet2DModel' has no node contract; known: DiT"):
        Tree.of(
            UNet2DModel(
                block_out_channels=(4,),
                down_block_types=("DownBlock2D",),
                up_block_types=("UpBlock2D",),
                norm_num_groups=2,
            )
        )


def test_a_contract_that_a_model_breaks_is_named():
    pipe = pipelines.pixart(cross_attention_dim=None, caption_channels=None)
    with pytest.raises(ScheduleError, match="has no transformer_blocks.0:attn2: BasicTransformerBlock lacks 'attn2'"):
        model_part(pipe.transformer)


def test_an_axis_that_the_scheduler_cannot_give_is_refused():
    pipe = pipelines.pixart(scheduler=IPNDMScheduler())
    refused = pytest.raises(ScheduleError, match="plan.axis .logsnr.: IPNDMScheduler has no sigmas; use .index.")
    with pipelines.schedule(pipe, [["denoiser", "CCF1CCC"]], axis="logsnr").apply(pipe), refused:
        pipelines.run(pipe)


def test_the_fingerprint_is_of_the_architecture_alone():
    a, b = pipelines.pixart(), pipelines.pixart()
    torch.nn.init.zeros_(b.transformer.proj_out.weight)
    b.transformer.register_to_config(_name_or_path="/somewhere/else")
    assert fingerprint(a.transformer) == fingerprint(b.transformer)
    assert fingerprint(a.transformer) != fingerprint(pipelines.pixart(sample_size=16).transformer)
