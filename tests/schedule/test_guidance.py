"""Guidance per step: the stock pipeline under a schedule against loops by hand with explicit u and c."""

import copy
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from search import Schedule, ScheduleError
from search.evaluate.execute.jobs import Batch
from search.evaluate.execute.prefix import step_keys
from search.evaluate.execute.runner import Runner
from search.models.base import to_schedule
from search.profile.count import count_costs
from search.schedule.model.nodes import ROOT, Tree
from search.schedule.plan.guidance import Approximation, Guidance, settle_branches
from search.spaces.cache import CacheSpace
from search.testing.models import tiny_model
from tests.helpers import pipelines
from tests.helpers.guidance_by_hand import approximated
from tests.helpers.pixart_by_hand import ByHand
from tests.helpers.population import latents

CALL = 3.0
BRANCHES = ["CCCOOO", "OOOOOO", "OCCCOO", "CRCRCR", "CRRORR", "MMMMMM", "CMCMRO", "OCMRCR"]
SCALES = [3.0, 1.5, 0.0, 4.5, 1.0, 6.0]
WEIGHTS = {"low": [1.0, 1.1, 0.7, 1.3, 0.9, 1.2], "high": [1.0, 0.8, 1.5, 1.3, 0.0, 0.5], "radius": 0.3}
CACHES = {
    "components": [["transformer_blocks.*:*", "CCRCRC"]],
    "forecast": [["transformer_blocks.[0,2]:ff", "CCF1CCF1"], ["transformer_blocks.1:attn2", "CCSRCR"]],
    "blocks": [["transformer_blocks.1", "CCRCRS"], ["transformer_blocks.*:attn1", "CCCRRC"]],
    "stack": [["transformer_blocks", "CCRSCR"]],
    "denoiser": [["denoiser", "CCRCCF1"]],
    "all levels": [["denoiser", "CCCCRC"], ["transformer_blocks", "CCCRCC"], ["transformer_blocks.2:*", "CCRCRR"]],
}


def planned(pipe, branch: str | None = None, scale: list[float] | None = None, rules=(), call=CALL, **more) -> Schedule:
    part = {"call": call, "scale": scale, "branch": branch} | more
    return pipelines.schedule(pipe, rules, guidance={k: v for k, v in part.items() if v is not None})


@torch.no_grad()
def by_hand(
    pipe, branch: str = "CCCCCC", scale: list[float] | None = None, weights: dict[str, Any] = WEIGHTS
) -> Tensor:
    """u and c are what the bare transformer gives; the formulas are those of the module's docstring."""
    scheduler, model = copy.deepcopy(pipe.scheduler), pipe.transformer
    scheduler.set_timesteps(6)
    text, empty, mask, empty_mask = (
        pipelines.embeddings(2)[f"{sign}prompt_{kind}"]
        for kind in ("embeds", "attention_mask")
        for sign in ("", "negative_")
    )

    def call(x: Tensor, states: Tensor, masks: Tensor) -> Tensor:
        micro = {"resolution": None, "aspect_ratio": None}
        given = {"encoder_hidden_states": states, "encoder_attention_mask": masks, "added_cond_kwargs": micro}
        return model(x, timestep=t.expand(len(x)), **given, return_dict=False)[0]

    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    u = torch.empty(0)
    for i, t in enumerate(scheduler.timesteps):
        s = scale[i] if scale else CALL
        if branch[i] == "C":
            u, c = call(torch.cat([x, x]), torch.cat([empty, text]), torch.cat([empty_mask, mask])).chunk(2)
            last = u - c, u
        else:
            c = call(x, empty + s * (text - empty) if branch[i] == "M" else text, mask)
        if branch[i] == "A":
            radius = int(weights["radius"] * 8)  # of 8 x 8 latents
            u = approximated(c, last[0], weights["low"][i], weights["high"][i], radius)
        elif branch[i] == "R":
            u = last[1]
        output = c if branch[i] in "OM" else u + s * (c - u)
        x = scheduler.step(output.chunk(2, dim=1)[0], t, x).prev_sample
    return x


