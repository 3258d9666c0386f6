"""A score with its interval, and the speed-up, which is measured and not searched."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


class Speedup:
    """The one score that no objective defines: the teacher's measured time over the schedule's. Described like one."""

    key, unit, better, kind, label, share = "speedup", "×", "higher", "cost", "", False


@dataclass(frozen=True)
class Score:
    """A mean over prompts with its 95 % interval; costs have none. Times are medians with their range."""

    value: float
    low: float | None = None
    high: float | None = None
