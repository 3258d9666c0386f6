"""Gates at work: what a group of blocks keeps, what its gate measures, and the hooks that act on it.

A decision is made once per denoiser call, when it reaches the group's first block, for the whole batch: a gate passes
only if every sample of the batch passes. So a picture may be computed more often in a batch than alone, never less
often than the batch. Each decision waits for the device. Processes that share a model decide apart from each other.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from search.kernels.forecast import combine
from search.schedule.apply.calls import arguments_by_name, parameter_names, replaced_arguments
from search.schedule.apply.clock import Clock
from search.schedule.apply.forecast import newton_weights
from search.schedule.apply.hooks import StepHook
from search.schedule.apply.outputs import check_block
from search.schedule.apply.stores import MemoryMeter
from search.schedule.errors import ScheduleError
from search.schedule.model.nodes import Tree
from search.schedule.parts.gates import ASK
from search.schedule.plan.gates import Gate
from search.schedule.plan.guidance import Guidance, is_narrow
from search.schedule.plan.tokens import OFF, values_read
from search.schedule.values import Value, join_halves, map_tensors, take_half

LaneKey = tuple[int, int | None]  # what values are kept under: a branch, or a half of the batch and its place in it


class KeptValues:
    """The latest values by lane, no more of them than later steps may read."""

    def __init__(self, memory: MemoryMeter, held: Callable[[int], Sequence[int]]) -> None:
        """`held` says of a lane how many values are kept after each step."""
        self.memory, self.held = memory, held
        self.values: dict[int, list[tuple[int, Value]]] = {}

    def add(self, step: int, lane: int, value: Value) -> None:
        """Keep a value if it may be read."""
        if not (count := self.held(lane)[step]):
            return
        self.trim(step, lane, count - 1)
        value = map_tensors(_owned, value)
        self.memory.add(value)
        self.values.setdefault(lane, []).append((step, value))

    def trim(self, step: int, lane: int, count: int | None = None) -> None:
        """Free what is not read after this step."""
        kept = self.values.get(lane, [])
        while len(kept) > (self.held(lane)[step] if count is None else count):
            self.memory.free(kept.pop(0)[1])

    def clear(self) -> None:
        for kept in self.values.values():
            for _, value in kept:
                self.memory.free(value)
        self.values.clear()


@dataclass
class GateState:
    """What a gate remembers of one CFG branch: summed changes, steps not computed in a row, steps G computed."""

    change: float = 0.0
    run: int = 0
    refused: int = 0


class Group:
    """One gate at work on one denoiser."""

    def __init__(
        self, gate: Gate, streams: Sequence[str], clock: Clock, memory: MemoryMeter, guidance: Guidance | None
    ) -> None:
        """`streams` are the arguments that the outputs of the group's last block replace, in their order."""
        steps = len(gate.tokens)
        self.gate, self.streams, self.clock = gate, streams, clock
        self.guidance = guidance if guidance and is_narrow(guidance.branch) else None
        there = [True] * steps
        whole = gate.held(there)
        by_lane = {}
        if self.guidance:
            full = [not self.guidance.narrow(step) for step in range(steps)]
            by_lane = {1 - self.guidance.conditional: gate.held(full)}
        self.values = KeptValues(memory, lambda lane: by_lane.get(lane, whole)[0])
        self.signals = KeptValues(memory, lambda lane: by_lane.get(lane, whole)[1])
        self.running: dict[int, GateState] = {}
        self.token, self.inputs = OFF, None  # of the running call
        self.seen: Tensor | None = None  # by the module that the signal watches
        self.probing = False
        self.counts: dict[str, int] = {}
        self.passed = self.refused = 0
        self.pictures, self.computed = [0] * steps, [0] * steps

    def enter(self, inputs: Value, hidden: Tensor, probe: Callable[[], Tensor]) -> None:
        """Decide for this call. `inputs` are the streams, `hidden` the main one; `probe` measures where asked to."""
        step, branch = self.clock.step, self.clock.calls - 1
        lanes, running = self._lanes(), self.running.setdefault(branch, GateState())
        token = self.gate.tokens[step]
        asked = token == ASK
        signal = self._signal(hidden, probe) if self._measures(token, lanes, running) else None
        if asked:
            token = self.gate.then if self._passes(signal, lanes, running) else OFF
            self.passed += token != OFF
            self.refused += token == OFF
        running.run = 0 if token == OFF else running.run + 1
        running.refused += asked and token == OFF
        running.change = 0.0 if token == OFF else running.change
        for lane, place in lanes:
            if signal is not None and (token == OFF or self.gate.stepwise):
                self.signals.add(step, lane, _part(signal, place))
            self.signals.trim(step, lane)
        self.token, self.inputs, self.seen = token, inputs, None
        self.counts[token] = self.counts.get(token, 0) + 1
        self.pictures[step] += len(hidden)
        self.computed[step] += len(hidden) * (token == OFF)

    def leave(self, output: Value) -> None:
        """Keep what the group gave where a later step may read it."""
        step, inputs = self.clock.step, self.inputs
        self.inputs = None
        lanes = [(lane, place) for lane, place in self._lanes() if self.values.held(lane)[step]]
        if lanes and self.gate.residual:
            output = map_tensors(torch.sub, output, inputs)
        for lane, place in lanes:
            self.values.add(step, lane, _part(output, place))

    def value(self) -> Value:
        """What stands for the group's outputs where it is not computed."""
        step, inputs = self.clock.step, self.inputs
        self.inputs = None
        parts = [self._read(lane) for lane, _ in self._lanes()]
        for lane, _ in self._lanes():
            self.values.trim(step, lane)
        value = join_halves(*parts) if len(parts) > 1 else parts[0]
        return map_tensors(torch.add, value, inputs) if self.gate.residual else value

    def clear(self) -> None:
        """Forget the run."""
        self.values.clear()
        self.signals.clear()
        self.running.clear()
        self.inputs = self.seen = None

    def stats(self) -> dict[str, Any]:
        """How often the gate passed and was refused, and the share of pictures that computed the group, per step."""
        share = [c / n if n else 0.0 for c, n in zip(self.computed, self.pictures, strict=True)]
        return {"group": self.gate.name, "passed": self.passed, "refused": self.refused, "computed": share}

    # The decision

    def _lanes(self) -> list[LaneKey]:
        if self.guidance is None:
            return [(self.clock.calls - 1, None)]
        return [(self.guidance.conditional, None)] if self.guidance.narrow(self.clock.step) else [(0, 0), (1, 1)]

    def _measures(self, token: str, lanes: Sequence[LaneKey], running: GateState) -> bool:
        if token == ASK:
            return not self._spent(running)
        return token == OFF and any(self.signals.held(lane)[self.clock.step] for lane, _ in lanes)

    def _spent(self, running: GateState) -> bool:
        return self.gate.most is not None and running.refused >= self.gate.most

    def _passes(self, signal: Tensor | None, lanes: Sequence[LaneKey], running: GateState) -> bool:
        gate = self.gate
        enough = all(len(self.values.values.get(lane, ())) >= values_read(gate.then) for lane, _ in lanes)
        if not enough or signal is None:
            return enough
        changes = [self._change(lane, _part(signal, place)) for lane, place in lanes]
        change = math.nan if any(map(math.isnan, changes)) else max(changes)
        running.change += change
        threshold = gate.threshold[self.clock.step]
        near = threshold > 0 and (running.change if gate.accumulate else change) < threshold
        return near and (gate.max_run is None or running.run < gate.max_run)

    def _change(self, lane: int, actual: Tensor) -> float:
        """Relative L1 change of the signal, the largest of the batch; infinite where there is nothing to compare."""
        forecast = self.gate.signal == "first_block_forecast"
        count = values_read(self.gate.then) if forecast else 1
        kept = self.signals.values.get(lane, [])[-count:]
        if len(kept) < count:
            return math.inf
        expected = self._combined(kept).float()
        difference = (actual.float() - expected).abs().flatten(1).mean(1)
        change = difference / (actual.float() if forecast else expected).abs().flatten(1).mean(1)
        if self.gate.poly:  # highest power first, as published
            rescaled = torch.zeros_like(change)
            for coefficient in self.gate.poly:
                rescaled = rescaled * change + coefficient
            change = rescaled
        return float(change.max())

    def _signal(self, hidden: Tensor, probe: Callable[[], Tensor]) -> Tensor:
        match self.gate.signal:
            case "first_block_forecast":
                return hidden.detach()
            case "modulated_input":
                return probe().detach()
        assert self.seen is not None
        seen = self.seen.detach()
        if self.guidance and len(seen) == 2 * len(hidden):  # the denoiser's input at a step that computes half of it
            seen = self.guidance.split(seen)[1]
        return hidden.detach() - seen if self.gate.signal == "first_block_residual" else seen.clone()

    def _read(self, lane: int) -> Value:
        count = values_read(self.token)
        kept = self.values.values.get(lane, [])[-count:]
        if len(kept) < count:
            raise ScheduleError(
                f"{self.gate.name} reads {count} value(s) at step {self.clock.step}, but this CFG branch computed "
                f"{len(kept)}; guidance must not be switched on during a run"
            )
        return self._combined(kept)

    def _combined(self, kept: Sequence[tuple[int, Value]]) -> Value:
        """The forecast at this step through the kept values."""
        if len(kept) == 1:
            return kept[0][1]
        weights = newton_weights([self.clock.places[step] for step, _ in kept], self.clock.places[self.clock.step])
        return map_tensors(lambda *tensors: combine(tensors, weights), *(value for _, value in kept))


