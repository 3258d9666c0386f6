"""Static ranges for each timestep: EfficientDM's activation scales (arXiv:2310.03270), measured instead of learned."""

from dataclasses import replace
from itertools import chain, pairwise

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline

import search
from search import Schedule, ScheduleError
from search.calibrate.ranges import observe_inputs, target_with_ranges, with_measured_ranges
from search.profile.bundled import bundled_model
from search.profile.input_ranges import InputRanges
from search.schedule.apply.rounding import round_static, round_weight
from search.schedule.apply.step_ranges import step_rows
from search.schedule.model.layers import layers_of
from search.schedule.noise import Noise
from search.schedule.parts.bits import FormatPart
from search.schedule.parts.formats import FORMATS, format_id, formats_that_fit
from search.spaces.bits import BitsSpace
from search.spaces.joint import JointSpace
from search.spaces.timesteps import TimestepsSpace
from search.validate.reindex import reindex
from tests.helpers import pipelines
from tests.schedule.test_bits_qdiffusion import CONV, SHORT, STEPS, Toy, inputs, schedule

QUERY = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
FORMS = {
    CONV: FormatPart(weight=8, activation=4, static=True, per_step=True),
    SHORT: FormatPart(weight=4, activation=8, static=True, per_step=True, split=16),
    QUERY: FORMATS["w8a8s"],
}


@pytest.fixture(scope="module")
def toy() -> Toy:
    return Toy()


def measured(toy: Toy, forms=None) -> Schedule:
    return with_measured_ranges(toy, schedule(toy, forms or FORMS), *inputs(1))


def on_grid(toy: Toy, wanted: Schedule, timesteps: list[float]) -> Schedule:
    return wanted.with_sampler({**toy.target.sampler, "timesteps": timesteps})


def test_a_run_is_that_of_layers_rounded_by_hand_at_every_step(toy):
    """Guidance calls the denoiser once a step here; each step has the range that its calibration input had."""
    off, other, given = schedule(toy, {}), Toy(), inputs(0)
    seen = observe_inputs(toy, off, {name: form.split for name, form in FORMS.items()}, *inputs(1))
    calls = dict.fromkeys(FORMS, 0)

    def rounded(name):
        form = FORMS[name]

        def before(_, args):
            step, calls[name] = calls[name], calls[name] + 1
            spans = seen.over(name, [step] if form.per_step else None)
            sides = args[0].split([form.split, args[0].shape[1] - form.split], 1) if form.split else [args[0]]
            return (torch.cat([round_static(s, form.activation, r) for s, r in zip(sides, spans, strict=True)], 1),)

        return before

    for name, form in FORMS.items():
        module = other.denoiser.get_submodule(name)
        module.weight.data = round_weight(module.weight, form)
        module.register_forward_pre_hook(rounded(name))
    found = measured(toy)
    assert Schedule.from_dict(found.to_dict()) == found
    assert found.to_dict()["bits"]["at"] == toy.target.sampler["timesteps"]
    bare = toy.sample(*given)
    with found.apply(toy.pipe):
        first = toy.sample(*given)
        assert torch.equal(toy.sample(*given), first)
    assert torch.equal(first, other.sample(*given)) and not torch.equal(first, bare)
    assert torch.equal(toy.sample(*given), bare)


def test_equal_ranges_at_all_steps_are_the_static_format(toy):
    once = {CONV: [(-1.0, 2.0)], SHORT: [(-1.0, 1.0), (-2.0, 0.5)]}
    static = {name: FORMS[name].model_copy(update={"per_step": False}) for name in once}
    steps = schedule(toy, {name: FORMS[name] for name in once}).with_ranges(
        {name: spans * 2 for name, spans in once.items()}, at=[1000.0, 0.0]
    )
    latents = []
    for each in (schedule(toy, static, once), steps):
        with each.apply(toy.pipe):
            latents.append(toy.sample(*inputs(2)))
    assert torch.equal(*latents)


def test_between_timesteps_ranges_are_interpolated_in_log_snr(toy):
    at, table = [900.0, 500.0, 100.0], torch.tensor([[-4.0, 8.0], [-2.0, 2.0], [-1.0, 1.0]])
    noise = Noise.of_scheduler(toy.pipe.scheduler)

    def place(timestep):
        return float(noise.logsnr(noise.sigma(timestep)))

    found = step_rows(table, at, [900.0, 700.0, 500.0, 300.0, 100.0], lambda: toy.pipe.scheduler)
    assert torch.equal(found[::2], table)
    for row, t, (a, b), ends in ((1, 700.0, (900.0, 500.0), table[:2]), (3, 300.0, (500.0, 100.0), table[1:])):
        share = (place(t) - place(a)) / (place(b) - place(a))
        assert torch.allclose(found[row], ends[0] + share * (ends[1] - ends[0]), rtol=1e-5)


