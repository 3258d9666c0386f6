"""Scores of populations: equal to those one by one, nothing run twice, races that change costs and not winners."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from search.evaluate.execute.jobs import Job
from search.evaluate.fit.remembered import FittedSchedules
from search.evaluate.memo import Memo
from search.evaluate.racing import Race
from search.models.base import to_schedule
from search.objectives.drift import Drift
from search.objectives.macs import Macs
from search.objectives.psnr import Psnr
from search.objectives.ssim import Ssim
from search.schedule import Schedule
from tests.helpers.evaluators import PROMPTS, evaluator, jobs, parts


@pytest.mark.parametrize("fit", [False, True])
@pytest.mark.parametrize("batch", [8, 3])
def test_a_population_scores_as_its_schedules_one_by_one(fit, batch):
    together, alone = evaluator(batch=batch), evaluator(batch=batch)
    found = together.evaluate(jobs(fit))
    for job, scored in zip(jobs(fit), found, strict=True):
        schedule = alone.fit(job.schedule) if fit else job.schedule
        assert scored.schedule == schedule and scored.prompts == 7
        assert scored.values == alone.values(schedule)
        assert scored.minimised == alone.scorer.minimised(scored.values)
    assert together.block_executions < 0.9 * together.unshared
    again = len(together.runner.jobs)
    assert together.evaluate(jobs(fit)) == found and len(together.runner.jobs) == again  # all known


def test_what_was_measured_is_what_the_stock_pipeline_does():
    model, _ = parts()
    (scored, *_) = evaluator().evaluate(jobs(fit=True))
    teacher = model.sample(PROMPTS, list(range(7)))
    with scored.schedule.apply(model.pipe):
        latents = model.sample(PROMPTS, list(range(7)))
    assert scored.values["drift"] == pytest.approx([float(d) for d in Drift()(latents, teacher)], abs=1e-9)


def test_another_search_with_other_objectives_starts_with_everything_known(tmp_path):
    first = evaluator(tmp_path / "memo.sqlite")
    first.evaluate(jobs(fit=True))
    second = evaluator(tmp_path / "memo.sqlite", psnr=Psnr(), ssim=Ssim(), macs=Macs())
    found = second.evaluate(jobs(fit=True))
    assert second.runner.jobs == [] and second.runner.executed == 0
    fresh = evaluator(psnr=Psnr(), ssim=Ssim(), macs=Macs()).evaluate(jobs(fit=True))
    assert [scored.values for scored in found] == [scored.values for scored in fresh]
    assert second.block_executions > 0  # counted as if it had been alone


def test_other_weights_are_another_context(tmp_path):
    model, _ = parts()
    first = evaluator(tmp_path / "memo.sqlite").context
    assert evaluator(tmp_path / "memo.sqlite").context == first
    assert evaluator(tmp_path / "memo.sqlite", prompts=6).context != first
    for module in (model.denoiser, model.pipe.vae):
        parameter = list(module.parameters())[-1]
        kept = parameter.data.clone()
        parameter.data.mul_(1.01)
        try:
            assert evaluator(tmp_path / "memo.sqlite").context != first
        finally:
            parameter.data.copy_(kept)


def test_an_objective_with_other_arguments_is_measured_anew(tmp_path):
    class Scaled(Drift):
        def __init__(self, by: float) -> None:
            self.by = by

        def __call__(self, run: torch.Tensor, teacher: torch.Tensor, prompts: Sequence[str] = ()) -> torch.Tensor:
            return self.by * super().__call__(run, teacher)

    job = jobs()[0]
    once, twice = (
        evaluator(tmp_path / "memo.sqlite", scaled=Scaled(by)).evaluate([job])[0].values["scaled"] for by in (1, 2)
    )
    assert np.allclose(np.array(twice), 2 * np.array(once)) and once[0] > 0


def dearer() -> list[Job]:
    """Candidates that cost more than a last step reused, and drift more or less."""
    rules = [[["transformer_blocks.*:attn1", text]] for text in ("CCSCCC", "CCCCCR", "CSCCCC", "CCCCSC")]
    return [Job(to_schedule(parts()[0], {"plan": {"rules": rule}})) for rule in rules]


def test_races_drop_who_is_behind_and_keep_who_is_not():
    plain, raced = evaluator(batch=3), evaluator(batch=3)
    rival = jobs()[4].schedule
    truth, best = plain.evaluate(dearer()), plain.evaluate([Job(rival)])[0]
    raced.evaluate([Job(rival)])
    raced.runner.jobs.clear()
    found = raced.evaluate(dearer(), rivals=[rival])
    assert raced.runner.jobs[0] == (3, 4) and raced.runner.jobs[-1][1] < 4
    assert raced.block_executions < plain.block_executions
    lost = [i for i, scored in enumerate(found) if not scored.values]
    assert lost and len(lost) < 4
    for i, scored in enumerate(found):
        if i not in lost:
            assert scored == truth[i]
        else:  # behind the rival on all prompts too, and told about as it is
            assert scored.prompts < 7 and scored.minimised[1] == truth[i].minimised[1] > best.minimised[1]
            assert best.minimised[0] < truth[i].minimised[0] == pytest.approx(scored.minimised[0], rel=0.5)


def test_pictures_are_decoded_for_survivors_alone(monkeypatch):
    own = evaluator(psnr=Psnr(), macs=Macs())
    rival, cheaper = jobs()[4], jobs()[1]
    own.evaluate([rival])
    decoded: list[int] = []
    decode = own.scorer.decode
    monkeypatch.setattr(own.scorer, "decode", lambda latents: decoded.append(len(latents)) or decode(latents))
    monkeypatch.setattr(Race, "beaten", lambda self, drift, costs: len(drift) == 7 and costs[0] > 0.9)
    found = own.evaluate([*dearer(), cheaper], rivals=[rival.schedule])
    lost = [scored for scored in found if not scored.values]
    assert len(lost) == 4 and found[-1].values and decoded == [7]
    assert {scored.minimised[0] for scored in lost} == {-10.0}  # the worst PSNR worth having


def test_a_candidate_that_is_asked_twice_is_run_once():
    own = evaluator()
    found = own.evaluate([*jobs()[:2], *jobs()[:2]])
    assert found[:2] == found[2:] and own.runner.jobs == [(7, 2)]


def test_progress_is_told_candidate_by_candidate():
    told: list[int] = []
    own = evaluator()
    own.evaluate(jobs()[:1])
    own.evaluate(jobs(), on_done=told.append)
    assert told == [1, 2, 3, 4, 5, 6]


def test_what_was_finished_before_a_stop_is_known(tmp_path):
    own = evaluator(tmp_path / "memo.sqlite")

    def stop(count: int) -> None:
        if count == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        own.evaluate(jobs(), on_done=stop)
    again = evaluator(tmp_path / "memo.sqlite")
    again.evaluate(jobs())
    assert again.runner.jobs == [(7, 3)]
    assert again.block_executions == evaluator_cost()


def evaluator_cost() -> float:
    own = evaluator()
    own.evaluate(jobs())
    return own.block_executions


# The memo


def test_latents_come_back_bit_for_bit(tmp_path):
    memo = Memo(tmp_path / "memo.sqlite")
    for name, dtype in (("a", torch.float32), ("b", torch.bfloat16), ("c", torch.float64)):
        latents = torch.randn(3, 4, 2, 2).to(dtype)
        memo.put_latents("here", name, latents)
        found = Memo(tmp_path / "memo.sqlite").latents("here", name)
        assert found is not None and found.dtype == dtype and torch.equal(found, latents)
    assert memo.latents("there", "a") is None
    odd = torch.randn(4, 4).T[1:]
    memo.put_latents("here", "a", odd)
    found = memo.latents("here", "a")
    assert found is not None and torch.equal(found, odd)


def test_the_oldest_latents_go_first(tmp_path, monkeypatch):
    monkeypatch.setattr("search.evaluate.memo.EVERY", 1)
    memo = Memo(tmp_path / "memo.sqlite", limit=1000)
    for i in range(20):
        memo.put_latents("here", str(i), torch.full((25,), float(i)))
    kept = [i for i in range(20) if memo.latents("here", str(i)) is not None]
    assert 0 < len(kept) <= 11 and kept == list(range(20 - len(kept), 20))
    memo.put_latents("here", "large", torch.zeros(1000))
    assert memo.latents("here", "large") is None


def test_a_schedule_whose_latents_were_forgotten_is_run_for_them():
    own = evaluator()
    schedule: Schedule = jobs()[0].schedule
    values = own.values(schedule)
    latents = own.latents(schedule)
    own.memo._base.execute("delete from latents")
    assert torch.equal(own.latents(schedule), latents) and own.values(schedule) == values


def test_what_the_memo_has_for_other_prompts_or_steps_is_measured_again():
    first = evaluator(prompts=3)
    job = jobs()[0]
    (scored,) = first.evaluate([job])
    first.memo.put(first.context, job.schedule.digest, {"drift": [0.5] * 9})
    first.memo.put_latents(first.context, job.schedule.digest, torch.zeros(2, 2))
    first.scorer.failed.clear()
    (again,) = first.evaluate([job])
    assert again.values == scored.values


@pytest.mark.parametrize("table", [{}, {"state": [1.0] * 6}, {"state": [1.0], "outputs": [1.0]}, "not finite"])
def test_a_fitted_table_that_does_not_fit_is_fitted_again(tmp_path, table):
    fitted, job = FittedSchedules(Memo(tmp_path / "memo.sqlite"), "here"), jobs(fit=True)[0]
    whole = {"state": [1.0] * 6, "outputs": [0.1] * 21}
    fitted.memo.put(fitted.context, job.schedule.digest, whole)
    assert fitted.final_schedule(job).sampler["coefficients"]["state"] == [1.0] * 6
    wrong = whole | {"state": [float("nan")] * 6} if table == "not finite" else table
    fitted.memo.put(fitted.context, job.schedule.digest, {"state": [], "outputs": []} | wrong)
    assert fitted.final_schedule(job) is None
