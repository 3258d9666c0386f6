"""Solver tables fitted to the teacher: closer than before, the ridge solution, kept in the memo, no trace."""

import json

import numpy as np
import pytest
import torch

from search import Schedule
from search.evaluate.evaluator import Evaluator
from search.evaluate.fit.solver import FittedSolver, Fitter, record_trajectory
from search.evaluate.memo import Memo
from search.objectives.drift import Drift
from search.spaces.timesteps import TimestepsSpace
from search.testing.models import tiny_model

PROMPTS = ["red apple", "blue boat", "red boat"]


@pytest.fixture(scope="module")
def model():
    return tiny_model(steps=8)


@pytest.fixture(scope="module")
def fitter(model):
    return Fitter(model, PROMPTS, [0, 1, 2])


def drift(model, schedule, fitter) -> float:
    with schedule.apply(model.pipe):
        found = model.sample(fitter.prompts, fitter.seeds).double()
    teacher = fitter.teacher.states[-1]
    return float((found - teacher).norm() / teacher.norm())


def shorter(model, steps) -> Schedule:
    return Schedule.from_dict(model.target.schedule({"steps": steps, "sampler": model.shorter(steps)}))


def test_the_teacher_itself_is_fitted_to_itself(model, fitter):
    teacher = Schedule.from_dict(model.target.schedule({}))
    assert drift(model, fitter.fit(teacher), fitter) < 1e-4


@pytest.mark.parametrize("steps", [3, 5])
def test_a_fit_comes_closer_to_the_teacher(model, fitter, steps):
    plain = shorter(model, steps)
    assert drift(model, fitter.fit(plain), fitter) < 0.8 * drift(model, plain, fitter)


def test_a_fit_takes_up_what_a_plan_does(model, fitter):
    data = model.target.schedule({"plan": {"rules": [["transformer_blocks.*:ff", "CRCRCRCR"]]}})
    cached = Schedule.from_dict(data)
    fitted = fitter.fit(cached)
    assert fitted.plan.tokens == cached.plan.tokens
    assert drift(model, fitted, fitter) < drift(model, cached, fitter)


def test_what_was_fitted_is_what_the_file_does(model, fitter):
    """The run that made the table and the stock pipeline under the file end in the same latents, bit for bit."""
    fitted = fitter.fit(shorter(model, 4))
    again = Schedule.from_dict(json.loads(json.dumps(fitted.to_dict())))
    assert again == fitted
    with again.apply(model.pipe):
        stock = model.sample(PROMPTS, [0, 1, 2])
    assert torch.equal(stock, fitter.latents[fitted.digest])


def test_a_memo_keeps_tables_for_the_next_search(model, tmp_path):
    def evaluator(seeds: list[int]) -> Evaluator:
        return Evaluator(model, PROMPTS, seeds, {"drift": Drift()}, model.costs(), Memo(tmp_path / "memo.sqlite"))

    fitted = evaluator([0, 1, 2]).fit(shorter(model, 5))
    second, other = evaluator([0, 1, 2]), evaluator([3, 4, 5])
    assert second.fit(shorter(model, 5)) == fitted and second.runner.executed == 0
    assert other.fit(shorter(model, 5)) != fitted and other.runner.executed > 0


def test_rows_are_the_ridge_solution():
    generator = torch.Generator().manual_seed(0)
    x, e, y = torch.randn(3, 40, generator=generator, dtype=torch.float64)
    prior = [0.5, -0.2]
    solver = FittedSolver([prior[0]], [[prior[1]]], [y], ridge=0.1)
    solver.step(0, e, x)
    columns = torch.stack([x / x.norm(), e / e.norm()], dim=1)
    stacked = torch.cat([columns, 0.1**0.5 * torch.eye(2, dtype=torch.float64)])
    right = torch.cat([y - prior[0] * x - prior[1] * e, torch.zeros(2, dtype=torch.float64)])
    change = torch.linalg.lstsq(stacked, right[:, None]).solution[:, 0] / torch.stack([x.norm(), e.norm()])
    assert solver.state[0] == pytest.approx(prior[0] + float(change[0]))
    assert solver.outputs[0][0] == pytest.approx(prior[1] + float(change[1]))


def test_states_between_the_teachers_steps(model, fitter):
    run = fitter.teacher
    for i, sigma in enumerate(run.sigmas):
        assert torch.equal(run.state(sigma), run.states[i])
    dense = shorter(model, 32)
    with dense.apply(model.pipe):
        fine = record_trajectory(model, fitter.prompts, fitter.seeds)
    middle = [i for i in range(1, 32) if fine.sigmas[i] not in run.sigmas][3:12]
    errors = [float((run.state(fine.sigmas[i]) - fine.states[i]).norm() / fine.states[i].norm()) for i in middle]
    held = [
        float((run.states[[s > fine.sigmas[i] for s in run.sigmas].index(False)] - fine.states[i]).norm())
        for i in middle
    ]
    assert np.mean(errors) < 0.5 * np.mean(held)


def test_equal_schedules_are_fitted_once(model, fitter):
    before = fitter.runs
    fitter.fit(shorter(model, 6))
    fitter.fit(shorter(model, 6))
    assert fitter.runs == before + 1


def test_a_schedule_without_a_grid_is_refused(model, fitter):
    with pytest.raises(ValueError, match="a fit needs sampler.timesteps and sampler.sigmas in the schedule"):
        fitter.fit(Schedule.off(model.pipe))


def test_a_fit_leaves_no_trace(model, fitter):
    bare = model.sample(PROMPTS, [0, 1, 2])
    fitter.fit(shorter(model, 7))
    assert torch.equal(model.sample(PROMPTS, [0, 1, 2]), bare)
    assert TimestepsSpace().decode(np.zeros(16, dtype=int), model.target) == {}