@pytest.mark.parametrize("branch", BRANCHES)
def test_the_stock_pipeline_does_what_a_loop_by_hand_does(branch):
    pipe = pipelines.pixart()
    bare = pipelines.run(pipe)
    with planned(pipe, branch).apply(pipe) as handle:
        found, again = pipelines.run(pipe), pipelines.run(pipe)
        assert handle.memory.now == 0
    assert torch.equal(found, by_hand(pipe, branch)) and torch.equal(found, again)
    assert not torch.allclose(found, bare, rtol=1e-3)
    assert pipelines.traces(pipe.transformer) == [] and torch.equal(pipelines.run(pipe), bare)


@pytest.mark.parametrize("scale", [None, SCALES])
@pytest.mark.parametrize("branch", ["CAAAAA", "CACACA", "OCRAMA", "CCAOCA"])
def test_approximated_steps_are_those_of_a_loop_by_hand(branch, scale):
    pipe = pipelines.pixart()
    expected = by_hand(pipe, branch, scale)
    with planned(pipe, branch, scale, approximate=WEIGHTS).apply(pipe) as handle:
        found, again = pipelines.run(pipe), pipelines.run(pipe)
        assert handle.memory.now == 0
    assert (found - expected).norm() < 1e-5 * expected.norm() and torch.equal(found, again)
    for other in (branch.replace("A", "R"), branch.replace("A", "O"), branch.replace("A", "C")):
        assert not torch.allclose(found, by_hand(pipe, other, scale), rtol=1e-3)


def test_weights_of_one_add_the_difference_and_of_zero_nothing():
    pipe, ones = pipelines.pixart(), {"low": [1.0] * 6, "high": [1.0] * 6, "radius": 0.2}
    with planned(pipe, "CCAACA", approximate={"low": 1.0, "high": 1.0}).apply(pipe):
        found = pipelines.run(pipe)
    expected = by_hand(pipe, "CCAACA", weights=ones)
    assert (found - expected).norm() < 1e-5 * expected.norm()
    expected = by_hand(pipe, "CCOOCO")
    with planned(pipe, "CCAACA", approximate={"low": 0.0, "high": 0.0}).apply(pipe):
        assert torch.equal(pipelines.run(pipe), expected)  # u = c


