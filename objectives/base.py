"""What an objective is: a quality against the teacher's result, or a cost that follows from the plan."""

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

from torch import Tensor

from search.calibration import Costs
from search.schedule import Schedule


class Objective(ABC):
    """A named number with a unit. `worst` is what the hypervolume is measured against, in that unit."""

    key: ClassVar[str]
    unit: ClassVar[str]
    better: ClassVar[Literal["lower", "higher"]] = "lower"

    @abstractmethod
    def worst(self, costs: Costs) -> float:
        """A value that no schedule worth having exceeds."""

    def minimised(self, value: float) -> float:
        return value if self.better == "lower" else -value


class Quality(Objective):
    """Compares results of the same noise and prompts; `of` says whether latents or pictures are compared."""

    of: ClassVar[Literal["latents", "images"]] = "images"

    @abstractmethod
    def __call__(self, run: Tensor, teacher: Tensor) -> Tensor:
        """Per-prompt values [B] for latents [B, C, h, w] or pictures [B, 3, H, W] in [0, 1]."""


class Cost(Objective):
    """Follows from the schedule and measured tables; needs no run."""

    @abstractmethod
    def __call__(self, schedule: Schedule, costs: Costs) -> float:
        """The cost of one picture."""