def test_ranges_of_every_step_beat_one_range(toy):
    """At 6 bits, on other pictures than those that were calibrated on; the latents grow threefold over the run."""
    names = [n for n in layers_of(toy.denoiser) if n.endswith(("conv1", "conv2", "proj_in", "to_q"))]
    bare, drift = toy.sample(*inputs(9, 4)), {}
    for name in ("w8a8t", "w8a8s"):
        form = FORMATS[name].model_copy(update={"activation": 6})
        with measured(toy, dict.fromkeys(names, form)).apply(toy.pipe):
            drift[name] = float((toy.sample(*inputs(9, 4)) - bare).norm() / bare.norm())
    assert drift["w8a8t"] < 0.9 * drift["w8a8s"]


@pytest.mark.slow
@pytest.mark.skipif(not (bundled_model("pixart") / "model_index.json").exists(), reason="pixart is not bundled")
def test_on_the_trained_model_ranges_hold_on_a_moved_grid():
    """The drift with ranges of another grid is at most 5 % above that with ranges of the grid itself."""
    model = search.load_model("pixart", "model.steps=20")
    given, new = (
        (["red apple", "blue car", "cat", "pizza"], range(4)),
        (["green tree", "yellow star", "owl"], [50, 51, 52]),
    )
    target = target_with_ranges(model, *given)
    space, grid = BitsSpace(("w8a8t",)), target.sampler["timesteps"]
    here = Schedule.from_dict(target.schedule(space.decode(space.presets(target)["W8A8, ranges per step"], target)))
    moved = [grid[0], *[round(0.5 * (a + b)) for a, b in pairwise(grid[1:])], grid[-1]]
    sampler = {**target.sampler, "timesteps": moved}
    sampler["sigmas"] = [*map(float, target.noise.sigma(moved)), target.sampler["sigmas"][-1]]
    plain = Schedule.from_dict(target.schedule({})).with_sampler(sampler)
    rounded = {"moved": here.with_sampler(sampler)}
    rounded["own"] = with_measured_ranges(model, rounded["moved"], *given)
    drift = {}
    with model.apply(plain):
        exact = model.sample(*new)
    for name, each in rounded.items():
        with model.apply(each):
            drift[name] = float((model.sample(*new) - exact).norm() / exact.norm())
    assert 0 < drift["moved"] < 1.05 * drift["own"]


def test_where_nothing_was_measured_a_run_is_refused(toy):
    found, sampler = measured(toy), toy.target.sampler
    beyond = [990.0, *sampler["timesteps"][1:]]
    first = sampler["timesteps"][0]
    match = f"bits.at has ranges for timesteps {first:g} to 1, and this run has the timestep 990; measure them on this"
    with on_grid(toy, found, beyond).apply(toy.pipe), pytest.raises(ScheduleError, match=match):
        toy.sample(*inputs(2))
    with pytest.raises(ScheduleError, match=match):
        reindex(found, sampler, {**sampler, "timesteps": beyond})
    kept = reindex(found, sampler, {**sampler, "timesteps": [first, 300.0, 1.0]}).schedule
    assert kept.to_dict()["bits"] == found.to_dict()["bits"]
    assert torch.isfinite(toy.sample(*inputs(2))).all() and pipelines.traces(toy.denoiser) == []


