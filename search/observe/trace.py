"""Watch one call of a denoiser from the inside: what each module was given and gave back, as shapes, and who fed whom.

Tensors are not held beyond the call of the module that comes next, so that watching takes little memory at any size.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from search.schedule.apply.calls import arguments_by_name

Signature = tuple[tuple[int, ...], torch.dtype]  # shape and type of a tensor


@dataclass(eq=False)
class ModuleCall:
    """One call of a module: its arguments and outputs as signatures; None where something is not a tensor."""

    name: str
    module: nn.Module
    order: int
    given: Mapping[str, Signature | None]
    first: str = ""  # name of its first argument that is a tensor
    outputs: tuple[Signature | None, ...] | None = None  # None: neither a tensor nor a tuple of tensors and Nones
    single: bool = True  # it returned a tensor by itself, not a tuple
    read_by: list[str] = field(default_factory=list)  # modules outside of it that were given its first output itself

    def arguments_like(self, output: Signature | None, taken: Sequence[str]) -> list[str]:
        """Names of its arguments of the shape and type of an output, but for those that are taken."""
        return [k for k, given in self.given.items() if output is not None and given == output and k not in taken]


@dataclass(frozen=True, eq=False)
class Link:
    """From a block to the next of its list: for each output the arguments that it may be, and how that was seen."""

    arguments: tuple[tuple[str, ...], ...]
    seen: str  # identity, value or shape


@dataclass(eq=False)
class Trace:
    """All that was seen in one call of a denoiser, in the order of execution."""

    calls: list[ModuleCall] = field(default_factory=list)
    links: dict[str, list[Link | None]] = field(default_factory=lambda: defaultdict(list))  # by list, block to block
    written: bool = False  # something was written into a tensor that a module had returned
    skips: set[str] = field(default_factory=set)  # modules whose output a later block got within a tuple


SEEN = ("identity", "value", "shape")


def trace_call(denoiser: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Trace:
    """Call a denoiser once with hooks on all its modules; they are taken off again whatever happens."""
    recorder = _Recorder(denoiser)
    handles = []
    try:
        for name, module in denoiser.named_modules():
            if name and not isinstance(module, nn.ModuleList | nn.ModuleDict):
                handles.append(module.register_forward_pre_hook(recorder.before(name), with_kwargs=True))
                handles.append(module.register_forward_hook(recorder.after(name), with_kwargs=True))
        with torch.no_grad():
            denoiser(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    recorder.check_written()
    recorder.trace.calls.sort(key=lambda call: call.order)
    return recorder.trace


class _Recorder:
    """The hooks of one call."""

    def __init__(self, denoiser: nn.Module) -> None:
        self.trace, self.count = Trace(), 0
        self.running: dict[str, list[ModuleCall]] = defaultdict(list)
        # By list: the block that returned last, and its output, until the next block of the list is called.
        self.pending: dict[str, tuple[ModuleCall, Any]] = {}
        self.lists = {
            f"{name}.{i}": name
            for name, module in denoiser.named_modules()
            if isinstance(module, nn.ModuleList)
            for i in range(len(module))
        }
        self.entries = {name for name, child in denoiser.named_children() if _is_layer(child)}
        self.kept: dict[str, Tensor] = {}  # outputs of layers at the top, which a later block may get as a skip
        self.latest: list[tuple[ModuleCall, Tensor, int]] = []  # the last few outputs, with torch's version counters

    def before(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = arguments_by_name(module, args, kwargs)
            tensors = {key: value for key, value in given.items() if isinstance(value, Tensor)}
            call = ModuleCall(name, module, self.count, {key: _signature(value) for key, value in given.items()})
            call.first = next(iter(tensors), "")
            self.count += 1
            self.running[name].append(call)
            self._find_readers(name, tensors)
            if name in self.lists:
                self._link(self.lists[name], given, tensors)

        return hook

    def after(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            call = self.running[name].pop()
            call.single = isinstance(output, Tensor)
            items = [output] if call.single else list(output) if type(output) in (tuple, list) else None
            if items is not None and all(item is None or isinstance(item, Tensor) for item in items):
                call.outputs = tuple(_signature(item) for item in items)
            self.trace.calls.append(call)
            tensor = next((item for item in items or () if isinstance(item, Tensor)), None)
            if tensor is not None:
                self.latest.append((call, tensor, tensor._version))
                self._forget()
                if name in self.entries:
                    self.kept[name] = tensor
            if name in self.lists:
                self.pending[self.lists[name]] = call, items

        return hook

    def _find_readers(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        for call, output, _ in self.latest:
            if call.name != name and not name.startswith(f"{call.name}."):
                call.read_by += [name for tensor in tensors.values() if tensor is output]

    def _forget(self) -> None:
        while len(self.latest) > 8:
            self._check_written(self.latest.pop(0))

    def check_written(self) -> None:
        """See whether something was written into the outputs that are still held."""
        for latest in self.latest:
            self._check_written(latest)

    def _check_written(self, latest: tuple[ModuleCall, Tensor, int]) -> None:
        _, tensor, version = latest
        self.trace.written |= tensor._version != version

    def _link(self, stack: str, given: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Write down which arguments of a block the outputs of the block before it are."""
        within = [leaf for value in given.values() if not isinstance(value, Tensor) for leaf in tree_leaves(value)]
        self.trace.skips |= {entry for entry, tensor in self.kept.items() if any(leaf is tensor for leaf in within)}
        call, items = self.pending.pop(stack, (None, None))
        if call is None:
            return
        links = self.trace.links[stack]
        if items is None or any(not isinstance(item, Tensor) for item in items):
            links.append(None)
            return
        found, worst = [], 0
        for item in items:
            names, how = _matching(item, tensors)
            if not names:
                links.append(None)
                return
            found.append(names)
            worst = max(worst, how)
        links.append(Link(tuple(found), SEEN[worst]))


def _is_layer(module: nn.Module) -> bool:
    """Whether it is a plain layer with weights."""
    return not list(module.children()) and bool(list(module.parameters()))


def _matching(output: Tensor, tensors: Mapping[str, Tensor]) -> tuple[tuple[str, ...], int]:
    """Names of the arguments that an output is, by identity, else by value, else by shape and type.

    Tensors on the meta device have neither an address nor values.
    """
    alike = {k: t for k, t in tensors.items() if t.shape == output.shape and t.dtype == output.dtype}
    place = output.data_ptr(), output.stride()
    same = tuple(k for k, t in alike.items() if t is output or (place[0] and (t.data_ptr(), t.stride()) == place))
    if same or output.is_meta:
        return (same, 0) if same else (tuple(alike), 2)
    equal = tuple(k for k, t in alike.items() if torch.equal(t, output))
    return (equal, 1) if equal else (tuple(alike), 2)


def _signature(value: Any) -> Signature | None:
    return (tuple(value.shape), value.dtype) if isinstance(value, Tensor) else None
