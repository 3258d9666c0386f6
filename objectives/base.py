"""Base classes of objectives: qualities are measured on results, costs are computed from the schedule."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from search.objectives.aggregate import AGGREGATES, Over
from search.profile.costs import Costs
from search.schedule import Schedule


class Objective(ABC):
    """A number that a search trades off against others. Derive from `Cost`, `Quality`, `Reward` or `Distance`.

    A result stores `unit`, `better`, `kind`, `label` and `share`, so that reports need no list of objectives.

    Attributes:
        key: Name in scores and conditions (`"drift<=0.1"`); the YAML file has the same name.
        unit: Unit in tables and charts; `ratio` and "" are not shown.
        better: Whether lower or higher values are better.
        ceiling: The perfect value if higher is better; if lower is better it is 0.
        kind: Whether a condition on it limits the cost or the quality. Within limits on costs a search recommends the
            best quality, within limits on qualities the fastest.
        label: Text on the axes of charts; the key if it is empty.
        share: Whether it is a share of the teacher's value, which is shown in percent.
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
        """A value that no useful schedule exceeds: the reference point of the hypervolume.

        Args:
            costs: Cost tables of the model.

        Returns:
            The value in the objective's unit.
        """

    def minimised(self, value: float) -> float:
        """The value as engines receive it: they minimise, so its sign is changed if higher is better."""
        return value if self.better == "lower" else -value


class Quality(Objective):
    """A number per prompt, measured on the schedule's result for the teacher's prompts and noise.

    Constructor arguments go into attributes without a leading underscore: these are part of the key under which the
    memo stores values, so that other arguments give other values.

    Attributes:
        of: Whether it compares `latents` or `images`; images need the decoder and take longer.

    Args:
        over: What an engine is given of the values of all prompts: their mean, median, the geometric mean (`log`), or
            the value that nine of ten prompts are at least as good as (`q90`).

    Raises:
        ValueError: The geometric mean was asked for where higher values are better.

    Example:
        >>> import torch
        >>> from search.objectives.base import Quality
        >>> class MeanError(Quality):
        ...     key, unit = "error", ""
        ...     def __call__(self, run, teacher, prompts=()):
        ...         return (run - teacher).abs().flatten(1).mean(dim=1)
        ...     def worst(self, costs):
        ...         return 1.0
        >>> MeanError()(torch.zeros(2, 3, 8, 8), torch.full((2, 3, 8, 8), 0.5))
        tensor([0.5000, 0.5000])
    """

    of: ClassVar[Literal["latents", "images"]] = "images"
    _over: Over = "mean"  # not part of the memo's key: the values of the prompts are the same

    def __init__(self, over: Over = "mean") -> None:
        if over == "log" and self.better == "higher":
            raise ValueError(f"objective.{self.key}.over=log is for errors, of which less is better; give mean or q90")
        self._over = over

    @property
    def over(self) -> Over:
        """The name of what is taken of the values of all prompts."""
        return self._over

    def aggregate(self, values: Sequence[float]) -> float:
        """The number for an engine, to be minimised, of the values of all prompts [P]."""
        if self._over == "mean":  # in the order of the prompts: the same bits wherever it is summed
            return self.minimised(sum(values) / len(values))
        return float(AGGREGATES[self._over](np.array([self.minimised(value) for value in values])))

    @abstractmethod
    def __call__(self, run: Tensor, teacher: Tensor, prompts: Sequence[str]) -> Tensor:
        """Measure a batch.

        Args:
            run: The schedule's latents [B, C, h, w], or pictures [B, 3, H, W] in [0, 1].
            teacher: The teacher's, of the same prompts and noise.
            prompts: The B prompts.

        Returns:
            Values [B], one per prompt; exactly 0 error if `run` is equal to `teacher`.

        Raises:
            ValueError: The batch cannot be measured; the search reports it and goes on.
        """


class Reward(Quality):
    """A score of pictures and their prompts alone, so that a schedule can score higher than the teacher.

    Rewards of `guard=` are reported and not searched: a score that is searched can rise while pictures get worse.
    """

    better = "higher"

    @abstractmethod
    def score(self, pictures: Tensor, prompts: Sequence[str]) -> Tensor:
        """Rewards [B] of pictures [B, 3, H, W] in [0, 1] and their B prompts."""

    def __call__(self, run: Tensor, teacher: Tensor, prompts: Sequence[str]) -> Tensor:
        """Rewards [B] of the schedule's pictures; the teacher's are not looked at."""
        return self.score(run, prompts)


class Distance(Quality):
    """A distance between the set of pictures and the teacher's set: one number for all prompts together.

    Its per-prompt values are the jackknife's pseudo-values (Tukey 1958): n d - (n-1) d_i, with d_i the distance
    without prompt i. Their mean is d without its bias of order 1/n, and they can be resampled like any other values
    (for U-statistics: Arvesen 1969), so that intervals and paired comparisons mean the same for all objectives.

    Attributes:
        fewest: Prompts that are needed at least.
    """

    fewest: ClassVar[int] = 3

    @abstractmethod
    def distances(self, run: Tensor, teacher: Tensor) -> tuple[float, Tensor]:
        """The distance of pictures [B, 3, H, W] to the teacher's, and the B distances with one prompt left out."""

    def __call__(self, run: Tensor, teacher: Tensor, prompts: Sequence[str]) -> Tensor:
        """Pseudo-values [B] in fp64; ValueError if there are fewer prompts than `fewest`."""
        n = len(run)
        if n < self.fewest:
            raise ValueError(
                f"{self.key} compares sets of pictures and needs at least {self.fewest} prompts, not {n}; "
                f"type prompts.calibration_count={self.fewest} or more"
            )
        distance, without = self.distances(run, teacher)
        return n * torch.as_tensor(distance, dtype=torch.float64) - (n - 1) * without.double()


class Cost(Objective):
    """A number that is computed from the schedule and the model's cost tables, without running it.

    Example:
        A cost that counts steps, for `objective=[drift,steps]`:

        >>> from search.objectives.base import Cost
        >>> class Steps(Cost):
        ...     key, unit, label = "steps", "", "denoising steps"
        ...     def __call__(self, schedule, costs):
        ...         return schedule.steps or costs.steps
        ...     def worst(self, costs):
        ...         return costs.steps
        >>> Steps.kind, Steps.better
        ('cost', 'lower')
    """

    kind = "cost"

    @abstractmethod
    def __call__(self, schedule: Schedule, costs: Costs) -> float:
        """The cost of one picture.

        Args:
            schedule: The schedule, which is complete.
            costs: Cost tables of the model; of a schedule with gates, those for what its gates have decided.

        Returns:
            The cost in the objective's unit.
        """