@pytest.mark.parametrize("sides", [(8, 8), (10, 15), (7, 16), (3, 3)])
def test_bands_are_those_of_diffusers(sides):
    from diffusers.hooks.faster_cache import _split_low_high_freq

    generator = torch.Generator().manual_seed(0)
    c, difference = (torch.randn(2, 4, *sides, generator=generator) for _ in range(2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch.meshgrid, in there
        low, high = _split_low_high_freq(difference)
    theirs = c + torch.fft.ifft2(torch.fft.ifftshift(1.3 * low + 0.6 * high)).real
    assert torch.allclose(Approximation((1.3,), (0.6,), 0.2).unconditional(0, c, difference), theirs, atol=1e-5)
    halves = Approximation((1.3,), (0.6,), 0.2).unconditional(0, c.bfloat16(), difference.bfloat16())
    assert halves.dtype == torch.bfloat16 and torch.allclose(halves.float(), theirs, atol=0.1)


def test_the_whole_spectrum_is_low_at_a_large_radius_and_its_mean_alone_at_none():
    difference = torch.randn(1, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    none = torch.zeros_like(difference)
    mean = difference.mean((-2, -1), keepdim=True)
    assert torch.allclose(Approximation((1.0,), (0.0,), 0.0).unconditional(0, none, difference), mean, atol=1e-6)
    all_low = Approximation((2.0,), (0.0,), 1.0).unconditional(0, none, difference)
    assert torch.allclose(all_low, 2 * difference, atol=1e-5)


def test_t_gate_is_cross_attention_reused_and_guidance_off_from_one_step_on():
    pipe = pipelines.pixart()
    expected = by_hand_gated(pipe, gate=2)
    with planned(pipe, "CCOOOO", rules=[["transformer_blocks.*:attn2", "CC R*4"]]).apply(pipe):
        found = pipelines.run(pipe)
    assert (found - expected).norm() < 1e-5 * expected.norm()
    assert not torch.allclose(found, by_hand(pipe, "CCOOOO"), rtol=1e-3)


def by_hand_gated(pipe, gate: int) -> Tensor:
    """Hooks on attn2: from the gate on its last conditional half, whatever it would compute."""
    kept, calls = {}, [0]
    removers = [pipe.transformer.register_forward_pre_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))]
    for i, block in enumerate(pipe.transformer.transformer_blocks):

        def after(module, given, output, i=i):
            if calls[0] > gate:
                return kept[i]
            kept[i] = output.chunk(2)[1]

        removers.append(block.attn2.register_forward_hook(after))
    try:
        return by_hand(pipe, "C" * gate + "O" * (6 - gate))
    finally:
        for remover in removers:
            remover.remove()


@pytest.mark.parametrize("branch", ["CCCCCC", "CRCRCR", "OCMRCR"])
def test_a_scale_schedule_is_that_of_a_loop_by_hand(branch):
    pipe = pipelines.pixart()
    expected = by_hand(pipe, branch, SCALES)
    with planned(pipe, branch, SCALES).apply(pipe):
        found = pipelines.run(pipe)
    assert (found - expected).norm() < 1e-5 * expected.norm()
    assert not torch.allclose(found, by_hand(pipe, branch), rtol=1e-2)


def test_the_own_scale_is_bit_exact():
    pipe = pipelines.pixart()
    bare = pipelines.run(pipe)
    for parts in ({}, {"scale": [CALL] * 6}, {"branch": "CCCCCC"}):
        schedule = planned(pipe, **parts)
        assert schedule.guidance.is_off and schedule == pipelines.schedule(pipe)
        with schedule.apply(pipe):
            assert torch.equal(pipelines.run(pipe), bare)
            pipelines.run(pipe, guidance=1.0)  # off asks for nothing
    with planned(pipe, scale=[CALL] * 5 + [2.0]).apply(pipe) as handle:  # the steps before are untouched
        seen = []
        pipelines.run(pipe, callback=lambda i, t, x: seen.append(x.clone()), callback_steps=1)
        assert handle.stats()["peak_bytes"] == 0
    plain = []
    pipelines.run(pipe, callback=lambda i, t, x: plain.append(x.clone()), callback_steps=1)
    assert [torch.equal(a, b) for a, b in zip(seen, plain, strict=True)] == [True] * 5 + [False]


@pytest.mark.parametrize("branch", ["CCOOCO", "CRCRRC", "COCROO"])
def test_the_first_half_is_the_conditional_one_of_dit(branch):
    pipe = pipelines.dit()
    with planned(pipe, branch).apply(pipe):
        found = pipelines.classes(pipe)
    model, scheduler = pipe.transformer, copy.deepcopy(pipe.scheduler)
    scheduler.set_timesteps(6)
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    labels, null = torch.tensor([3, 5]), torch.tensor([1000, 1000])
    with torch.no_grad():
        for kind, t in zip(branch, scheduler.timesteps, strict=True):
            if kind == "C":
                times = t.expand(4)
                c, u = model(torch.cat([x, x]), times, torch.cat([labels, null])).sample[:, :4].chunk(2)
            else:
                c = model(x, t.expand(2), labels).sample[:, :4]
            output = c if kind == "O" else u + CALL * (c - u)
            x = scheduler.step(output, t, x).prev_sample
        expected = (pipe.vae.decode(x / pipe.vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)
    assert torch.allclose(found, expected, atol=1e-5)


class HalvesByHand(ByHand):
    """Two calls of the model's parts a step, one for u and one for c, each with values of its own."""

    @torch.no_grad()
    def guided(self, branch: str, scale: list[float]) -> Tensor:
        scheduler = copy.deepcopy(self.pipe.scheduler)
        scheduler.set_timesteps(6)
        self.places = list(range(6))
        given = pipelines.embeddings(2)
        text, empty, mask = given["prompt_embeds"], given["negative_prompt_embeds"], given["prompt_attention_mask"]
        x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
        kept: dict[str, dict] = {"u": {}, "c": {}}

        def half(name: str, states: Tensor) -> Tensor:
            self.kept = kept[name]
            return self.act(ROOT, lambda: self.denoiser(x, t, states, mask))

        for self.step, t in enumerate(scheduler.timesteps):
            kind, s = branch[self.step], scale[self.step]
            c = half("c", empty + s * (text - empty) if kind == "M" else text)
            u = half("u", empty) if kind == "C" else kept["u"][ROOT][-1][1] if kind == "R" else c
            if kind == "C" and self.tokens[ROOT][self.step] == "C":
                difference = u - c
            if kind == "A":
                u = c + 1.25 * difference
            output = c if kind in "OM" else u + s * (c - u)
            x = scheduler.step(output.chunk(2, dim=1)[0], t, x).prev_sample
        return x


@pytest.mark.parametrize("branch", ["CCCCCC", "CCOCRO", "CCRRMC", "CCCOOO", "CCMROC", "CCACAA", "CCAROA"])
@pytest.mark.parametrize("name", CACHES)
def test_with_caches_it_does_what_a_loop_by_hand_does(name, branch):
    pipe = pipelines.pixart()
    schedule = planned(pipe, branch, SCALES, CACHES[name], approximate={"low": 1.25, "high": 1.25})
    hand = HalvesByHand(pipe, schedule.plan.tokens, "index")
    expected = hand.guided(branch, SCALES)
    executed = []
    hook = (
        pipe.transformer.transformer_blocks[2]
        .ff.net[0]
        .register_forward_hook(lambda m, a, out: executed.append(len(out)))
    )
    with schedule.apply(pipe) as handle:
        found = pipelines.run(pipe)
        assert handle.memory.now == 0
    hook.remove()
    assert (found - expected).norm() < 1e-4 * expected.norm()
    assert sum(executed) == 2 * sum(ran == "transformer_blocks.2:ff" for _, ran in hand.ran)  # 2 prompts


# Costs

MODEL = tiny_model()
TARGET = MODEL.target
COSTS = count_costs(MODEL.denoiser, TARGET.tree, TARGET.steps, MODEL.once)
GRANULARITIES = ("component", "block", "step")


def raw(seed: int, granularity: str) -> tuple[dict[str, list[str]], np.ndarray]:
    """Actions of random genes before any of them is lowered, and the genes."""
    rng, space = np.random.default_rng(seed), CacheSpace(granularity, max_order=2)
    genes = space.genes(TARGET)
    x = rng.integers(0, [g.levels for g in genes])
    x[rng.random(len(x)) > rng.random()] = 0
    tokens: dict[str, list[str]] = {}
    for gene, level in zip(genes, x, strict=True):
        tokens.setdefault(gene.name.partition("@")[0], ["C"]).append(["C", "R", "F1", "F2"][level])
    return tokens, x


def random_branch(seed: int) -> str:
    rng = np.random.default_rng(seed)
    branch = "".join(rng.choice(list("CCORMA"), 6))
    first = min((branch.index(kind) for kind in "RA" if kind in branch), default=0)
    return branch if "C" in branch[:first] else branch[:first] + "C" + branch[first + 1 :]


def joined(seed: int, granularity: str) -> Schedule:
    branch = random_branch(seed)
    tokens = settle_branches(raw(seed, granularity)[0], TARGET.tree, branch)
    rules = [[name, "".join(actions)] for name, actions in tokens.items()]
    return Schedule.from_dict(
        TARGET.schedule({"plan": {"rules": rules}, "guidance": {"call": TARGET.guidance, "branch": branch}})
    )


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 10_000), granularity=st.sampled_from(GRANULARITIES))
def test_macs_and_peak_bytes_equal_an_applied_run(seed, granularity):
    schedule = joined(seed, granularity)
    prompts, seeds = ["red apple"], [0]
    MODEL.begin(prompts, seeds)  # the text is encoded
    with schedule.apply(MODEL.pipe) as handle, FlopCounterMode(display=False) as counter:
        with sdpa_kernel(SDPBackend.MATH):
            MODEL.sample(prompts, seeds)
        assert handle.stats()["peak_bytes"] == COSTS.peak_bytes(schedule)
        assert handle.memory.now == 0
    assert counter.get_total_flops() // 2 == COSTS.macs(schedule)
    assert isinstance(COSTS.macs(schedule), int)


