"""Values of nodes: a tensor, or a tuple of such values and Nones (two streams, a UNet block's skips)."""

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

Value = Any  # Tensor | tuple["Value | None", ...]


def leaves(value: Value) -> Iterator[Tensor]:
    """Its tensors, from left to right."""
    if isinstance(value, Tensor):
        yield value
    elif value is not None:
        for inner in value:
            yield from leaves(inner)


def map_tensors(change: Callable[..., Tensor], *values: Value) -> Value:
    """The value of the same structure whose tensors are `change` of the tensors at their place in `values`.

    A tensor that appears twice stays one tensor, as in a down block's sample and last skip.
    """
    changed: dict[tuple[int, ...], Tensor] = {}

    def inner(*parts: Value) -> Value:
        if isinstance(parts[0], Tensor):
            ids = tuple(map(id, parts))
            changed[ids] = change(*parts) if ids not in changed else changed[ids]
            return changed[ids]
        return None if parts[0] is None else tuple(inner(*each) for each in zip(*parts, strict=True))

    return change(*values) if isinstance(values[0], Tensor) else inner(*values)  # most are one tensor


def batch_rows(change: Callable[[Tensor], Tensor], value: Any, batch: int) -> Any:
    """An argument of the denoiser, with `change` of every tensor in it that has `batch` rows."""
    if isinstance(value, Tensor):
        return change(value) if value.dim() and len(value) == batch else value
    if isinstance(value, dict):
        return {key: batch_rows(change, inner, batch) for key, inner in value.items()}
    if type(value) in (list, tuple):
        return type(value)(batch_rows(change, inner, batch) for inner in value)
    return value


def nbytes(value: Value) -> int:
    """Bytes of its tensors; a tensor that appears twice counts once."""
    return sum({id(t): t.nbytes for t in leaves(value)}.values())


def take_half(value: Value, place: int) -> Value:
    """The first (0) or second (1) half of the batch."""
    return map_tensors(lambda tensor: tensor.chunk(2)[place], value)


def join_halves(*halves: Value) -> Value:
    """Two halves of a batch as one."""
    return map_tensors(lambda *parts: torch.cat(parts), *halves)


def copy_tensors(value: Any) -> Any:
    """The same structure with tensors of its own, without gradients; whoever has the other may write into it."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping):  # an output class of diffusers, which need not be registered with torch
        other: Any = copy.copy(value)
        for name, part in value.items():
            other[name] = copy_tensors(part)
        return other
    return tree_map_only(Tensor, lambda tensor: tensor.detach().clone(), value)
