"""Objective `fid`: Fréchet distance between the schedule's and the teacher's pictures, as sets."""

from importlib.util import find_spec

import torch
from torch import Tensor, nn

from search.objectives.base import Distance
from search.objectives.network import Network
from search.profile.costs import Costs

INCEPTION = "inception"


class Fid(Distance):
    """Fréchet distance of two Gaussians that are fitted to vectors of the schedule's and of the teacher's pictures.

    The reference is the teacher, not a data set. With `path=inception` and thousands of pictures this is FID
    (arXiv:1706.08500) to the teacher; with a CLIP it is called FD or CLIP-FID in the literature. Its bias is of order
    1/n and for few pictures larger than the differences between schedules (arXiv:1911.07023); the jackknife's mean,
    which is reported, removes the leading part and can be below 0. Compare values of equal numbers of prompts only; for
    few prompts use `mmd`, which is unbiased.

    Args:
        path: Folder or hub id of a CLIPModel, or `inception`; None is the bundled CLIP.
        device: Where it runs; by default the GPU if there is one.

    Raises:
        ValueError: `path=inception` without the package torch-fidelity.

    Example:
        >>> import torch
        >>> from search.objectives.fid import frechet
        >>> vectors = torch.randn(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        >>> round(frechet(vectors, vectors + 1), 6)
        3.0
    """

    key, unit = "fid", "Fréchet"
    fewest = 4

    def __init__(self, path: str | None = None, device: str | None = None) -> None:
        self._inception: nn.Module | None = None
        if path == INCEPTION:
            self._inception, self.weights = _inception(), INCEPTION
        else:
            self._network = Network(path, device, "objective.fid.path")
            self.weights = self._network.weights
        self.path = path

    def distances(self, run: Tensor, teacher: Tensor) -> tuple[float, Tensor]:
        """The Fréchet distance of pictures [B, 3, H, W] in [0, 1], and the B distances with one prompt left out."""
        x, y = self._vectors(run), self._vectors(teacher)
        rows = torch.arange(len(x))
        return frechet(x, y), torch.tensor([frechet(x[rows != i], y[rows != i]) for i in rows], dtype=torch.float64)

    def worst(self, costs: Costs) -> float:
        """The largest squared distance of two unit vectors; a network of longer vectors may exceed it."""
        return 4.0

    def _vectors(self, pictures: Tensor) -> Tensor:
        if self._inception is not None:
            return self._inception((pictures * 255).byte()).double()
        return torch.nn.functional.normalize(self._network.pictures(pictures), dim=1)


def frechet(x: Tensor, y: Tensor) -> float:
    """|mean x - mean y|² + tr(S + R - 2 (S R)^½) of the covariances S, R of vectors x, y [n, D], fp64.

    tr (S R)^½ is the sum of the singular values of X Yᵀ / (n-1) with X, Y centred: an n x n matrix, however large D is.
    """
    n = len(x)
    means = (x.mean(dim=0) - y.mean(dim=0)).square().sum()
    x, y = x - x.mean(dim=0), y - y.mean(dim=0)
    spread = (x.square().sum() + y.square().sum() - 2 * torch.linalg.svdvals(x @ y.T).sum()) / (n - 1)
    return float(means + spread)


def _inception() -> nn.Module:
    """The Inception v3 of torchmetrics; ValueError if its package is not installed."""
    if find_spec("torch_fidelity") is None:
        raise ValueError(
            f"objective.fid.path={INCEPTION} needs torch-fidelity and its weights: pip install torch-fidelity, or "
            "leave objective.fid.path out for the bundled CLIP"
        )
    from torchmetrics.image.fid import FrechetInceptionDistance

    return FrechetInceptionDistance(feature=2048).inception
