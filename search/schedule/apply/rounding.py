"""Rounding to few bits, simulated: values are rounded to a grid of 2^bits levels and stay in their own type."""

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from search.kernels.fakequant import affine, ends, sweep
from search.schedule.parts.bits import FormatPart

SHRINK = (1.0, 0.9, 0.8, 0.7, 0.6)  # of a range, tried where clipping may cost less than a coarse grid
Range: TypeAlias = Sequence[float] | Tensor  # least and greatest value


def round_weight(weight: Tensor, form: FormatPart) -> Tensor:
    """A weight [outputs, inputs] or [outputs, channels, h, w] rounded to its format, in its own type.

    8 bits are symmetric, as in torchao. Below, the range from least to greatest is shrunk by the factor
    that gives the least squared error. Each is done per row, per group of a flattened row, and with `split` for
    the channels before and after it alone.
    """
    parts = [_round_rows(part, form) for part in halves(weight, form.split)]
    return (parts[0] if len(parts) == 1 else torch.cat(parts, 1)).to(weight.dtype)


def _round_rows(weight: Tensor, form: FormatPart) -> Tensor:
    assert form.weight is not None
    rows = weight.detach().float().flatten(1)
    groups = rows.reshape(len(rows), -1, form.group or rows.shape[1])
    if form.weight == 8:
        return _symmetric(groups, 8).reshape(weight.shape)
    groups = groups.flatten(0, 1)
    least = sweep(groups, [form.weight], SHRINK)[0].argmin(0)
    factor = torch.tensor(SHRINK, dtype=torch.float64, device=groups.device)[least]
    return affine(groups, *ends(groups), form.weight, factor[:, None]).reshape(weight.shape)


def round_activation(value: Tensor, bits: int) -> Tensor:
    """Values [..., inputs] with `bits` bits and one scale per token, in their own type."""
    return _symmetric(value.float(), bits).to(value.dtype)


def round_picture(value: Tensor, bits: int) -> Tensor:
    """Values [B, C, h, w] with `bits` bits, each picture on a grid from its least to its greatest value."""
    dims = tuple(range(1, value.ndim))
    low, high = value.amin(dims, keepdim=True).float(), value.amax(dims, keepdim=True).float()
    return affine(value.float(), low.clamp(max=0), high.clamp(min=0), bits).to(value.dtype)


def round_static(value: Tensor, bits: int, span: Range) -> Tensor:
    """Values with `bits` bits on the grid of a given range; values outside of it are clipped."""
    low, high = (torch.as_tensor(end, dtype=torch.float32, device=value.device) for end in span)
    return affine(value.float(), low, high, bits).to(value.dtype)


def halves(value: Tensor, split: int | None) -> tuple[Tensor, ...]:
    """The channels (dimension 1) before and after a split; the whole where there is none."""
    return (value,) if split is None else (value[:, :split], value[:, split:])


def _symmetric(value: Tensor, bits: int) -> Tensor:
    """Rounded with one scale for each last axis: the grid of torchao's int8."""
    scale = value.abs().amax(-1, keepdim=True) / (2**bits / 2 - 0.5)
    scale = scale.clamp(min=torch.finfo(torch.float32).eps)
    return (value * (1 / scale)).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * scale
