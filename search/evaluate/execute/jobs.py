"""What is run: batches, jobs, and what comes back."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

from torch import Tensor

from search.evaluate.execute.prefix import SolverRow, prefix_ids, step_keys
from search.evaluate.fit.solver import Fitter
from search.schedule import Schedule


@dataclass(frozen=True)
class Batch:
    """Prompts that are denoised together, and a seed of noise for each."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.seeds)


@dataclass(frozen=True)
class Job:
    """A schedule to run.

    Attributes:
        schedule: With a number of steps.
        fit: Whether its solver is fitted while it runs.
    """

    schedule: Schedule
    fit: bool = False

    @cached_property
    def alone(self) -> bool:
        """Whether it shares no steps with other jobs: gates depend on prompts, batched steps are not run singly."""
        return bool(self.schedule.gates or self.schedule.batched_steps or self.schedule.corrections)

    @cached_property
    def prior(self) -> SolverRow | None:
        """The table that its fit begins with; None where nothing is fitted, or noise is injected."""
        return Fitter.prior(self.schedule) if self.fit else None

    def prefix_ids(self, batch: Batch) -> list[int]:
        """Identifiers of the run up to and with each step [T]: jobs with equal ones share the run up to there."""
        return prefix_ids(step_keys(self.schedule, self.prior), repr(batch))


@dataclass(frozen=True)
class Outcome:
    """The result of a job on one batch.

    Attributes:
        latents: Final latents [B, ...] in host memory.
        schedule: The schedule that gave them, its solver fitted where the job asked for it.
        decided: By group with a gate the share of the pictures for which it was computed at each step [T].
        batch: How many pictures were denoised together where memory was short for all of them, else 0.
    """

    latents: Tensor
    schedule: Schedule
    decided: Mapping[str, list[float]] = field(default_factory=dict)
    batch: int = 0


def mean_shares(decided: Sequence[tuple[int, Mapping[str, list[float]]]]) -> dict[str, list[float]]:
    """Shares [T] of each group over batches of so many pictures each."""
    total = sum(count for count, _ in decided)
    names = decided[0][1] if decided else {}
    return {
        name: [
            sum(count * share for (count, _), share in zip(decided, shares, strict=True)) / total
            for shares in zip(*(part[name] for _, part in decided), strict=True)
        ]
        for name in names
    }


OnDone = Callable[[int, Outcome], None]


class Executor(Protocol):
    """One device or many: `run` calls `on_done` with the number and outcome of each job, in any order.

    `executed` counts block executions so far, including those that were repeated after a state was dropped.
    """

    executed: float

    def run(self, batch: Batch, jobs: Sequence[Job], on_done: OnDone) -> None: ...