def test_shares_and_latency_features_by_hand():
    rules = [["denoiser", "CCCRRC"], ["transformer_blocks.0:ff", "CCRCCC"]]
    parts = {"plan": {"rules": rules}, "guidance": {"call": 4.0, "branch": "CORCMM"}}
    schedule = Schedule.from_dict(TARGET.schedule(parts))
    assert COSTS.share(schedule) == [1, 0.5, 0.5, 1, 0.5, 0.5]
    assert COSTS.share(Schedule.from_dict(TARGET.schedule({}))) == [1] * 6
    assert COSTS.features(schedule) == [1, 2.5, 7.5, 7.5, 7.0]
    assert COSTS.macs(Schedule.from_dict(TARGET.schedule({"guidance": {"call": 4.0, "branch": "O" * 6}}))) == round(
        COSTS.teacher_macs / 2
    )


@pytest.mark.parametrize("seed", range(6))
def test_kept_bytes_are_those_of_the_memory_behind_them(seed):
    schedule = joined(seed, "component")

    def look(*_):
        values = [v for s in handle.stores.values() for kept in s.values.values() for _, v in kept]
        storages = {v.untyped_storage().data_ptr(): v.untyped_storage().nbytes() for v in values}
        assert sum(storages.values()) == handle.memory.now
        seen.append(handle.memory.now)

    seen: list[int] = []
    with schedule.apply(MODEL.pipe) as handle:
        MODEL.stock(["red apple"], [0], output_type="latent", callback=look, callback_steps=1)
    assert len(seen) == 6


