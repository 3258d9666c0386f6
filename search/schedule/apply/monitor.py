"""How much the denoiser's output changes from step to step, and what is done in a run where it is unusual.

A certificate speaks of runs like those it rests on. It cannot know of another LoRA or guidance scale; the output that
the scheduler is given often shows it.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from search.schedule.document import Document
from search.schedule.errors import ScheduleError
from search.schedule.parts.certificate import MonitorPart


def guard_of(document: Document) -> "RunGuard":
    """The guard that a schedule's certificate describes; ScheduleError where it describes none."""
    part = document.certificate.monitor if document.certificate else None
    if part is None:
        what = "certificate has no monitor" if document.certificate else "schedule has no certificate"
        raise ScheduleError(
            f"guard=True compares runs with those that a certificate rests on, and this {what}; type python -m "
            "search.verify schedule.json out=guarded.json, and apply guarded.json. A schedule that reuses the whole "
            "output at all steps but the first and the last one gets none: nothing can be compared"
        )
    return RunGuard(part)


class OutputMonitor(ABC):
    """Is given the output of every step, after guidance, and finds how much it changed since the step before."""

    needs_own_solver: ClassVar[bool] = False  # whether the scheduler's solver has to keep up beside a fitted table
    _previous: Tensor | None = None

    def record(self, step: int, output: Tensor) -> bool:
        """Take what the scheduler is given at a step; whether the rest of the run has to be computed in full.

        Args:
            step: From 0; a run begins with step 0.
            output: The denoiser's output, one row for each picture [B, ...].
        """
        rows = output.detach().flatten(1).float()
        previous, self._previous = self._previous, rows
        if step == 0 or previous is None or previous.shape != rows.shape:
            return False
        distance, length = (torch.linalg.vector_norm(value, dim=1) for value in (rows - previous, previous))
        return self.is_unusual(step, (distance / length).log())

    @abstractmethod
    def is_unusual(self, step: int, changes: Tensor) -> bool:
        """Judge the logarithms of the relative changes [B] from the step before to this one."""


class ChangeRecorder(OutputMonitor):
    """Records the changes of all runs: `changes` has for each step those of one call after the other."""

    def __init__(self) -> None:
        self.changes: dict[int, list[Tensor]] = {}

    def is_unusual(self, step: int, changes: Tensor) -> bool:
        self.changes.setdefault(step, []).append(changes.cpu())
        return False


class RunGuard(OutputMonitor):
    """Judges runs by the changes that certified runs had, by the rule of `MonitorPart`.

    The device is waited for once at each step that is judged, until a run is found unusual.
    """

    needs_own_solver = True

    def __init__(self, part: MonitorPart) -> None:
        rows = zip(part.mean, part.spread, part.limit, strict=True)
        self.usual = dict(zip(part.steps, rows, strict=True))
        self.unusual_runs = 0
        self._found, self._sum, self._count = False, torch.zeros(()), 0  # of this run

    def record(self, step: int, output: Tensor) -> bool:
        if step == 0:
            self._found, self._sum, self._count = False, torch.zeros(()), 0
        return not self._found and super().record(step, output)

    def is_unusual(self, step: int, changes: Tensor) -> bool:
        if step not in self.usual:
            return False
        mean, spread, limit = self.usual[step]
        self._sum, self._count = (changes - mean) / spread + self._sum.to(changes.device), self._count + 1
        distances = self._sum.abs() / self._count
        self._found = not bool((distances <= limit).all())  # what is not a number is unusual
        self.unusual_runs += self._found
        return self._found
