"""Triton's form of `search.kernels.pairwise`: tiles of step pairs, differences in registers."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from search.kernels.pairwise import Tables, without_origin

TILE = 16  # steps on a side
COLUMNS = 32  # of one difference [TILE, TILE, COLUMNS]: 32 registers of each of 256 threads
STRETCH = 4096  # columns that a program sums in fp32
MOST = 512  # programs of one tile; beyond, stretches grow


@triton.jit
def _tables(values, tiles, partial, steps, width, stretch, TILE: tl.constexpr, COLUMNS: tl.constexpr):
    """One tile of pairs over one stretch of columns. Rows beyond the last step load as 0: they are the origin.

    Tiles vary fastest over the grid, so that programs that read the same columns meet in the L2 cache.
    """
    tile, part = tl.program_id(0), tl.program_id(1)
    side = tl.arange(0, TILE)
    s = tl.load(tiles + 2 * tile) * TILE + side
    t = tl.load(tiles + 2 * tile + 1) * TILE + side
    column = tl.arange(0, COLUMNS)
    first = part.to(tl.int64) * stretch
    l1 = tl.zeros([TILE, TILE], tl.float32)
    squares = tl.zeros([TILE, TILE], tl.float32)
    for start in range(0, stretch, COLUMNS):
        at = first + start + column
        inside = at[None, :] < width
        a = tl.load(values + s.to(tl.int64)[:, None] * width + at[None, :], (s[:, None] < steps) & inside, 0.0)
        b = tl.load(values + t.to(tl.int64)[:, None] * width + at[None, :], (t[:, None] < steps) & inside, 0.0)
        difference = a.to(tl.float32)[:, None, :] - b.to(tl.float32)[None, :, :]
        l1 += tl.sum(tl.abs(difference), 2)
        squares += tl.sum(difference * difference, 2)
    size = steps + 1
    place = part.to(tl.int64) * 2 * size * size + s[:, None] * size + t[None, :]
    kept = (s[:, None] < size) & (t[None, :] < size)
    tl.store(partial + place, l1, kept)
    tl.store(partial + place + size * size, squares, kept)


def tables(values: Tensor, band: int, l1: bool) -> Tables:
    """As the reference, from the differences themselves; no tiles beyond the band but those of the origin."""
    values = values.contiguous()
    steps, width = values.shape
    sides = triton.cdiv(steps + 1, TILE)
    pairs = [(i, j) for i in range(sides) for j in range(i, sides) if j == sides - 1 or (j - i - 1) * TILE + 1 <= band]
    tiles = torch.tensor(pairs, dtype=torch.int32, device=values.device)
    stretch = max(STRETCH, triton.cdiv(triton.cdiv(width, MOST), COLUMNS) * COLUMNS)
    parts = triton.cdiv(width, stretch)
    partial = values.new_zeros(parts, 2, steps + 1, steps + 1, dtype=torch.float32)
    if parts:
        grid = (len(pairs), parts)
        with torch.cuda.device_of(values):
            _tables[grid](
                values, tiles, partial, steps, width, stretch, TILE, COLUMNS, num_warps=8, enable_fp_fusion=True
            )
    absolute, squares = partial.sum(0, dtype=torch.float64)
    return without_origin(squares, absolute)
