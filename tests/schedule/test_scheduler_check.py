"""Values of a scheduler's configuration that diffusers refuses only when it runs are refused when applied."""

import copy

import diffusers
import pytest
import torch

from search import Schedule, ScheduleError
from search.schedule.apply.scheduler_check import check_runs
from search.schedule.schedulers import public_config
from tests.helpers import pipelines

BAD = {
    "DPMSolverMultistepScheduler": {
        "timestep_spacing": ("linear", 7),
        "final_sigmas_type": ("none", 3),
        "prediction_type": ("x", None, 4),
        "solver_type": ("y", 1.5),
        "algorithm_type": ("z",),
        "trained_betas": ([0.1], [[0.1, 0.2]], "abc"),
        "beta_schedule": ("q",),
        "beta_start": (1e308, "a"),
        "solver_order": ("2",),
        "lambda_min_clipped": ("low",),
    },
    "FlowMatchEulerDiscreteScheduler": {
        "shift": ("large", [1]),
        "shift_terminal": ("x", [0.1]),
        "base_shift": (),
        "time_shift_type": ("square",),
        "num_train_timesteps": ("many",),
    },
    "DDIMScheduler": {
        "timestep_spacing": ("even",),
        "prediction_type": ("noise",),
        "clip_sample_range": ("wide",),
        "steps_offset": ("a", 1e308, [1]),
        "trained_betas": ([[1.0]],),
    },
    "EulerDiscreteScheduler": {
        "interpolation_type": ("cubic",),
        "timestep_type": (5,),
        "final_sigmas_type": ("last",),
        "sigma_min": ("low",),
    },
    "UniPCMultistepScheduler": {
        "solver_type": (3,),
        "disable_corrector": (7,),
        "flow_shift": ("a",),
        "solver_order": (1.5,),
    },
}
CASES = [(name, key, value) for name, keys in BAD.items() for key, values in keys.items() for value in values]
NEEDS = {
    "clip_sample_range": {"clip_sample": True},
    "flow_shift": {"use_flow_sigmas": True},
    "sigma_min": {"use_karras_sigmas": True},
}


@pytest.mark.parametrize(("name", "key", "value"), CASES)
def test_a_value_that_does_not_run_is_refused_with_its_key(name, key, value):
    config = NEEDS.get(key, {}) | {key: value}
    try:
        check_runs(name, config)
    except ScheduleError as error:
        assert (
            "sampler.config" in str(error) and name in str(error) and (key in str(error) or repr(value) in str(error))
        )
        return
    scheduler = getattr(diffusers, name).from_config(config)  # what passes runs
    scheduler.set_timesteps(5)
    sample = torch.ones(1, 2, 3, 3)
    for t in scheduler.timesteps:
        sample = scheduler.step(sample / 2, t, sample, return_dict=False)[0]
    assert sample.isfinite().all()


def test_most_of_these_values_are_refused():
    refused = 0
    for name, key, value in CASES:
        try:
            check_runs(name, NEEDS.get(key, {}) | {key: value})
        except ScheduleError:
            refused += 1
    assert refused >= len(CASES) - 6


def test_the_message():
    with pytest.raises(
        ScheduleError,
        match=r"sampler.config.prediction_type is 'x', with which DPMSolverMultistepScheduler fails: ValueError: ",
    ):
        check_runs("DPMSolverMultistepScheduler", {"prediction_type": "x", "solver_order": 2})
    with pytest.raises(ScheduleError, match=r"sampler.config.beta_end is 500.0, .* values that are not finite"):
        check_runs("DDIMScheduler", {"beta_end": 500.0})


@pytest.mark.parametrize(
    "scheduler",
    [
        diffusers.DDIMScheduler(),
        diffusers.DDPMScheduler(variance_type="learned_range"),
        diffusers.LCMScheduler(),
        diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        diffusers.DPMSolverMultistepScheduler(use_karras_sigmas=True),
        diffusers.HeunDiscreteScheduler(),
        diffusers.PNDMScheduler(skip_prk_steps=True),
        diffusers.UniPCMultistepScheduler(),
        diffusers.EulerAncestralDiscreteScheduler(),
    ],
    ids=lambda scheduler: type(scheduler).__name__,
)
def test_what_people_use_passes(scheduler):
    check_runs(type(scheduler).__name__, public_config(scheduler))


def test_nothing_on_the_pipeline_is_changed_before():
    pipe = pipelines.pixart()
    before, scheduler = pipelines.run(pipe), pipe.scheduler
    content = pipelines.content(pipe, [])
    content["sampler"] = {"class": "DPMSolverMultistepScheduler", "config": {"timestep_spacing": "linear"}}
    with pytest.raises(ScheduleError, match="sampler.config.timestep_spacing is 'linear'"):
        Schedule.from_dict(content).apply(pipe)
    assert pipe.scheduler is scheduler and torch.equal(pipelines.run(pipe), before)


# Numbers that would give pictures of NaN


def test_coefficients_and_ranges_are_bounded():
    pipe = pipelines.pixart()
    content = pipelines.content(pipe, []) | {"steps": 2}
    content.pop("plan", None)
    sampler = {"class": "DPMSolverMultistepScheduler", "timesteps": [900.0, 500.0], "sigmas": [4.0, 1.0, 0.0]}
    table = {"state": [1.0, 1.0], "outputs": [[0.5], [0.1, 0.2]]}
    Schedule.from_dict(content | {"sampler": sampler | {"coefficients": table}})
    for path in ("state", "outputs"):
        wrong = copy.deepcopy(table)
        if path == "state":
            wrong["state"][1] = 1e308
        else:
            wrong["outputs"][1][0] = -1e308
        with pytest.raises(
            ScheduleError, match=rf"sampler.coefficients.{path}\[1\] has .*e\+308; admissible is -1e\+06"
        ):
            Schedule.from_dict(content | {"sampler": sampler | {"coefficients": wrong}})
    bits = {"formats": {"s": {"weight": 8, "activation": 8, "static": True}}, "layers": {"a": "s"}}
    with pytest.raises(ScheduleError, match=r"bits.ranges.a is -1.0 to 1e\+308; admissible is -1e\+09 to 1e\+09"):
        Schedule.from_dict(content | {"bits": bits | {"ranges": {"a": [[-1.0, 1e308]]}}})
    with pytest.raises(ScheduleError, match=r"sampler.sigmas must fall strictly, but 0.0 is followed by 0.0 at 1"):
        Schedule.from_dict(content | {"sampler": sampler | {"sigmas": [4.0, 0.0, 0.0]}})