def test_the_last_unconditional_output_is_all_that_reuse_keeps():
    pipe = pipelines.pixart()
    with planned(pipe, "CRCRCO").apply(pipe) as handle:
        pipelines.run(pipe)
        assert handle.stats()["peak_bytes"] == 2 * 8 * 8 * 8 * 4  # u of two prompts
    with planned(pipe, "CACACO").apply(pipe) as handle:
        pipelines.run(pipe)
        assert handle.stats()["peak_bytes"] == 2 * 8 * 8 * 8 * 4  # u - c
    with planned(pipe, "CRACAO").apply(pipe) as handle:
        pipelines.run(pipe)
        assert handle.stats()["peak_bytes"] == 2 * 2 * 8 * 8 * 8 * 4
    with planned(pipe, "COCOCO").apply(pipe) as handle:
        pipelines.run(pipe)
        assert handle.stats()["peak_bytes"] == 0


def test_runs_that_share_a_beginning_share_the_difference():
    """A full beginning and a narrow one, gone on with by weights of their own, are whole runs to the last bit."""
    given = [
        {"branch": "CCCAAC", "approximate": WEIGHTS},
        {"branch": "CCCAAC", "approximate": WEIGHTS | {"radius": 0.1}},
        {"branch": "CCCCAC", "approximate": {"low": 0.5, "high": 2.0}},
        {"branch": "CCCRAC", "approximate": {"low": 0.5, "high": 2.0}},
        {"branch": "CCCCCC"},
    ]
    schedules = [to_schedule(MODEL, {"guidance": {"call": 4.0} | part}) for part in given]
    prompts, seeds = ["red apple"], [0]
    runner = Runner(MODEL, COSTS)
    for schedule, found in zip(schedules, latents(runner, Batch(("red apple",), (0,)), schedules), strict=True):
        with schedule.apply(MODEL.pipe):
            assert torch.equal(MODEL.sample(prompts, seeds), found)
    assert runner.steps == 6 + 2 + 3 + 3 + 2
    paths = [step_keys(schedule) for schedule in schedules]
    # at step 3 both bands have one weight, and no radius matters
    assert [a == b for a, b in zip(paths[0], paths[1], strict=True)] == [True, True, True, True, False, True]


