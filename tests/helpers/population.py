"""Running schedules as a population."""

from collections.abc import Sequence

from torch import Tensor

from search.evaluate.execute.jobs import Batch, Job, Outcome
from search.evaluate.execute.runner import Runner
from search.schedule import Schedule


def outcomes(runner: Runner, batch: Batch, schedules: Sequence[Schedule], fit: bool = False) -> list[Outcome]:
    """What became of each schedule."""
    found: dict[int, Outcome] = {}
    runner.run(batch, [Job(schedule, fit) for schedule in schedules], found.__setitem__)
    return [found[i] for i in range(len(schedules))]


def latents(runner: Runner, batch: Batch, schedules: Sequence[Schedule]) -> list[Tensor]:
    return [outcome.latents for outcome in outcomes(runner, batch, schedules)]
