"""Objective `ssim`: structural similarity of the decoded pictures."""

from collections.abc import Sequence

from torch import Tensor

from search.objectives.base import Quality
from search.profile.costs import Costs


class Ssim(Quality):
    """SSIM against the teacher's picture (Wang et al. 2004, doi:10.1109/TIP.2003.819861); 1 is identical.

    Example:
        >>> import torch
        >>> from search.objectives.ssim import Ssim
        >>> teacher = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        >>> Ssim()(teacher, teacher)
        tensor([1.], dtype=torch.float64)
    """

    key, unit, better = "ssim", "", "higher"
    label = "SSIM against the teacher's pictures"

    def __call__(self, run: Tensor, teacher: Tensor, prompts: Sequence[str] = ()) -> Tensor:
        """SSIM [B] in fp64 of pictures [B, 3, H, W] in [0, 1]."""
        from torchmetrics.functional.image import structural_similarity_index_measure as ssim

        values = [ssim(a[None].float(), b[None].float(), data_range=1.0) for a, b in zip(run, teacher, strict=True)]
        return run.new_tensor(values).double()

    def worst(self, costs: Costs) -> float:
        return 0.0
