"""`apply(guard=True)`: a run whose outputs change unlike those of certified runs is computed in full from there on."""

import copy
import math
from typing import Any

import pytest
import torch

from search import Schedule, ScheduleError
from search.schedule.apply.monitor import ChangeRecorder, RunGuard
from search.schedule.model.identity import model_part
from search.schedule.parts.certificate import MonitorPart
from search.schedule.schedulers import grid_of_scheduler, public_config
from tests.helpers import pipelines

STEPS, UNUSUAL = 6, 2  # the step at which a run is found unusual
CERTIFICATE = {
    "criterion": "psnr>=30", "share": 0.9, "confidence": 0.95, "runs": 32, "misses": 0, "prompts": 32, "noises": 1,
    "population": "a new prompt of this kind with new noise",
}  # fmt: skip
NEVER = 1e9  # a change that no run has
REUSE = {"plan": {"rules": [["transformer_blocks.*:ff", "CRCRCR"], ["transformer_blocks.1", "CCRCSR"]]}}
GATE = {"group": "transformer_blocks.[1-2]", "actions": "CGGGGG", "signal": "model_input", "threshold": 1e9}
PARTS: dict[str, dict[str, Any]] = {
    "reuse": REUSE,
    "whole steps": {"plan": {"rules": [["denoiser", "CCCRRR"]]}},
    "bits": {"bits": {"formats": {"a": {"weight": 4}}, "layers": {"transformer_blocks.0.ff.net.2": "a"}}},
    "narrow guidance": {
        **REUSE,
        "guidance": {"call": 3.0, "scale": [3.0, 3.0, 2.0, 5.0, 1.0, 3.0], "branch": "CCCROO"},
    },
    "another denoiser": {"models": {"at": "LLLSSS"}},
    "ahead": {"plan": {"rules": [["transformer_blocks.*", "CCRRRR"]], "ahead": 4}},
}


def guarded(schedule: Schedule, expected: float, step: int = UNUSUAL) -> Schedule:
    monitor = {"runs": 32, "steps": [step], "mean": [expected], "spread": [1.0], "limit": [30.0]}
    return schedule.with_certificate(CERTIFICATE | {"monitor": monitor})


@pytest.mark.parametrize("name", PARTS)
def test_from_the_next_step_on_the_pipelines_own_denoiser_runs(name: str) -> None:
    pipe, small, parts = pipelines.pixart(), pipelines.pixart(1), dict(PARTS[name])
    models = {"S": small} if "models" in parts else None
    if models:
        parts["models"] = parts["models"] | {"names": {"S": model_part(small.transformer) | {"name": "tiny"}}}
    schedule, bare = pipelines.schedule(pipe, **parts), pipelines.run(pipe)
    with schedule.apply(pipe, models=models):
        expected = pipelines.run(pipe)
    with guarded(schedule, NEVER).apply(pipe, models=models, guard=True) as handle:
        made: list[Any] = []
        hook = pipe.transformer.register_forward_hook(
            lambda _, args, kwargs, output: made.append((args, kwargs, output[0].clone())), with_kwargs=True
        )
        found, stats = pipelines.run(pipe), handle.stats()
        hook.remove()
    assert not torch.equal(found, expected) and torch.equal(pipelines.run(pipe), bare)
    assert stats["unusual_runs"] == 1 and stats["full_calls"] == STEPS - UNUSUAL - 1 and len(made) == STEPS
    with torch.no_grad():
        for args, kwargs, output in made[UNUSUAL + 1 :]:
            assert torch.equal(pipe.transformer(*args, **kwargs)[0], output)
    assert stats["denoiser_calls"] == STEPS


def test_a_plan_that_computes_everything_from_there_on_is_the_same_run() -> None:
    pipe = pipelines.pixart()
    schedule = pipelines.schedule(pipe, **REUSE)
    tokens = {"transformer_blocks.*:ff": "CRCCCC", "transformer_blocks.1": "CCRCCC"}
    with pipelines.schedule(pipe, [*tokens.items()]).apply(pipe) as handle:
        expected, executions = pipelines.run(pipe), handle.stats()["block_executions"]
    with guarded(schedule, NEVER).apply(pipe, guard=True) as handle:
        assert torch.equal(pipelines.run(pipe), expected)
        assert handle.stats()["block_executions"] == executions


def test_usual_runs_follow_the_schedule_also_after_an_unusual_one() -> None:
    pipe = pipelines.pixart()
    schedule = pipelines.schedule(pipe, **REUSE)
    recorder = ChangeRecorder()
    with schedule.apply(pipe, guard=recorder):
        expected = pipelines.run(pipe)
    (change,) = recorder.changes[UNUSUAL]
    with guarded(schedule, float(change.mean())).apply(pipe, guard=True) as handle:
        assert torch.equal(pipelines.run(pipe), expected) and handle.stats()["unusual_runs"] == 0
        handle.clock.monitor.usual[UNUSUAL] = (NEVER, 1.0, 30.0)
        assert not torch.equal(pipelines.run(pipe), expected) and handle.stats()["unusual_runs"] == 1
        handle.clock.monitor.usual[UNUSUAL] = (float(change.mean()), 1.0, 30.0)
        assert torch.equal(pipelines.run(pipe), expected) and handle.stats()["unusual_runs"] == 1
        assert not handle.clock.full


