"""What an objective is: a quality against the teacher's result, or a cost that follows from the plan."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from search.profile.costs import Costs
from search.schedule import Schedule


class Objective(ABC):
    """A named number with a unit. `worst` is what the hypervolume is measured against, in that unit.

    `ceiling` is what it calls perfect where higher is better; where lower is better that is 0.
    `kind` says whether limits on it limit cost or quality, `label` is its text in charts (without one its key), `share`
    whether it is a share of the teacher's, which is shown in percent. All of these are stored with a result.
    """

    key: ClassVar[str]
    unit: ClassVar[str]
    better: ClassVar[Literal["lower", "higher"]] = "lower"
    ceiling: ClassVar[float] = 1.0
    kind: ClassVar[Literal["cost", "quality"]] = "quality"
    label: ClassVar[str] = ""
    share: ClassVar[bool] = False

    @abstractmethod
    def worst(self, costs: Costs) -> float:
        """A value that no schedule worth having exceeds."""

    def minimised(self, value: float) -> float:
        return value if self.better == "lower" else -value


class Quality(Objective):
    """Judges results, of the same noise and prompts as the teacher's; `of` says whether latents or pictures.

    What it is made with stands in attributes without a leading underscore: they are part of its values' name in the
    memo.
    """

    of: ClassVar[Literal["latents", "images"]] = "images"

    @abstractmethod
    def __call__(self, run: Tensor, teacher: Tensor, prompts: Sequence[str]) -> Tensor:
        """Per-prompt values [B] for latents [B, C, h, w] or pictures [B, 3, H, W] in [0, 1]."""


class Reward(Quality):
    """Judges pictures by their prompts, whatever the teacher's look like: a schedule may have a higher one."""

    better = "higher"

    @abstractmethod
    def score(self, pictures: Tensor, prompts: Sequence[str]) -> Tensor:
        """Per-prompt rewards [B] of pictures [B, 3, H, W] in [0, 1]."""

    def __call__(self, run: Tensor, teacher: Tensor, prompts: Sequence[str]) -> Tensor:
        return self.score(run, prompts)


class Distance(Quality):
    """Compares the set of pictures with the teacher's: one number for all prompts together.

    Its per-prompt values are the jackknife's pseudo-values (Tukey 1958): n d - (n-1) d_i, with d_i the distance
    without prompt i. Their mean is d without its bias of order 1/n, and they can be resampled like any other values
    (for U-statistics: Arvesen 1969), so that intervals and paired comparisons mean the same for all objectives.
    """

    fewest: ClassVar[int] = 3

    @abstractmethod
    def distances(self, run: Tensor, teacher: Tensor) -> tuple[float, Tensor]:
        """The distance of pictures [B, 3, H, W] to the teacher's, and those [B] with one prompt left out."""

    def __call__(self, run: Tensor, teacher: Tensor, prompts: Sequence[str]) -> Tensor:
        n = len(run)
        if n < self.fewest:
            raise ValueError(
                f"{self.key} compares sets of pictures and needs at least {self.fewest} prompts, not {n}; "
                f"type prompts.calibration_count={self.fewest} or more"
            )
        whole, without = self.distances(run, teacher)
        return n * torch.as_tensor(whole, dtype=torch.float64) - (n - 1) * without.double()


class Cost(Objective):
    """Follows from the schedule and measured tables; needs no run."""

    kind = "cost"

    @abstractmethod
    def __call__(self, schedule: Schedule, costs: Costs) -> float:
        """The cost of one picture."""
