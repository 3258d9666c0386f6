"""From rows of an engine to the schedules that they stand for."""

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import numpy as np

from search.evaluate.evaluator import Evaluator
from search.evaluate.execute.jobs import Job
from search.evaluate.fit.corrections import Corrector
from search.evaluate.fit.rounding import RoundingCorrector
from search.models.base import Model, to_schedule
from search.objectives.drift import Drift
from search.schedule import Schedule
from search.spaces.base import Space


class CandidateBuilder:
    """Decodes rows [G], fits solvers and corrections; all on the calibration prompts of one evaluator."""

    def __init__(
        self,
        space: Space,
        model: Model,
        evaluator: Evaluator,
        refit: bool,
        correct: bool = False,
        on_message: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.space, self.model, self.evaluator = space, model, evaluator
        self.refit, self.correct, self.on_message = refit, correct, on_message

    def job(self, row: np.ndarray, plain: bool = False) -> Job:
        """What is run for a row. Its solver is fitted with `refit` or if its genes ask for it, but not if `plain`."""
        target = self.model.target
        parts = self.space.decode(row, target)
        wanted = self.space.wants_solver_fit(row, target) or self.refit
        return Job(to_schedule(self.model, parts), bool(parts and wanted and not plain and self.solvers_can_be_fitted))

    def plain_schedule(self, row: np.ndarray) -> Schedule:
        """The schedule of a row as its genes say it, its solver not fitted."""
        return self.job(row, plain=True).schedule

    def schedule_of(self, entry: Mapping[str, Any]) -> Schedule:
        """The schedule of an entry of the archive, as it was evaluated."""
        job = self.job(entry["x"], entry["plain"])
        return self.evaluator.fit(job.schedule) if job.fit else job.schedule

    def corrected(self, schedule: Schedule, plain: Schedule) -> Schedule:
        """The schedule, or with `correct` the same corrected and then fitted, whichever drifts less.

        Reused values are corrected first, then in the run with these corrections the outputs of rounded layers.

        `plain` is the schedule before its solver was fitted.
        """
        if not self.correct:
            return schedule
        reused = self.corrector.fit(plain)
        both = self.rounding_corrector.fit(reused)
        corrected = [each for each in dict.fromkeys((both, reused)) if each != plain]
        if self.refit and self.solvers_can_be_fitted:
            corrected = [self.evaluator.fit(each) for each in corrected]
        return min(*corrected, schedule, key=self._mean_drift) if corrected else schedule

    @cached_property
    def corrector(self) -> Corrector:
        """Fits corrections of reused values on the first calibration prompts and their noise."""
        return Corrector(self.model, *self.evaluator.inputs[0])

    @cached_property
    def rounding_corrector(self) -> RoundingCorrector:
        """Fits corrections of rounded layers on the same prompts."""
        return RoundingCorrector(self.model, *self.evaluator.inputs[0])

    @cached_property
    def solvers_can_be_fitted(self) -> bool:
        """False where the scheduler does not run tables, which is then said once."""
        if reason := self.evaluator.why_no_solver_fit():
            self.on_message(f"solvers are not fitted: {reason}")
        return not reason

    def _mean_drift(self, schedule: Schedule) -> float:
        """Mean drift on the calibration prompts."""
        return float(Drift()(self.evaluator.latents(schedule), self.evaluator.teacher).mean())
