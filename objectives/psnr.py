"""Peak signal-to-noise ratio of the decoded pictures."""

from collections.abc import Sequence

from torch import Tensor

from search.objectives.base import Quality
from search.profile.costs import Costs

IDENTICAL = 100.0


class Psnr(Quality):
    """PSNR against the teacher's picture in dB; identical pictures count as 100 dB, unrelated ones as about 10."""

    key, unit, better, ceiling = "psnr", "dB", "higher", IDENTICAL
    label = "PSNR against the teacher's pictures"

    def __call__(self, run: Tensor, teacher: Tensor, prompts: Sequence[str] = ()) -> Tensor:
        from torchmetrics.functional.image import peak_signal_noise_ratio

        values = [
            peak_signal_noise_ratio(a[None].float(), b[None].float(), data_range=1.0)
            for a, b in zip(run, teacher, strict=True)
        ]
        return run.new_tensor(values).double().clamp(max=IDENTICAL)

    def worst(self, costs: Costs) -> float:
        return 10.0
