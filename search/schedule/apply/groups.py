"""Groups of blocks in a run: the values that they store, and the decisions of their gates.

A decision is made once per denoiser call, at the group's first block, for the whole batch: a gate passes only if every
sample of the batch passes. So a picture may be computed more often in a batch than alone. Each decision waits for the
device. Processes that share a model decide independently of each other.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from search.kernels.forecast import combine
from search.schedule.apply.clock import Clock
from search.schedule.apply.forecast import newton_weights
from search.schedule.apply.stores import MemoryMeter
from search.schedule.errors import ScheduleError
from search.schedule.parts.gates import ASK
from search.schedule.plan.gates import Gate
from search.schedule.plan.guidance import Guidance, is_narrow
from search.schedule.plan.tokens import OFF, values_read
from search.schedule.values import Value, join_halves, map_tensors, take_half

LaneKey = tuple[int, int | None]  # of stored values: a CFG branch, or a half of the batch and its place in it


class LatestValues:
    """The latest values by lane, at most as many as later steps may read."""

    def __init__(self, memory: MemoryMeter, counts: Callable[[int], Sequence[int]]) -> None:
        """`counts` gives for a lane how many values are stored after each step [T]."""
        self.memory, self.counts = memory, counts
        self.values: dict[int, list[tuple[int, Value]]] = {}

    def add(self, step: int, lane: int, value: Value) -> None:
        """Store a value if a later step may read it."""
        if not (count := self.counts(lane)[step]):
            return
        self.trim(step, lane, count - 1)
        value = map_tensors(_compact, value)
        self.memory.add(value)
        self.values.setdefault(lane, []).append((step, value))

    def trim(self, step: int, lane: int, count: int | None = None) -> None:
        """Free what is not read after this step."""
        stored = self.values.get(lane, [])
        while len(stored) > (self.counts(lane)[step] if count is None else count):
            self.memory.free(stored.pop(0)[1])

    def clear(self) -> None:
        """Free all values."""
        for stored in self.values.values():
            for _, value in stored:
                self.memory.free(value)
        self.values.clear()


@dataclass
class GateState:
    """The state of a gate for one CFG branch: summed changes, steps not computed in a row, steps G that computed."""

    change: float = 0.0
    run: int = 0
    refused: int = 0


class Group:
    """One group and its gate in the runs of one denoiser."""

    def __init__(
        self, gate: Gate, streams: Sequence[str], clock: Clock, memory: MemoryMeter, guidance: Guidance | None
    ) -> None:
        """`streams` are the arguments that the outputs of the group's last block replace, in their order."""
        steps = len(gate.tokens)
        self.gate, self.streams, self.clock = gate, streams, clock
        self.guidance = guidance if guidance and is_narrow(guidance.branch) else None
        there = [True] * steps
        whole = gate.values_held(there)
        by_lane = {}
        if self.guidance:
            full = [not self.guidance.narrow(step) for step in range(steps)]
            by_lane = {1 - self.guidance.conditional: gate.values_held(full)}
        self.values = LatestValues(memory, lambda lane: by_lane.get(lane, whole)[0])
        self.signals = LatestValues(memory, lambda lane: by_lane.get(lane, whole)[1])
        self.running: dict[int, GateState] = {}
        self.token, self.inputs = OFF, None  # of the running call
        self.recorded: Tensor | None = None  # the input of the module that the signal reads
        self.probing = False
        self.counts: dict[str, int] = {}
        self.passed = self.refused = 0
        self.pictures, self.computed = [0] * steps, [0] * steps

    def enter(self, inputs: Value, hidden: Tensor, probe: Callable[[], Tensor]) -> None:
        """Decide for this call. `inputs` are the streams, `hidden` the main one; `probe` gives the modulated input."""
        step, branch = self.clock.step, self.clock.calls - 1
        lanes, running = self._lanes(), self.running.setdefault(branch, GateState())
        token = self.gate.tokens[step]
        gate_decides = token == ASK
        signal = self._signal(hidden, probe) if self._measures(token, lanes, running) else None
        if gate_decides:
            token = self.gate.then if self._passes(signal, lanes, running) else OFF
            self.passed += token != OFF
            self.refused += token == OFF
        running.run = 0 if token == OFF else running.run + 1
        running.refused += gate_decides and token == OFF
        running.change = 0.0 if token == OFF else running.change
        for lane, place in lanes:
            if signal is not None and (token == OFF or self.gate.stepwise):
                self.signals.add(step, lane, _part(signal, place))
            self.signals.trim(step, lane)
        self.token, self.inputs, self.recorded = token, inputs, None
        self.counts[token] = self.counts.get(token, 0) + 1
        self.pictures[step] += len(hidden)
        self.computed[step] += len(hidden) * (token == OFF)

    def leave(self, output: Value) -> None:
        """Store the group's output where a later step may read it."""
        step, inputs = self.clock.step, self.inputs
        self.inputs = None
        lanes = [(lane, place) for lane, place in self._lanes() if self.values.counts(lane)[step]]
        if lanes and self.gate.residual:
            output = map_tensors(torch.sub, output, inputs)
        for lane, place in lanes:
            self.values.add(step, lane, _part(output, place))

    def value(self) -> Value:
        """The value in place of the group's outputs, where it is not computed."""
        step, inputs = self.clock.step, self.inputs
        self.inputs = None
        parts = [self._read(lane) for lane, _ in self._lanes()]
        for lane, _ in self._lanes():
            self.values.trim(step, lane)
        value = join_halves(*parts) if len(parts) > 1 else parts[0]
        return map_tensors(torch.add, value, inputs) if self.gate.residual else value

    def clear(self) -> None:
        """Forget the values and decisions of the run."""
        self.values.clear()
        self.signals.clear()
        self.running.clear()
        self.inputs = self.recorded = None

    def stats(self) -> dict[str, Any]:
        """How often the gate passed and was refused, and per step the share of pictures that computed the group."""
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
        return token == OFF and any(self.signals.counts(lane)[self.clock.step] for lane, _ in lanes)

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
        """Relative L1 change of the signal, the largest of the batch; infinite where no earlier signal is stored."""
        forecast = self.gate.signal == "first_block_forecast"
        count = values_read(self.gate.then) if forecast else 1
        stored = self.signals.values.get(lane, [])[-count:]
        if len(stored) < count:
            return math.inf
        expected = self._combined(stored).float()
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
        assert self.recorded is not None
        recorded = self.recorded.detach()
        if self.guidance and len(recorded) == 2 * len(
            hidden
        ):  # the denoiser's input at a step that computes half of it
            recorded = self.guidance.split(recorded)[1]
        return hidden.detach() - recorded if self.gate.signal == "first_block_residual" else recorded.clone()

    def _read(self, lane: int) -> Value:
        count = values_read(self.token)
        stored = self.values.values.get(lane, [])[-count:]
        if len(stored) < count:
            raise ScheduleError(
                f"{self.gate.name} reads {count} value(s) at step {self.clock.step}, but this CFG branch computed "
                f"{len(stored)}; guidance must not be switched on during a run"
            )
        return self._combined(stored)

    def _combined(self, stored: Sequence[tuple[int, Value]]) -> Value:
        """The forecast at this step through the stored values; of one value itself."""
        if len(stored) == 1:
            return stored[0][1]
        weights = newton_weights([self.clock.places[step] for step, _ in stored], self.clock.places[self.clock.step])
        return map_tensors(lambda *tensors: combine(tensors, weights), *(value for _, value in stored))


def _part(value: Value, place: int | None) -> Value:
    return value if place is None else take_half(value, place)


def _compact(tensor: Tensor) -> Tensor:
    """The tensor without gradients, copied where it is a view: a view would keep the memory of its base."""
    tensor = tensor.detach()
    whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if whole else tensor.clone(memory_format=torch.contiguous_format)