class GroupHook(StepHook):
    """A block of a group: the first one asks, the last one gives the value where the group is not computed."""

    def __init__(self, clock: Clock, group: Group, first: bool, last: bool, outputs: Sequence[str]) -> None:
        super().__init__(clock)
        self.group, self.first, self.last, self.outputs = group, first, last, outputs
        self.verified = False

    def action(self, step: int) -> Callable:
        return self._decided

    def _decided(self, *args: Any, **kwargs: Any) -> Value:
        group, module = self.group, self.module
        if self.first:
            inputs = replaced_arguments(module, args, kwargs, group.streams)
            group.enter(inputs, _first(module, args, kwargs), lambda: self._probe(args, kwargs))
        if group.token == OFF:
            output = self.forward(*args, **kwargs)
            if not self.verified:
                name = f"{group.gate.name}: a {type(module).__name__}"
                check_block(name, self.outputs, arguments_by_name(module, args, kwargs), output)
                self.verified = True
            if self.last:
                group.leave(output)
            return output
        return group.value() if self.last else replaced_arguments(module, args, kwargs, self.outputs)

    def _probe(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
        """What enters the block's first component: the block is run up to there and left by an exception."""
        self.group.probing = True
        try:
            self.forward(*args, **kwargs)
        except _Reached as reached:
            return reached.value
        finally:
            self.group.probing = False
        raise ScheduleError(f"{self.group.gate.blocks[0]} runs none of its components; use signal model_input")


class _Reached(Exception):
    """A component is about to run, on this value."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value


def watch_blocks(group: Group, tree: Tree, denoiser: nn.Module) -> list[RemovableHandle]:
    """Let the group see what its signal needs of modules outside of it, or within its first block."""
    first, signal = group.gate.blocks[0], group.gate.signal

    def see(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        group.seen = _first(module, args, kwargs)

    def stop(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if group.probing:
            raise _Reached(_first(module, args, kwargs))

    watched: list[tuple[nn.Module | None, Callable]] = []
    if signal == "first_block_residual":
        watched = [(tree.module(denoiser, tree.nodes[group.gate.before]), see)]
    elif signal == "model_input":
        watched = [(denoiser, see)]
    elif signal == "modulated_input":
        watched = [(tree.module(denoiser, node), stop) for node in tree if node.parent == first]
    return [module.register_forward_pre_hook(hook, with_kwargs=True) for module, hook in watched if module is not None]


def _first(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    """The first argument of a call: the main stream."""
    return arguments_by_name(module, args, kwargs)[parameter_names(type(module))[0]]


def _part(value: Value, place: int | None) -> Value:
    return value if place is None else take_half(value, place)


def _owned(tensor: Tensor) -> Tensor:
    """Without gradients, and with memory of its own: a view would hold all that it is a view of."""
    tensor = tensor.detach()
    whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if whole else tensor.clone(memory_format=torch.contiguous_format)