# What settles

TREE = Tree("PixArtTransformer2DModel", {"transformer_blocks": 2})


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_what_is_settled_is_always_accepted(data):
    names = data.draw(st.lists(st.sampled_from([n.name for n in TREE]), unique=True, min_size=1))
    tokens = {}
    for name in names:
        actions = ["C", "R", "F1", "F2"] + ["S"] * (name != ROOT)
        tokens[name] = data.draw(st.lists(st.sampled_from(actions), min_size=6, max_size=6))
    branch = data.draw(st.one_of(st.none(), st.integers(0, 1000).map(random_branch)))
    settled = settle_branches(tokens, TREE, branch)
    parts = {"guidance": {"call": 2.0, "branch": branch}} if branch else {}
    model = {"class": TREE.model_class, "stacks": TREE.stacks}
    rules = [[name, "".join(actions)] for name, actions in settled.items()]
    schedule = Schedule.from_dict(
        {"format": "schedule/1", "model": model, "steps": 6, "plan": {"rules": rules}} | parts
    )
    for name, actions in settled.items():
        assert [t.replace("-", "C") for t in schedule.plan.tokens[name]] == actions
        for was, now in zip(tokens[name], actions, strict=True):
            assert now in (was, "C", "R", "F1") and (was != "C" or now == "C") and (was != "S" or now in "SC")
    assert settle_branches(settled, TREE, branch) == settled


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), granularity=st.sampled_from(GRANULARITIES))
def test_without_guidance_it_settles_as_the_cache_space_does(seed, granularity):
    tokens, x = raw(seed, granularity)
    space = CacheSpace(granularity, max_order=2)
    decoded = dict(space.decode(x, TARGET).get("plan", {"rules": []})["rules"])
    settled = {name: "".join(actions) for name, actions in settle_branches(tokens, TARGET.tree, None).items()}
    assert {name: actions for name, actions in settled.items() if actions != "CCCCCC"} == decoded
    assert settle_branches(tokens, TARGET.tree, "CCCCCC") == settle_branches(tokens, TARGET.tree, None)


def test_settling_by_hand():
    ff = "transformer_blocks.0:ff"
    tokens = {ff: ["C", "F1", "R", "F2", "F2", "F2"]}
    assert settle_branches(tokens, TREE, None) == {ff: ["C", "R", "R", "R", "R", "R"]}
    assert settle_branches(tokens, TREE, "OOCCCO") == {ff: ["C", "R", "C", "R", "R", "F1"]}
    # the parent's step is lowered to C, so its child runs there, and is lowered too
    block = {"transformer_blocks.0": list("CRCCCC"), ff: list("CRCRCC")}
    assert settle_branches(block, TREE, "OCCCCC") == {"transformer_blocks.0": list("CCCCCC"), ff: list("CCCRCC")}
    assert settle_branches({}, TREE, None) == {}


# Refusals


def test_a_full_step_cannot_read_what_only_narrow_steps_computed():
    pipe = pipelines.pixart()
    rules = [["transformer_blocks.1:ff", "CCF1CRC"]]
    planned(pipe, "CCCOOO", rules=rules)
    planned(pipe, "OOOCCC", rules=rules)
    expected = (
        "transformer_blocks.1:ff at step 2 is F1 with guidance.branch C, which reads 2 uncond.* but 1 came before"
    )
    with pytest.raises(ScheduleError, match=expected + "; put 1 more C before it at steps whose guidance.branch is C"):
        planned(pipe, "COCCCC", rules=rules)
    with pytest.raises(ScheduleError, match="denoiser at step 1 is R with guidance.branch C, which reads 1 .* but 0"):
        planned(pipe, "OCRCCC", rules=[["denoiser", "CRCRCR"]])
    with pytest.raises(ScheduleError, match="guidance.branch is R at step 1, but no C came before it"):
        planned(pipe, "ORCCCC")
    with pytest.raises(ScheduleError, match="guidance.branch is A at step 2, but no C came before it"):
        planned(pipe, "OMACCC")


