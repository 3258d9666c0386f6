"""Fits corrections of rounded layers: per layer and output channel the affine map with the least squared error.

The second of CacheQuant's two corrections (arXiv:2503.01323): a = cov(Yq, Y) / var(Yq), b = mean(Y) - a mean(Yq),
where Yq = Q(W) Q(X) is what the rounded layer computes and Y = W X what it would compute, on the inputs of the run
that is corrected: with the schedule's plan, the corrections of its reused values, and layers before it corrected. The
first one, of reused values, is in `search.evaluate.fit.corrections` and is fitted before.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from search.evaluate.fit.corrections import RIDGE
from search.models.base import Model
from search.schedule import Schedule
from search.schedule.parts.bits import correction_names


class RoundingCorrector:
    """Fits corrections of rounded layers on a few calibration prompts and their noise.

    Args:
        model: The model that runs.
        prompts: B calibration prompts.
        seeds: Of their noise.
        ridge: How far corrections are shrunk toward none, see `LayerFit.affine`.
    """

    def __init__(self, model: Model, prompts: Sequence[str], seeds: Sequence[int], ridge: float = RIDGE) -> None:
        self.model, self.prompts, self.seeds, self.ridge = model, prompts, seeds, ridge
        self._corrected: dict[str, Schedule] = {}

    def fit(self, schedule: Schedule) -> Schedule:
        """The same schedule with every rounded layer corrected; itself where none is rounded.

        Corrections of layers that the schedule has are replaced; those of reused values stay.
        """
        bare = schedule.with_corrected_layers({})
        if bare.digest not in self._corrected:
            fits = {name: LayerFit(self.ridge) for name, form in bare.bits.items() if not form.elided}
            if fits:
                self._run(bare, fits)
            tensors: dict[str, Tensor] = {}
            for name, fit in fits.items():
                if fit.count:
                    tensors |= zip(correction_names(name), fit.affine()[:2], strict=True)
            self._corrected[bare.digest] = bare.with_corrected_layers(tensors)
        return self._corrected[bare.digest]

    def _run(self, bare: Schedule, fits: Mapping[str, "LayerFit"]) -> None:
        """One run, whose layers are corrected by what was seen so far."""
        with torch.no_grad(), self.model.apply(bare) as handle:
            for bits in handle.run.bits:
                for layer in bits.rounded:
                    fits[layer.name].channel_dim = 1 if layer.picture else -1
                    layer.fit = fits[layer.name]
            self.model.sample(self.prompts, self.seeds)


class LayerFit:
    """The correction of one layer while it is fitted, over all its calls: a correction is the same at every step."""

    def __init__(self, ridge: float = RIDGE, channel_dim: int = -1) -> None:
        self.ridge, self.channel_dim, self.count = ridge, channel_dim, 0
        self.sums = torch.zeros(5, 1, dtype=torch.float64)  # of x, d, x x, x d and d d [5, C]; d is what x lacks

    def __call__(self, rounded: Tensor, exact: Tensor) -> Tensor:
        """Take in both outputs of a call, without bias; the rounded one, corrected by all calls so far."""
        x, y = (v.movedim(self.channel_dim, -1).flatten(0, -2).double() for v in (rounded, exact))
        d = y - x
        self.count += len(x)
        self.sums = self.sums.to(x.device) + torch.stack([v.sum(0) for v in (x, d, x * x, x * d, d * d)])
        gain, offset = (v.to(rounded.dtype) for v in self.affine()[:2])
        return (rounded.movedim(self.channel_dim, -1) * gain + offset).movedim(-1, self.channel_dim)

    def affine(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Gain and offset [C] in fp16, and mean squared errors [C] before and after.

        In y - x = g (x - mean) + m both terms are shrunk toward 0 by 1 / (1 + ridge), which never raises a channel's
        error; a channel whose error rounding to fp16 would raise is not corrected.
        """
        x, d, xx, xd, dd = self.sums / self.count
        variance = (xx - x * x).clamp(min=1e-12 * xx + 1e-30)
        gain = (1 + (xd - x * d) / (variance * (1 + self.ridge))).half()
        g = gain.double() - 1
        offset = (d / (1 + self.ridge) - g * x).half()
        b = offset.double()
        after = dd + g * g * xx + b * b + 2 * (g * b * x - g * xd - b * d)
        better = (after < dd) & gain.isfinite() & offset.isfinite()
        return torch.where(better, gain, 1), torch.where(better, offset, 0), dd, torch.where(better, after, dd)
