"""Triton's form of `search.kernels.forecast`: one launch, sums in registers."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


@triton.jit
def _weighted_sum(out, values, weights, size, BLOCK: tl.constexpr):
    """`values` and `weights` are tuples: compiled once for each number of values, whatever the weights."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    total = tl.zeros([BLOCK], tl.float32)
    for k in tl.static_range(len(values)):
        total += tl.load(values[k] + at, inside).to(tl.float32) * weights[k]
    tl.store(out + at, total.to(out.dtype.element_ty), inside)


def weighted_sum(values: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """As the reference."""
    contiguous = tuple(value.contiguous() for value in values)
    if odd := [v for v in contiguous if v.shape != contiguous[0].shape or v.dtype != contiguous[0].dtype]:
        kinds = [f"{list(v.shape)} in {v.dtype}" for v in (contiguous[0], odd[0])]
        raise ValueError(f"a forecast is of values of one shape and type, got {' and '.join(kinds)}")
    out = torch.empty_like(contiguous[0])
    size = out.numel()
    with torch.cuda.device_of(out):
        _weighted_sum[(triton.cdiv(size, BLOCK),)](
            out, contiguous, tuple(map(float, weights)), size, BLOCK, enable_fp_fusion=True
        )
    return out
