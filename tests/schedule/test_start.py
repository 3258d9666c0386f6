"""The start part: prior noise injection against a loop written by hand, on every scheduler that may run it."""

import copy

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from search import Schedule, ScheduleError
from search.evaluate.execute.partial import PartialRun
from search.evaluate.fit.solver import Fitter
from search.profile.count import count_costs
from search.schedule.model.identity import model_part
from search.schedule.schedulers import public_config, scheduler_grid
from search.testing.models import tiny_model
from tests.helpers.denoiser_loops import BATCH, TINY, Pipeline, pipeline, run

STEPS = 6
UNET = "UNet2DConditionModel"
SCHEDULERS = {
    "dpm": DPMSolverMultistepScheduler(),
    "ddim": DDIMScheduler(),
    "euler": EulerDiscreteScheduler(),
    "unipc": UniPCMultistepScheduler(),
    "pndm": PNDMScheduler(skip_prk_steps=True),
    "flow": FlowMatchEulerDiscreteScheduler(shift=2.0),
    "dpm of 500": DPMSolverMultistepScheduler(num_train_timesteps=500),
}


def inject(strength: float = 0.003, below: float = 500) -> dict:
    return {"kind": "noise", "inject": {"strength": strength, "below": below}}


def schedule(pipe, start, **parts) -> Schedule:
    model = {"format": "schedule/1", "model": model_part(pipe.denoiser)}
    return Schedule.from_dict(model | {"start": start} | parts)


@torch.no_grad()
def by_hand(pipe, strength: float, below: float) -> torch.Tensor:
    """As Faster Diffusion's loop does it: before the denoiser sees them, latents of late steps get initial noise."""
    scheduler, given = copy.deepcopy(pipe.scheduler), TINY[UNET].given()
    latents = torch.randn(TINY[UNET].sample, generator=torch.Generator().manual_seed(1))
    noise = latents.clone()
    scheduler.set_timesteps(STEPS)
    for t in scheduler.timesteps:
        if t / scheduler.config.num_train_timesteps < below / 1000:
            latents = latents + strength * noise
        output = pipe.denoiser(latents, timestep=t.expand(BATCH), return_dict=False, **given)[0]
        latents = scheduler.step(output, t, latents, return_dict=False)[0]
    return latents


@pytest.mark.parametrize(
    ("name", "strength", "below"), [("dpm", 0.003, 500), ("dpm", 0.1, 200), *((name, 0.5, 700) for name in SCHEDULERS)]
)
def test_noise_comes_back_as_in_a_loop_by_hand(name, strength, below):
    pipe = Pipeline(pipeline(UNET).denoiser, copy.deepcopy(SCHEDULERS[name]))
    bare = run(pipe, STEPS)
    expected = by_hand(pipe, strength, below)
    with schedule(pipe, inject(strength, below)).apply(pipe):
        first, second = run(pipe, STEPS), run(pipe, STEPS)
    assert torch.equal(first, expected) and torch.equal(second, expected)
    assert not torch.equal(expected, bare)
    assert torch.equal(run(pipe, STEPS), bare)


@pytest.mark.parametrize("start", [{"kind": "noise"}, inject(0.0), inject(0.5, 0.5)])
def test_nothing_to_inject_is_off(start):
    """No strength, no part, or no step so late: on the schedule's own grid the digest is that of the bare run."""
    pipe = pipeline(UNET)
    timesteps, sigmas = scheduler_grid(pipe.scheduler, STEPS)
    sampler = {"class": type(pipe.scheduler).__name__, "config": public_config(pipe.scheduler)}
    parts = {"steps": STEPS, "sampler": sampler | {"timesteps": timesteps, "sigmas": sigmas}}
    with_start = schedule(pipe, start, **parts)
    without = {k: v for k, v in with_start.to_dict().items() if k not in ("digest", "start")}
    assert with_start == Schedule.from_dict(without)
    assert "start" not in with_start.to_dict()
    bare = run(pipe, STEPS)
    with with_start.apply(pipe):
        assert torch.equal(run(pipe, STEPS), bare)


def test_step_outputs_keep_their_form():
    pipe = Pipeline(pipeline(UNET).denoiser, DDIMScheduler())
    latents = torch.ones(TINY[UNET].sample)
    with schedule(pipe, inject(0.5, 1000)).apply(pipe):
        pipe.scheduler.set_timesteps(STEPS)
        output = pipe.scheduler.step(latents, pipe.scheduler.timesteps[0], latents)
        plain = DDIMScheduler()
        plain.set_timesteps(STEPS)
        expected = plain.step(latents, plain.timesteps[0], latents)
        assert torch.equal(output.prev_sample, expected.prev_sample + 0.5 * latents)
        assert torch.equal(output.pred_original_sample, expected.pred_original_sample)


def test_no_noise_is_held_between_runs():
    pipe = pipeline(UNET)
    with schedule(pipe, inject(), steps=STEPS).apply(pipe) as handle:
        run(pipe, STEPS)
        pipe.scheduler.set_timesteps(STEPS)
        assert handle.run.injection.noise is None


@pytest.mark.parametrize(
    ("start", "told"),
    [
        ({"kind": "teleport"}, r"start\.kind is 'teleport'; this version has noise"),
        ({"inject": {"strength": 0.1, "below": 500}}, r"start\.kind is 'None'; this version has noise"),
        (inject(-0.1), r"start\.inject\.strength is '-0.1': Input should be greater than or equal to 0"),
        (inject(2), r"start\.inject\.strength is '2': Input should be less than or equal to 1"),
        (inject(0.1, 0), r"start\.inject\.below is '0'"),
        (inject(0.1, 1001), r"start\.inject\.below is '1001'"),
        ({"kind": "noise", "chain": 3}, r"start\.chain is not a field"),
        ("noise", r"start is 'noise'"),
    ],
)
def test_a_wrong_start_is_named(start, told):
    with pytest.raises(ScheduleError, match=told):
        schedule(pipeline(UNET), start)


def test_a_solver_table_says_itself_what_it_takes_of_the_noise():
    pipe = pipeline(UNET)
    timesteps, sigmas = scheduler_grid(pipe.scheduler, 2)
    table = {"state": [1.0, 1.0], "outputs": [[0.1], [0.1, 0.1]]}
    sampler = {"class": type(pipe.scheduler).__name__, "timesteps": timesteps, "sigmas": sigmas, "coefficients": table}
    with pytest.raises(ScheduleError, match=r"start\.inject and sampler\.coefficients are both given; .* leave one"):
        schedule(pipe, inject(0.1, 700), steps=2, sampler=sampler)
    schedule(pipe, {"kind": "noise"}, steps=2, sampler=sampler)  # noise alone is what every run begins with


def test_steps_taken_one_by_one_inject_the_same_and_fits_leave_such_schedules_alone():
    model = tiny_model()
    parts = model.target.schedule({"start": inject(0.2, 700)})
    injected = Schedule.from_dict(parts)
    prompts, seeds = ["red apple", "blue boat"], [0, 1]
    with injected.apply(model.pipe):
        expected = model.sample(prompts, seeds)
    partial = PartialRun(model, prompts, seeds, count_costs(model.denoiser, model.target.tree, 6, model.once))
    state = partial.begin()
    for _ in range(6):  # a new handle at every step
        state = partial.extend(state, injected)
    assert torch.equal(state.latents, expected)
    assert Fitter(model, prompts, seeds).fit(injected) is injected
