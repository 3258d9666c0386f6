"""A cache of states of runs with a limit on memory: on the device, then in host memory, then dropped."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from search.evaluate.execute.partial import RunState


@dataclass(eq=False)
class SharedTensor:
    """A tensor that several states share; how many hold it near (on its device) and far (in host memory)."""

    tensor: Tensor
    device: torch.device
    near: int = 0
    far: int = 0

    @property
    def size(self) -> int:
        return int(self.tensor.numel() * self.tensor.element_size())


PackedState = tuple[RunState, list[SharedTensor]]  # a state with shared tensors, and each of them once


class StateCache:
    """States by prefix id. The least recently used ones are moved to host memory, and dropped from there.

    Tensors that several states share are moved and counted once. On a CPU there is no second memory: what exceeds the
    limit is dropped.

    Args:
        near: Limit in bytes on the device; 0 holds nothing.
        far: Limit in bytes in host memory; None for four times as much.

    Attributes:
        bytes: Size of what is held on the device.
        far_bytes: Size of what is held in host memory.
    """

    def __init__(self, near: int = 2**31, far: int | None = None) -> None:
        self.limits = near, 4 * near if far is None else far
        self.bytes = self.far_bytes = 0
        self.near: OrderedDict[int, PackedState] = OrderedDict()
        self.far: OrderedDict[int, PackedState] = OrderedDict()
        self.cells: dict[int, SharedTensor] = {}  # the near ones, by the identity of their tensors

    def __contains__(self, number: int) -> bool:
        return number in self.near or number in self.far

    def touch(self, number: int) -> None:
        """Mark a state as used now, so that it is dropped later."""
        (self.near if number in self.near else self.far).move_to_end(number)

    def put(self, number: int, state: RunState) -> None:
        """Add a state, or mark it as used now."""
        if number in self:
            self.touch(number)
        else:
            cells: dict[int, SharedTensor] = {}
            packed = _changed(state, lambda value: _mapped(value, Tensor, lambda tensor: self._cell(tensor, cells)))
            for cell in cells.values():
                cell.near += 1
            self.near[number] = packed, list(cells.values())
            self._shrink()

    def get(self, number: int) -> RunState | None:
        """A state with its tensors on their device; None where it was dropped."""
        if number in self.far:
            packed, cells = self.far.pop(number)
            for cell in cells:
                self._bring(cell)
            self.near[number] = packed, cells
        if number not in self.near:
            return None
        self.near.move_to_end(number)
        state = _changed(self.near[number][0], lambda value: _mapped(value, SharedTensor, lambda cell: cell.tensor))
        self._shrink()
        return state

    def _cell(self, tensor: Tensor, cells: dict[int, SharedTensor]) -> SharedTensor:
        cell = self.cells.get(id(tensor))
        if cell is None:
            cell = self.cells[id(tensor)] = SharedTensor(tensor, tensor.device)
            self.bytes += cell.size
        return cells.setdefault(id(cell), cell)

    def _bring(self, cell: SharedTensor) -> None:
        if not cell.near:
            self.far_bytes -= cell.size
            self.bytes += cell.size
            cell.tensor = cell.tensor.to(cell.device)
            self.cells[id(cell.tensor)] = cell
        cell.near, cell.far = cell.near + 1, cell.far - 1

    def _shrink(self) -> None:
        near, far = self.limits
        while self.bytes > near and self.near:
            number, (packed, cells) = self.near.popitem(last=False)
            spilled = any(cell.device.type != "cpu" for cell in cells)
            for cell in cells:
                cell.near, cell.far = cell.near - 1, cell.far + spilled
                if not cell.near:
                    self._move_away(cell)
            if spilled:
                self.far[number] = packed, cells
        while self.far_bytes > far and self.far:
            for cell in self.far.popitem(last=False)[1][1]:
                cell.far -= 1
                if not cell.near and not cell.far:
                    self.far_bytes -= cell.size

    def _move_away(self, cell: SharedTensor) -> None:
        """Move a tensor that no state holds near any more to host memory, or drop it."""
        del self.cells[id(cell.tensor)]
        self.bytes -= cell.size
        if cell.far:
            self.far_bytes += cell.size
            cell.tensor = cell.tensor.cpu()


def _changed(state: RunState, change: Callable[[Any], Any]) -> RunState:
    return replace(state, latents=change(state.latents), snapshot=change(state.snapshot))


def _mapped(value: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    """The same plain data with every instance of a class changed."""
    if isinstance(value, kind):
        return change(value)
    if type(value) is dict:
        return {name: _mapped(part, kind, change) for name, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)([_mapped(part, kind, change) for part in value])
    return value
