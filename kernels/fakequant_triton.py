"""Triton's form of `search.kernels.fakequant`: rows stay in registers while all candidates are tried on them."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from search.kernels.fakequant import TINY
from search.kernels.fakequant import errors as reference

ELEMENTS = 4096  # of a program: several short rows, or one long one
LONGEST = 65536


@triton.jit
def _nearest(value):
    """Round half to even below 2**22; Triton's own rounding needs a GPU's library."""
    magic: tl.constexpr = 12582912.0  # 1.5 * 2**23
    return (value + magic) - magic


@triton.jit
def _errors(
    rows, tops, factors, shares, errors, count, width, n_bits, n_factors, tiny, ROWS: tl.constexpr, WIDTH: tl.constexpr
):
    """Tops [n_bits] are the grids' last values, shares [n_bits, n_factors] the factors over them."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    inside = (row < count)[:, None] & (column < width)[None, :]
    x = tl.load(rows + row.to(tl.int64)[:, None] * width + column[None, :], inside, 0.0)
    low, high = tl.minimum(tl.min(x, 1), 0.0), tl.maximum(tl.max(x, 1), 0.0)
    for b in range(n_bits):
        top = tl.load(tops + b)
        for f in range(n_factors):
            scale = tl.maximum((high - low) * tl.load(shares + b * n_factors + f), tiny)
            zero = _nearest(tl.div_rn(-low * tl.load(factors + f), scale))
            level = _nearest(tl.div_rn(x, scale[:, None])) + zero[:, None]
            level = tl.minimum(tl.maximum(level, 0.0), top)
            error = tl.where(inside, (level - zero[:, None]) * scale[:, None] - x, 0.0)
            place = row.to(tl.int64) * (n_bits * n_factors) + b * n_factors + f
            tl.store(errors + place, tl.sum(error * error, 1), row < count)


def errors(rows: Tensor, bits: Sequence[int], factors: Sequence[float]) -> Tensor:
    """As the reference; bits and factors are data, so that no list of them compiles anything anew."""
    count, width = rows.shape
    if width > LONGEST:
        return reference(rows, bits, factors)
    tops = torch.tensor([2**b - 1 for b in bits], dtype=torch.float64)
    clips = torch.tensor(factors, dtype=torch.float64)
    shares = clips / tops[:, None]
    result = rows.new_empty(count, len(bits), len(factors))
    padded = triton.next_power_of_2(width)
    size = max(1, ELEMENTS // padded)
    tops, clips, shares = (table.float().to(rows.device) for table in (tops, clips, shares))
    with torch.cuda.device_of(rows):
        _errors[(triton.cdiv(count, size),)](
            rows.contiguous(),
            tops,
            clips,
            shares,
            result,
            count,
            width,
            len(bits),
            len(factors),
            TINY,
            size,
            padded,
            num_warps=min(32, max(4, padded // 1024)),
            enable_fp_fusion=False,  # ties round as in the reference
        )
    return result.movedim(0, -1)