def test_weights_that_do_not_fit_are_refused():
    pipe = pipelines.pixart()
    with pytest.raises(ScheduleError, match="guidance.approximate.high has 2 entries; 6 steps need 6"):
        planned(pipe, "CACACA", approximate={"high": [1.0, 2.0]})
    with pytest.raises(ScheduleError, match=r"guidance.approximate.radius is '2.0'"):
        planned(pipe, "CACACA", approximate={"radius": 2.0})
    with pytest.raises(ScheduleError, match=r"guidance.approximate.low.* is '1000.0'"):
        planned(pipe, "CACACA", approximate={"low": 1000.0})


def test_only_pictures_have_frequencies():
    guidance = Guidance.of(TREE, 2, CALL, branch="CA")
    with pytest.raises(
        ScheduleError, match=r"branch is A after step 0, but the denoiser returns \[2, 64, 16\]; .* use C"
    ):
        guidance.difference(0, torch.zeros(2, 64, 16))


@pytest.mark.parametrize("branch", ["CCCCCO", "CCCCCC"])
def test_a_pipeline_without_guidance_is_refused(branch):
    pipe = pipelines.pixart()
    with planned(pipe, branch, scale=SCALES).apply(pipe) as handle:
        for batch in (1, 2, 3):
            with pytest.raises(ScheduleError, match=f"batch of {batch} is not two equal .* guidance_scale=3"):
                pipelines.run(pipe, guidance=1.0, batch=batch)
        assert torch.isfinite(pipelines.run(pipe)).all() and handle.memory.now == 0


def test_one_call_per_half_is_refused():
    pipe = pipelines.pixart()
    given = pipelines.embeddings(2)["prompt_embeds"]
    with torch.no_grad(), planned(pipe, "CCCCCO").apply(pipe):
        pipe.scheduler.set_timesteps(6)
        x = torch.zeros(2, 4, 8, 8)  # equal pictures, which the first check lets pass
        pipe.transformer(x, given, torch.tensor([500, 500]))
        with pytest.raises(ScheduleError, match="called 2 times at step 0; .* both halves of guidance as one batch"):
            pipe.transformer(x, given, torch.tensor([500, 500]))


def test_classes_that_are_not_known_to_guide_are_refused_by_name():
    with pytest.raises(ScheduleError, match="branch is M, but DiTTransformer2DModel has no text states to merge"):
        planned(pipelines.dit(), "CCCCCM")
    flux = {
        "format": "schedule/1",
        "model": {
            "class": "FluxTransformer2DModel",
            "stacks": {"transformer_blocks": 2, "single_transformer_blocks": 2},
        },
        "steps": 2,
    }
    with pytest.raises(ScheduleError, match="which half .* conditional for FluxTransformer2DModel; known: DiT.*PixArt"):
        Schedule.from_dict(flux | {"guidance": {"call": 3.0, "branch": "CO"}})
    assert Schedule.from_dict(flux | {"guidance": {"call": 3.0, "branch": "CC"}}).guidance.is_off


def test_a_merged_step_needs_text_states():
    pipe = pipelines.pixart()
    with torch.no_grad(), planned(pipe, "MCCCCC").apply(pipe):
        pipe.scheduler.set_timesteps(6)
        with pytest.raises(ScheduleError, match="branch is M at step 0, but the denoiser was given no encoder_hidden"):
            pipe.transformer(torch.zeros(2, 4, 8, 8), timestep=torch.tensor([500, 500]))


# Arguments and traces


