"""Solver tables that were fitted before, in the memo."""

import math
from collections.abc import Sequence

from search.evaluate.execute.jobs import Job
from search.evaluate.fit.solver import RIDGE, Fitter
from search.evaluate.memo import Memo
from search.schedule import Schedule
from search.schedule.apply.linear_solver import LinearSolver


class FittedSchedules:
    """Fitted schedules of one split, by the job that asked for the fit. `context` identifies the split in the memo."""

    def __init__(self, memo: Memo, context: str) -> None:
        self.memo, self.context = memo, f"fit {RIDGE} {context}"

    def final_schedule(self, job: Job) -> Schedule | None:
        """The schedule that a job runs in the end: its own, or the fitted one; None where that is not fitted yet."""
        if job.prior is None:
            return job.schedule
        table = self.memo.get(self.context, job.schedule.digest)
        state, flat = table.get("state", []), table.get("outputs", [])
        if len(state) != job.schedule.steps or 2 * len(flat) != len(state) * (len(state) + 1):
            return None
        if not all(map(math.isfinite, (*state, *flat))):
            return None
        return Fitter.fitted(job.schedule, LinearSolver(state, _triangle(flat)))

    def remember(self, job: Job, fitted: Schedule) -> None:
        """Keep the solver table of the schedule that a job came to."""
        table = (fitted.sampler or {})["coefficients"]
        flat = [value for row in table["outputs"] for value in row]
        self.memo.put(self.context, job.schedule.digest, {"state": table["state"], "outputs": flat})


def _triangle(flat: Sequence[float]) -> list[list[float]]:
    """Rows of 1, 2, 3, ... values."""
    rows: list[list[float]] = []
    left = list(flat)
    while left:
        size = len(rows) + 1
        rows.append(left[:size])
        left = left[size:]
    return rows
