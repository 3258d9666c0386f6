"""A score with its interval, and the speed-up, which is measured and not searched."""

from dataclasses import dataclass


class Speedup:
    """The score `speedup`, which no objective defines: the teacher's measured time over the schedule's.

    It has the attributes by which objectives are described.
    """

    key, unit, better, kind, label, share = "speedup", "×", "higher", "cost", "", False


@dataclass(frozen=True)
class Score:
    """A mean over prompts with its 95 % interval; costs have no interval. Times are medians with their range.

    Example:
        >>> from search.results.scores import Score
        >>> Score(31.5, low=30.9, high=32.2).value
        31.5
    """

    value: float
    low: float | None = None
    high: float | None = None