@pytest.mark.parametrize("kind", ["O", "M"])
def test_all_arguments_are_halved_where_they_have_the_batch(kind):
    pipe = pipelines.pixart(attention_head_dim=6, cross_attention_dim=12, use_additional_conditions=True)
    generator = torch.Generator().manual_seed(0)
    x, text = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(4, 5, pipelines.CAPTION, generator=generator)
    sizes = {"resolution": torch.rand(4, 2, generator=generator), "aspect_ratio": torch.rand(4, 1, generator=generator)}
    mask = torch.ones(4, 5)
    mask[2:, -1] = 0
    bare = pipe.transformer
    states = text[2:] if kind == "O" else text[:2] + CALL * (text[2:] - text[:2])
    micro = {name: value[2:] for name, value in sizes.items()}
    with torch.no_grad():
        times = torch.tensor([500] * 2)
        expected = bare(x, states, times, micro, encoder_attention_mask=mask[2:]).sample
        with planned(pipe, kind + "CCCCC").apply(pipe):
            pipe.scheduler.set_timesteps(6)
            # positional, by keyword and inside a dict
            found = pipe.transformer(
                torch.cat([x, x]), text, torch.tensor([500] * 4), sizes, encoder_attention_mask=mask
            )
    assert torch.equal(found.sample, torch.cat([expected, expected]))
    assert type(found).__name__ == "Transformer2DModelOutput"


def test_an_exception_in_mid_run_leaves_nothing():
    pipe = pipelines.pixart()
    before = pipelines.run(pipe)
    schedule = planned(pipe, "CRCRCO", SCALES, [["transformer_blocks.*:ff", "CRCRCR"]])
    with schedule.apply(pipe) as handle:
        expected = pipelines.run(pipe)
        calls = []

        def fail(*_):
            calls.append(1)
            if len(calls) == 4:
                raise RuntimeError("broken")

        hook = pipe.transformer.transformer_blocks[1].norm1.register_forward_hook(fail)
        with pytest.raises(RuntimeError, match="broken"):
            pipelines.run(pipe)
        hook.remove()
        assert handle.memory.now == 0
        assert torch.equal(pipelines.run(pipe), expected)
        assert torch.equal(pipelines.run(pipe, batch=2), expected)
        pipelines.run(pipe, batch=1, size=4)
    assert pipelines.traces(pipe.transformer) == [] and torch.equal(pipelines.run(pipe), before)


def test_equal_behaviour_has_one_digest():
    pipe = pipelines.pixart()
    a = planned(pipe, "CCCCOO", [3.0, 3.0, 3.0, 3.0, 1.0, 2.0])  # scales below O are dead
    assert a == planned(pipe, "CCCCOO") != planned(pipe, "CCCOOO")
    assert Schedule.from_dict(a.to_dict()) == a and a.to_dict()["guidance"] == {"call": 3.0, "branch": "CCCCOO"}


def test_weights_that_nothing_uses_leave_no_trace():
    pipe = pipelines.pixart()
    assert planned(pipe, "CCCCOO", approximate=WEIGHTS) == planned(pipe, "CCCCOO")
    assert planned(pipe, "CCCCCC", approximate=WEIGHTS) == pipelines.schedule(pipe)
    a = planned(pipe, "CCCACA", approximate={"low": [0.0, 1.0, 2.0, 1.5, 3.0, 1.5], "high": 1.5, "radius": 0.3})
    assert a == planned(pipe, "CCCACA", approximate={"low": 1.5, "high": 1.5}) != planned(pipe, "CCCACA")
    assert a.to_dict()["guidance"] == {
        "call": 3.0,
        "branch": "CCCACA",
        "approximate": {"low": 1.5, "high": 1.5},
    }
    default = planned(pipe, "CCCACA", approximate={"low": 1.1, "high": 1.1, "radius": 0.2})
    assert planned(pipe, "CCCACA") == default == Schedule.from_dict(default.to_dict())
    b = planned(pipe, "CACACA", approximate=WEIGHTS).to_dict()["guidance"]["approximate"]
    assert b == {"low": [1.0, 1.1, 1.0, 1.3, 1.0, 1.2], "high": [1.0, 0.8, 1.0, 1.3, 1.0, 0.5], "radius": 0.3}