def test_the_change_is_that_of_what_the_scheduler_is_given() -> None:
    pipe, given = pipelines.pixart(), []
    step = pipe.scheduler.step
    pipe.scheduler.step = lambda output, *args, **kwargs: (given.append(output), step(output, *args, **kwargs))[1]
    bare = pipelines.run(pipe)
    del pipe.scheduler.step
    recorder = ChangeRecorder()
    with pipelines.schedule(pipe).apply(pipe, guard=recorder):
        assert torch.equal(pipelines.run(pipe), bare)
    assert sorted(recorder.changes) == [1, 2, 3, 4, 5]
    for at, (changes,) in recorder.changes.items():
        for picture in (0, 1):
            before, now = given[at - 1][picture].flatten(), given[at][picture].flatten()
            assert float(changes[picture]) == pytest.approx(
                float(((now - before).norm() / before.norm()).log()), abs=1e-4
            )


def test_what_is_judged_is_the_mean_of_the_changes_up_to_a_step() -> None:
    part = {"runs": 9, "steps": [1, 2, 3], "mean": [0.0, 1.0, 0.0], "spread": [1.0, 2.0, 1.0], "limit": [4.0, 2.0, 1.0]}
    guard = RunGuard(MonitorPart(**part))
    for changes, found in (((3.9, 1.2, -1.0), None), ((4.1, 1.0, 0.0), 1), ((3.9, 1.3, 0.0), 2), ((0.0, 1.0, -3.1), 3)):
        norms, at = torch.tensor(changes).exp().tolist(), None
        output = torch.tensor([[1.0], [1.0]])
        assert not guard.record(0, output)
        for step, norm in enumerate(norms, 1):  # the second picture changes as usual
            output = output * torch.tensor([[1 + norm], [1 + math.exp([0.0, 1.0, 0.0][step - 1])]])
            at = step if guard.record(step, output) else at
        assert at == found
    assert guard.unusual_runs == 3


def test_what_is_no_number_is_unusual() -> None:
    pipe = pipelines.pixart()

    def spoil(at: int, timestep: Any, latents: torch.Tensor) -> None:
        if at == 0:
            latents.fill_(torch.nan)

    with guarded(pipelines.schedule(pipe, **REUSE), 0.0, step=1).apply(pipe, guard=True) as handle:
        pipelines.run(pipe, callback=spoil)
        assert handle.stats()["unusual_runs"] == 1


def test_a_gate_is_not_asked_in_the_rest_of_an_unusual_run() -> None:
    pipe = pipelines.pixart()
    with guarded(pipelines.schedule(pipe, gates=[GATE]), NEVER).apply(pipe, guard=True) as handle:
        pipelines.run(pipe)
        (gate,) = handle.stats()["gates"]
        assert gate["passed"] + gate["refused"] == UNUSUAL  # of the five steps that ask it
        computed_in_group = 1 + STEPS - UNUSUAL - 1  # the first step, and those in full
        assert handle.stats()["block_executions"] == STEPS + 2 * computed_in_group


def test_what_cannot_be_guarded_is_refused() -> None:
    pipe = pipelines.pixart()
    schedule = pipelines.schedule(pipe, **REUSE)
    with pytest.raises(ScheduleError, match=r"this schedule has no certificate; type python -m search.verify"):
        schedule.apply(pipe, guard=True)
    with pytest.raises(ScheduleError, match=r"this certificate has no monitor; type python -m search.verify"):
        schedule.with_certificate(CERTIFICATE).apply(pipe, guard=True)
    with pytest.raises(ScheduleError, match=r"guard='yes' is not valid; give True or False"):
        schedule.apply(pipe, guard="yes")  # type: ignore[arg-type]
    good = {"runs": 2, "steps": [1, 2], "mean": [0.0, 0.0], "spread": [1.0, 1.0], "limit": [1.0, 1.0]}
    for bad, text in (
        (
            {"mean": [0.0]},
            "certificate.monitor has 2 steps, 1 means, 2 spreads and 2 limits; give one of each for every step",
        ),
        ({"steps": [2, 2]}, r"certificate.monitor.steps is \[2, 2\]; list each step once, rising"),
        ({"spread": [0.0, 1.0]}, r"certificate.monitor.spread.0 is '0.0': Input should be greater than 0"),
    ):
        with pytest.raises(ScheduleError, match=text):
            schedule.with_certificate(CERTIFICATE | {"monitor": good | bad})


def test_the_schedulers_own_solver_goes_on_where_a_table_was_fitted() -> None:
    """Against the stock scheduler, which is given the same outputs and samples."""
    pipe = pipelines.pixart()
    pipe.scheduler.set_timesteps(STEPS)
    timesteps, sigmas = grid_of_scheduler(pipe.scheduler)
    stock, taken = copy.deepcopy(pipe.scheduler), []
    table = {"state": [0.9] * STEPS, "outputs": [[0.02 * (j - 1) for j in range(i + 1)] for i in range(STEPS)]}
    sampler = {"class": type(stock).__name__, "config": public_config(stock), "timesteps": timesteps, "sigmas": sigmas}
    schedule = pipelines.schedule(pipe, **REUSE, sampler=sampler | {"coefficients": table})
    with schedule.apply(pipe):
        expected = pipelines.run(pipe)
    with guarded(schedule, 0.0).apply(pipe, guard=True):
        assert torch.equal(pipelines.run(pipe), expected)
    with guarded(schedule, NEVER).apply(pipe, guard=True):
        planned = pipe.scheduler.step

        def step(output: torch.Tensor, timestep: Any, sample: torch.Tensor, **kwargs: Any) -> Any:
            given = output.clone(), sample.clone()
            result = planned(output, timestep, sample, **kwargs)
            taken.append((*given, result[0].clone()))
            return result

        pipe.scheduler.step = step
        pipelines.run(pipe)
    assert len(taken) == STEPS
    for at, (output, sample, found) in enumerate(taken):
        own = stock.step(output, stock.timesteps[at], sample, return_dict=False)[0]
        assert torch.equal(found, own) == (at > UNUSUAL)
