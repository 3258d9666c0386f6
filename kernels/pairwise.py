"""How far apart the values of a node are at any two steps: all pairs in one pass over the values."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from search.kernels.dispatch import Kernel

COLUMNS = 4096  # of all steps at once: small enough for a core's cache, large enough to hide the calls

Tables = tuple[Tensor, Tensor, Tensor]  # l1 [T, T], squares [T, T], energy [T]


@dataclass(frozen=True)
class Pairs:
    """Distances between the values of T steps, in float64; symmetric, nan for steps further apart than the band.

    Attributes:
        squares: Sums of squared differences [T, T].
        energy: Sums of squares of the values [T].
        l1: Sums of absolute differences [T, T]; None unless they were asked for.
    """

    squares: np.ndarray
    energy: np.ndarray
    l1: np.ndarray | None = None

    @property
    def relative(self) -> np.ndarray:
        """RMS distance [s, t] in units of the value at step t."""
        relative: np.ndarray = np.sqrt(self.squares / self.energy)
        return relative

    @property
    def inner(self) -> np.ndarray:
        """Inner products [T, T]."""
        products: np.ndarray = (self.energy[:, None] + self.energy - self.squares) / 2
        return products

    @property
    def cosine(self) -> np.ndarray:
        """Cosines of the angles between them [T, T]."""
        cosines: np.ndarray = self.inner / np.sqrt(self.energy[:, None] * self.energy)
        return cosines


def pairwise(values: Tensor, band: int | None = None, l1: bool = False, implementation: str | None = None) -> Pairs:
    """Distances between the values of a node at all pairs of steps.

    Reads each value once: T D itemsize bytes. Sums are in float64; Triton's are in float32 over at most a few thousand
    columns, then in float64.

    Args:
        values: Values [T, D] of T steps, of any floating type.
        band: The largest distance |t - s| of a pair; None for all pairs.
        l1: Whether to sum absolute differences too; this is not a matrix product, and slow on a CPU.
        implementation: The form of the kernel, see `search.kernels.dispatch.choose`.

    Raises:
        ValueError: There are no values, they have another shape, or the band is below 1.

    Example:
        >>> import torch
        >>> from search.kernels.pairwise import pairwise
        >>> pairwise(torch.tensor([[3.0, 4.0], [3.0, 1.0], [0.0, 4.0]])).squares.tolist()
        [[0.0, 9.0, 9.0], [9.0, 0.0, 18.0], [9.0, 18.0, 0.0]]
    """
    if values.ndim != 2 or not len(values):
        raise ValueError(f"pairwise needs the values of some steps as [T, D], got {list(values.shape)}")
    if band is not None and band < 1:
        raise ValueError(f"band {band} has no pair; use at least 1, or None for all pairs")
    steps = len(values)
    band = min(band or steps, steps)
    with torch.no_grad():
        distances = KERNEL.of(values, implementation)(values, band, l1)
    absolute, squares, energy = (table.cpu().numpy() for table in distances)
    far = np.abs(np.subtract.outer(np.arange(steps), np.arange(steps))) > band
    absolute, squares = (np.where(far, np.nan, np.maximum(t, t.T)) for t in (absolute, squares))
    return Pairs(squares, energy, absolute if l1 else None)


def bytes_moved(values: Tensor) -> int:
    """Each value is read once."""
    return int(values.nbytes)


def tables(values: Tensor, band: int, l1: bool) -> Tables:
    """Squares by inner products in float64; distances do not change when all values move by the mean of the steps.

    What cancels is then of the size of the drift and not of the value: |a - b|^2 is exact to 1e-15 of the square of
    the largest drift.
    """
    steps = len(values)
    absolute, gram = values.new_zeros(2, steps, steps, dtype=torch.float64)
    energy = values.new_zeros(steps, dtype=torch.float64)
    for block in values.split(COLUMNS, 1):
        rows = block.double()
        energy += rows.square().sum(1)
        for s in range(steps if l1 else 0):
            others = slice(s + 1, s + 1 + band)
            absolute[s, others] += (rows[others] - rows[s]).abs_().sum(1)
        rows = rows - rows.mean(0)
        gram += rows @ rows.T
    norms = gram.diagonal()
    return absolute, (norms[:, None] + norms - 2 * gram).clamp(min=0), energy


def _compiled(values: Tensor, band: int, l1: bool) -> Tables:
    """Every difference itself, in one fused loop per block of columns; all pairs, whatever the band."""
    size = len(values) + 1
    sums = values.new_zeros(1 + l1, size, size, dtype=torch.float64)
    for block in values.split(COLUMNS, 1):
        sums += _fused()(pad(block.double(), (0, COLUMNS - block.shape[1], 0, 1)), l1)  # zeros are as far from zeros
    return without_origin(sums[-1], sums[0])


@cache
def _fused() -> Callable[[Tensor, bool], Tensor]:
    def distances(rows: Tensor, l1: bool) -> Tensor:
        difference = rows[:, None] - rows
        squares = difference.square().sum(-1)
        return torch.stack([difference.abs().sum(-1), squares] if l1 else [squares])

    compiled: Callable[[Tensor, bool], Tensor] = torch.compile(distances)
    return compiled


def without_origin(squares: Tensor, absolute: Tensor) -> Tables:
    """Tables [T+1, T+1] whose last value was the origin: its distances are the energies."""
    return absolute[:-1, :-1], squares[:-1, :-1], squares[:-1, -1]


KERNEL = Kernel(tables, "search.kernels.pairwise_triton", _compiled)
