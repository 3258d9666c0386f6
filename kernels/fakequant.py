"""Rounding errors of grids of few bits, for many bit-widths and clippings at once."""

from collections.abc import Sequence

import torch
from torch import Tensor

from search.kernels.dispatch import Kernel

CACHED = 2**18  # values of a block on a CPU, small enough that what is made of them stays in its caches
TINY = torch.finfo(torch.float32).tiny


def affine(value: Tensor, low: Tensor, high: Tensor, bits: int, factor: Tensor | float = 1.0) -> Tensor:
    """Round to a grid of 2**bits even values, one of which is exactly 0.

    Args:
        value: What is rounded, of any shape that broadcasts with the bounds.
        low: The lower end of the grid, at most 0.
        high: The upper end of the grid, at least 0.
        bits: The grid has 2**bits values.
        factor: Scales both ends, below 1 to clip; a tensor of factors is in float64.

    Example:
        >>> import torch
        >>> from search.kernels.fakequant import affine
        >>> affine(torch.tensor([-1.0, 0.1, 0.4, 2.0]), torch.tensor(-1.0), torch.tensor(2.0), bits=2).tolist()
        [-1.0, 0.0, 0.0, 2.0]
    """
    top = 2**bits - 1
    scale = ((high - low) * _single(factor / top)).clamp(min=TINY)
    zero = (-low * _single(factor) / scale).round()
    return ((value / scale).round() + zero).clamp(0, top).sub(zero).mul(scale)


def ends(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Least and greatest value along the last axis, [..., 1] each, extended to contain 0."""
    return rows.amin(-1, keepdim=True).clamp(max=0), rows.amax(-1, keepdim=True).clamp(min=0)


def sweep(rows: Tensor, bits: Sequence[int], factors: Sequence[float], implementation: str | None = None) -> Tensor:
    """Squared rounding errors of rows for every combination of a bit-width and a clipping factor.

    Reads the rows once, R G 4 bytes, and writes one number for each row and combination.

    Args:
        rows: Values [R, G] in float32; each row is rounded on the `affine` grid of its own range.
        bits: Bit-widths, each from 1 to 16.
        factors: Factors on the range.
        implementation: The form of the kernel, see `search.kernels.dispatch.choose`.

    Returns:
        Sums of squared errors [bits, factors, R] in float32.

    Raises:
        ValueError: Rows have another shape or type, or a bit-width is out of range.
    """
    if rows.ndim != 2 or rows.dtype != torch.float32:
        raise ValueError(f"sweep needs rows [R, G] in float32, got {list(rows.shape)} in {rows.dtype}")
    if not bits or not all(1 <= b <= 16 for b in bits):
        raise ValueError(f"bits {list(bits)} cannot be swept; give some from 1 to 16")
    form = KERNEL.of(rows, implementation)
    size = len(rows) if rows.is_cuda else CACHED // rows.shape[1]
    return torch.cat([form(block, tuple(bits), tuple(factors)) for block in rows.split(max(1, size))], -1)


def bytes_moved(rows: Tensor, bits: Sequence[int], factors: Sequence[float]) -> int:
    """Rows are read once, errors are written once."""
    return 4 * (int(rows.numel()) + len(rows) * len(bits) * len(factors))


def errors(rows: Tensor, bits: Sequence[int], factors: Sequence[float]) -> Tensor:
    """One candidate after the other."""
    low, high = ends(rows)
    return torch.stack(
        [torch.stack([(affine(rows, low, high, b, f) - rows).square().sum(-1) for f in factors]) for b in bits]
    )


def _single(factor: Tensor | float) -> Tensor | float:
    return factor.float() if isinstance(factor, Tensor) else factor


KERNEL = Kernel(errors, "search.kernels.fakequant_triton")
