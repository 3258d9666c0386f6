"""Structural similarity of the decoded pictures."""

from torch import Tensor

from search.calibration import Costs
from search.objectives.base import Quality


class Ssim(Quality):
    """SSIM against the teacher's picture (Wang et al. 2004), 1 is identical."""

    key, unit, better = "ssim", "", "higher"

    def __call__(self, run: Tensor, teacher: Tensor) -> Tensor:
        from torchmetrics.functional.image import structural_similarity_index_measure as ssim

        values = ssim(run.float(), teacher.float(), data_range=1.0, reduction="none")
        return values.reshape(len(run)).double()

    def worst(self, costs: Costs) -> float:
        return 0.0
