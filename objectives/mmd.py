"""How far the schedule's pictures as a set are from the teacher's: kernel distance."""

import torch
from torch import Tensor

from search.objectives.base import Distance
from search.objectives.network import Network
from search.profile.costs import Costs


class Mmd(Distance):
    """1000 times the squared maximum mean discrepancy of unit CLIP vectors, Gaussian kernel (CMMD, arXiv:2401.09603).

    The U-statistic of Gretton et al. 2012, eq. 4, which is unbiased also where pictures come in pairs of one noise, as
    they do here; it may be below 0 and is exactly 0 for the teacher itself. CMMD is this with its checkpoint
    (openai/clip-vit-large-patch14-336) as `path`; with the bundled CLIP it is of use for the bundled models only.
    `width` is the kernel's standard deviation; CMMD has 10, where a unit vector's kernel is nearly linear.
    """

    key, unit = "mmd", "MMD² × 1000"

    def __init__(self, path: str | None = None, width: float = 10.0, device: str | None = None) -> None:
        if not width > 0:
            raise ValueError(f"objective.mmd.width={width} is no width of a kernel; type objective.mmd.width=10")
        self._network = Network(path, device, "objective.mmd.path")
        self.path, self.width, self.weights = path, width, self._network.weights

    def distances(self, run: Tensor, teacher: Tensor) -> tuple[float, Tensor]:
        x, y = (torch.nn.functional.normalize(self._network.pictures(p), dim=1) for p in (run, teacher))
        h = 1000 * (self._kernel(x, x) + self._kernel(y, y) - self._kernel(x, y) - self._kernel(y, x))
        h.fill_diagonal_(0)
        n, rows = len(h), h.sum(dim=1)
        whole = rows.sum()
        return float(whole / (n * (n - 1))), (whole - 2 * rows) / ((n - 1) * (n - 2))

    def worst(self, costs: Costs) -> float:
        """1000 times twice the largest difference that two kernel values can have."""
        return 2000 * (1 - float(torch.tensor(-2 / self.width**2).exp()))

    def _kernel(self, a: Tensor, b: Tensor) -> Tensor:
        return (-torch.cdist(a, b).square() / (2 * self.width**2)).exp()