def test_a_run_from_a_picture_takes_the_ranges_of_its_own_steps(toy):
    """Those of the three steps that it leaves out have no effect, on the pipeline's grid and on one of the schedule."""
    parts = (None, None, None, toy.denoiser, toy.pipe.scheduler, None, None)
    pipe = StableDiffusionImg2ImgPipeline(*parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    pipe.vae_scale_factor, (conditions, picture) = 8, inputs(2)
    content = measured(toy, {CONV: FORMS[CONV]}).to_dict() | {"steps": 3}
    content.pop("digest")
    bits = content["bits"]
    other = bits | {"ranges": {CONV: [[-0.1, 0.1]] * 3 + bits["ranges"][CONV][3:]}}
    for sampler in ({}, {"sampler": {**toy.target.sampler, "timesteps": bits["at"][3:]}}):
        latents = []
        for each in (bits, other):
            with Schedule.from_dict(content | {"bits": each} | sampler).apply(pipe):
                latents.append(
                    pipe(
                        prompt_embeds=conditions,
                        negative_prompt_embeds=torch.zeros_like(conditions),
                        image=picture,
                        num_inference_steps=STEPS,
                        strength=0.5,
                        output_type="latent",
                        generator=torch.Generator().manual_seed(0),
                    ).images
                )
        assert torch.equal(*latents)


def test_where_the_plan_reuses_a_layer_its_range_is_between_those_around():
    ranges = InputRanges((900.0, 600.0, 600.0, 300.0), {"a": np.array([[[-4, 8]], [[np.nan] * 2]] * 2, dtype=float)})
    ranges.layers["a"][2] = [[-2, 2]]
    assert ranges.at == [900.0, 600.0, 300.0]
    assert ranges.per_step("a") == [[(-4.0, 8.0)], [(-3.0, 5.0)], [(-2.0, 2.0)]]
    wide = ranges.reaching([990.0, 400.0])
    assert wide.at == [990.0, 900.0, 600.0, 300.0] and wide.per_step("a")[0] == [(-4.0, 8.0)]


def test_names_say_per_step():
    assert formats_that_fit("w4a8t", 360, 24)[0] == "w4a8t/24"
    assert format_id(FORMATS["w8a8t"].model_copy(update={"activation": 6})) == "w8a6t"
    assert BitsSpace(("w8a8t",)).needs_input_ranges


def test_the_space_takes_the_ranges_of_every_step(toy):
    target = target_with_ranges(toy, *inputs(1))
    space = BitsSpace(("w8a8t",))
    row = space.presets(target)["Q-Diffusion W8A8, ranges per step"]
    bits = space.decode(row, target)["bits"]
    assert bits["at"] == target.sampler["timesteps"]
    assert bits["ranges"][SHORT] == [list(pair) for pair in chain(*target.ranges.per_step(SHORT))]
    assert len(bits["ranges"][CONV]) * 2 == len(bits["ranges"][SHORT]) == 2 * STEPS
    assert np.ptp(np.array(bits["ranges"][CONV]), 0).max() > 0
    joint = JointSpace([TimestepsSpace(), space])
    moved = TimestepsSpace().encode_timesteps([990.0, *target.sampler["timesteps"][1:]], target)
    parts = joint.decode(joint.join({"timesteps": moved, "bits": row}, target), target)
    wide = parts["sampler"]["timesteps"][0]
    assert wide > bits["at"][0] and parts["bits"]["at"] == [wide, *bits["at"]]
    assert parts["bits"]["ranges"][CONV] == [bits["ranges"][CONV][0], *bits["ranges"][CONV]]
    with Schedule.from_dict(target.schedule(parts)).apply(toy.pipe):
        assert torch.isfinite(toy.sample(*inputs(2))).all()


def test_one_step_has_no_ranges_per_step(toy):
    with pytest.raises(ValueError, match=r"a range for each timestep needs at least 2 steps, .*=\[w8a8s\]"):
        BitsSpace(("w8a8t",)).genes(replace(toy.target, steps=1))


@pytest.mark.parametrize(
    ("part", "match"),
    [
        ({"formats": {"f": {"weight": 8, "activation": 8, "per_step": True}}, "layers": {}}, "f is per_step, but only"),
        (
            {
                "formats": {"f": {"weight": 8, "activation": 8, "static": True, "per_step": True}},
                "layers": {CONV: "f"},
                "ranges": {CONV: 3 * [[-1, 1]]},
                "at": [900, 100],
            },
            r"has 3 ranges; its format needs 2: 1 at each of 2 timesteps in bits.at",
        ),
        ({"formats": {}, "layers": {}, "at": [100, 900]}, "bits.at must fall strictly, but 100.0 is followed by 900.0"),
    ],
)
def test_wrong_parts_are_refused_by_name(toy, part, match):
    with pytest.raises(ScheduleError, match=match):
        Schedule.from_dict(pipelines.content(toy.pipe, steps=STEPS, bits=part))


def test_steps_with_ranges_of_their_own_are_not_batched(toy):
    plan = {"rules": [["denoiser", "CRRCRR"]], "ahead": 3}
    parts = measured(toy).to_dict() | {"plan": plan}
    assert Schedule.from_dict({k: v for k, v in parts.items() if k != "digest"}).batched_steps == []
