"""Fits corrections of reused values: per node, step and channel the affine map with the least squared error.

CacheQuant's decoupled correction (arXiv:2503.01323): a = cov(Xc, Xr) / var(Xc), b = mean(Xr) - a mean(Xc), where Xc is
what the schedule would reuse. There Xr comes from a run without caching. Here it is the output of the node on the
inputs of the corrected run itself, with the bits that the schedule has: later nodes see what was corrected before.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from search.models.base import Model
from search.schedule import Schedule
from search.schedule.apply.corrections import Affine, channel_dim, reused_steps
from search.schedule.parts.corrections import SCALE, SHIFT

RIDGE = 1e-2


class Corrector:
    """Fits corrections on a few calibration prompts and their noise.

    Args:
        model: The model that runs.
        prompts: B calibration prompts.
        seeds: Of their noise.
        ridge: How far corrections are shrunk toward none, see `fit_affine`.
    """

    def __init__(self, model: Model, prompts: Sequence[str], seeds: Sequence[int], ridge: float = RIDGE) -> None:
        self.model, self.prompts, self.seeds, self.ridge = model, prompts, seeds, ridge
        self._corrected: dict[str, Schedule] = {}
        self.runs = 0

    def fit(self, schedule: Schedule) -> Schedule:
        """The same schedule with every reused value corrected; itself where it reuses nothing.

        Corrections that the schedule has are replaced.
        """
        bare = schedule.with_corrections({})
        if bare.digest not in self._corrected:
            fits = {name: CorrectionFit(name, self.ridge) for name in reused_steps(bare.plan)}
            if fits:
                with torch.no_grad(), self.model.apply(bare, corrections=fits):
                    self.model.sample(self.prompts, self.seeds)
                self.runs += 1
            tensors: dict[str, Tensor] = {}
            for fit in fits.values():
                tensors |= fit.tensors()
            self._corrected[bare.digest] = bare.with_corrections(tensors)
        return self._corrected[bare.digest]


class CorrectionFit:
    """The correction of one node while it is fitted; the run continues with the corrected value."""

    def __init__(self, name: str, ridge: float) -> None:
        self.name, self.ridge = name, ridge
        self.rows: dict[int, tuple[Tensor, Tensor]] = {}
        self.errors: dict[int, tuple[Tensor, Tensor]] = {}  # of a step: mean squares [C] before and after

    def __call__(self, step: int, value: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        """Fits at the first call of a step; a second branch of guidance gets the same correction."""
        if step not in self.rows:
            scale, shift, before, after = fit_affine(value, compute(), self.ridge)
            self.rows[step], self.errors[step] = (scale, shift), (before, after)
        scale, shift = self.rows[step]
        return Affine(self.name, [step], scale[None], shift[None])(step, value, compute)

    def tensors(self) -> Mapping[str, Tensor]:
        """Scales and shifts of all steps, by the names that they have in a file."""
        rows = [self.rows[step] for step in sorted(self.rows)]
        return {
            self.name + SCALE: torch.stack([a for a, _ in rows]),
            self.name + SHIFT: torch.stack([b for _, b in rows]),
        }


def fit_affine(value: Tensor, truth: Tensor, ridge: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scale and shift [C] in fp16 from a reused value to the truth, and mean squared errors [C] before and after.

    In truth - value = d (value - mean) + m both terms are shrunk toward 0 by 1 / (1 + ridge), which never raises a
    channel's error; a channel whose error rounding to fp16 would raise is not corrected.

    Args:
        value: The reused value, [B, C, h, w], [B, N, C] or the like.
        truth: What the node computes, of the same shape.
        ridge: The shrinkage; 0 for plain least squares.
    """
    x, y = (v.movedim(channel_dim(v), -1).flatten(0, -2).double() for v in (value, truth))
    mean, left = x.mean(0), y - x
    centred = x - mean
    gain = (centred * left).mean(0) / (centred.square().mean(0) * (1 + ridge)).clamp(min=1e-30)
    scale = (1 + gain).half()
    shift = (left.mean(0) / (1 + ridge) - (scale.double() - 1) * mean).half()
    before, after = left.square().mean(0), (x * scale + shift - y).square().mean(0)
    better = (after < before) & scale.isfinite() & shift.isfinite()
    scale, shift = torch.where(better, scale, 1), torch.where(better, shift, 0)
    return scale, shift, before, torch.where(better, after, before)
