"""What a node gives back: a tensor, or a tuple of such values and Nones (two streams, a UNet block's skips)."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

Value = Any  # Tensor | tuple["Value | None", ...]


def leaves(value: Value) -> Iterator[Tensor]:
    """Its tensors, from left to right."""
    if isinstance(value, Tensor):
        yield value
    elif value is not None:
        for inner in value:
            yield from leaves(inner)


def mapped(change: Callable[..., Tensor], *values: Value) -> Value:
    """The value of the same structure whose tensors are `change` of the tensors at their place in `values`."""
    first = values[0]
    if isinstance(first, Tensor):
        return change(*values)
    if first is None:
        return None
    return tuple(mapped(change, *inner) for inner in zip(*values, strict=True))


def nbytes(value: Value) -> int:
    """Bytes of its tensors; one that is there twice, as in a down block's sample and last skip, counts once."""
    return sum({id(t): t.numel() * t.element_size() for t in leaves(value)}.values())


def half(value: Value, place: int) -> Value:
    """The first (0) or second (1) half of the batch."""
    return mapped(lambda tensor: tensor.chunk(2)[place], value)


def joined(*halves: Value) -> Value:
    """Two halves of a batch as one."""
    return mapped(lambda *parts: torch.cat(parts), *halves)
