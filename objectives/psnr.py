"""Objective `psnr`: peak signal-to-noise ratio of the decoded pictures."""

from collections.abc import Sequence

from torch import Tensor

from search.objectives.base import Quality
from search.profile.costs import Costs

IDENTICAL = 100.0


class Psnr(Quality):
    """PSNR in dB against the teacher's picture: -10 log10 of the mean squared error of values in [0, 1].

    Identical pictures count as 100 dB, unrelated ones have about 10; below 30 dB differences are usually seen.

    Example:
        >>> import torch
        >>> from search.objectives.psnr import Psnr
        >>> teacher = torch.full((1, 3, 8, 8), 0.5)
        >>> Psnr()(teacher + 0.1, teacher).round(decimals=3)
        tensor([20.], dtype=torch.float64)
    """

    key, unit, better, ceiling = "psnr", "dB", "higher", IDENTICAL
    label = "PSNR against the teacher's pictures"

    def __call__(self, run: Tensor, teacher: Tensor, prompts: Sequence[str] = ()) -> Tensor:
        """PSNR [B] in dB, fp64, of pictures [B, 3, H, W] in [0, 1]."""
        from torchmetrics.functional.image import peak_signal_noise_ratio

        values = [
            peak_signal_noise_ratio(a[None].float(), b[None].float(), data_range=1.0)
            for a, b in zip(run, teacher, strict=True)
        ]
        return run.new_tensor(values).double().clamp(max=IDENTICAL)

    def worst(self, costs: Costs) -> float:
        return 10.0
