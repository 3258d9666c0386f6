"""Objective `mmd`: kernel distance between the schedule's and the teacher's pictures, as sets."""

import torch
from torch import Tensor

from search.objectives.base import Distance
from search.objectives.network import Network
from search.profile.costs import Costs


class Mmd(Distance):
    """1000 times the squared maximum mean discrepancy of unit CLIP vectors, Gaussian kernel (CMMD, arXiv:2401.09603).

    It is the U-statistic of Gretton et al. 2012, eq. 4, which is unbiased also for pairs of pictures from one noise, as
    here; it can be below 0 and is exactly 0 for the teacher itself. With the checkpoint of the paper
    (openai/clip-vit-large-patch14-336) as `path` it is CMMD; with the bundled CLIP it is useful for the bundled models
    only.

    Args:
        path: Folder or hub id of a CLIPModel; None is the bundled one.
        width: Standard deviation of the kernel; 10 as in CMMD, where the kernel of unit vectors is nearly linear.
        device: Where it runs; by default the GPU if there is one.

    Raises:
        ValueError: `width` is not above 0.

    Example:
        >>> from search.objectives.mmd import Mmd
        >>> round(Mmd(device="cpu").worst(costs=None), 2)
        39.6
    """

    key, unit = "mmd", "MMD² × 1000"

    def __init__(self, path: str | None = None, width: float = 10.0, device: str | None = None) -> None:
        if not width > 0:
            raise ValueError(
                f"objective.mmd.width={width} is not a valid width of a kernel, which is above 0; "
                "type objective.mmd.width=10"
            )
        self._network = Network(path, device, "objective.mmd.path")
        self.path, self.width, self.weights = path, width, self._network.weights

    def distances(self, run: Tensor, teacher: Tensor) -> tuple[float, Tensor]:
        """The distance of pictures [B, 3, H, W] in [0, 1], and the B distances with one prompt left out."""
        x, y = (torch.nn.functional.normalize(self._network.pictures(p), dim=1) for p in (run, teacher))
        h = 1000 * (self._kernel(x, x) + self._kernel(y, y) - self._kernel(x, y) - self._kernel(y, x))
        h.fill_diagonal_(0)
        n, rows = len(h), h.sum(dim=1)
        total = rows.sum()
        return float(total / (n * (n - 1))), (total - 2 * rows) / ((n - 1) * (n - 2))

    def worst(self, costs: Costs) -> float:
        """1000 times twice the largest difference between two values of the kernel."""
        return 2000 * (1 - float(torch.tensor(-2 / self.width**2).exp()))

    def _kernel(self, a: Tensor, b: Tensor) -> Tensor:
        return (-torch.cdist(a, b).square() / (2 * self.width**2)).exp()
