"""Cost tables of a denoiser, and the costs of a schedule by these tables."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from operator import mul
from typing import Any

import numpy as np

from search.profile.memory import peak_bytes
from search.schedule import Schedule
from search.schedule.model.nodes import ROOT
from search.schedule.parts.bits import FormatPart
from search.schedule.parts.formats import packed_bytes
from search.schedule.parts.gates import ASK
from search.schedule.plan.gates import Gate
from search.schedule.plan.tokens import OFF, OWN

FULL = 16  # bits of what is not rounded, whatever type it runs in


@dataclass(frozen=True)
class Costs:
    """Cost tables of one denoiser for one picture (both CFG halves); of a gate's steps G the worst case.

    They are made by `search.profile.count.count_costs`; `milliseconds` by `search.calibrate.latency.add_latency`.

    Attributes:
        steps: Steps of the teacher.
        component_macs: MACs of each component and each block in one call, beyond those of the components in it.
        floor_macs: MACs of one call outside of the blocks.
        value_bytes: Bytes of each node's value.
        milliseconds: `run` (the intercept: solver and decoding), `denoiser` (what a call takes besides its components)
            and one entry per component kind; empty until latency was calibrated.
        layer_macs: MACs of each linear layer and convolution in one call, by full name.
        layer_shapes: (outputs, inputs of one output) of each layer.
        layer_bytes: (weight, bias) of each layer in bytes.
        weight_bytes: Bytes of all parameters of the denoiser.
        gates: By group of blocks the share of the pictures for which its gate computed it at each step [T], see
            `measured`; a group that is missing counts as in the worst case.
        others: Tables of the other denoisers that schedules may run at some steps, by letter.

    Example:
        >>> from search.profile.costs import Costs
        >>> from search.schedule import Schedule
        >>> model = {"class": "PixArtTransformer2DModel", "stacks": {"transformer_blocks": 1}}
        >>> plan = {"rules": [["transformer_blocks.*:ff", "CRCR"]]}
        >>> schedule = Schedule.from_dict({"format": "schedule/1", "model": model, "steps": 4, "plan": plan})
        >>> block = "transformer_blocks.0"
        >>> costs = Costs(4, {f"{block}:attn1": 30, f"{block}:attn2": 20, f"{block}:ff": 40}, 10, {f"{block}:ff": 64})
        >>> costs.macs_by_step(schedule), costs.macs(schedule), costs.teacher_macs
        ([100.0, 60.0, 100.0, 60.0], 320, 400)
        >>> costs.peak_bytes(schedule)
        64
    """

    steps: int
    component_macs: Mapping[str, int]
    floor_macs: int
    value_bytes: Mapping[str, int]
    milliseconds: Mapping[str, float] = field(default_factory=dict)
    layer_macs: Mapping[str, int] = field(default_factory=dict)
    layer_shapes: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    layer_bytes: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    weight_bytes: int = 0
    gates: Mapping[str, Sequence[float]] = field(default_factory=dict)
    others: Mapping[str, "Costs"] = field(default_factory=dict)

    @cached_property
    def call_macs(self) -> int:
        """MACs of one call of the denoiser."""
        return self.floor_macs + sum(self.component_macs.values())

    @property
    def teacher_macs(self) -> int:
        """MACs of the teacher's run."""
        return self.steps * self.call_macs

    @cached_property
    def block_macs(self) -> float:
        """Mean MACs of a block: the unit in which search cost is counted, one block execution."""
        blocks = len({name.partition(":")[0] for name in self.component_macs})  # a block's own costs have no ":"
        return sum(self.component_macs.values()) / blocks

    @property
    def all_bytes(self) -> int:
        """Bytes of the latest outputs of all components, which most cache runtimes keep."""
        return sum(self.value_bytes[name] for name in self.component_macs if ":" in name)

    def macs(self, schedule: Schedule) -> int:
        """Executed MACs of one picture, the sum of `macs_by_step`."""
        return round(sum(self.macs_by_step(schedule)))

    def macs_by_step(self, schedule: Schedule) -> list[float]:
        """MACs of one picture that each step [T] executes; elided layers execute none.

        A step that computes half of the batch counts half; a group with a gate counts as in the worst case, or as
        `measured`.

        Raises:
            ValueError: An elided layer, or another denoiser that the schedule names, was not counted.
        """
        plan, computed = schedule.plan, self._computed_by_step(schedule)
        parts = [(ROOT, self.floor_macs), *self.component_macs.items()]
        for layer, form in schedule.bits.items():
            if form.elided:
                parts.append((self._place(schedule, layer), -self._lookup(layer, self.layer_macs)))
        totals: dict[tuple[float, ...], int] = {}  # many nodes are computed at the same steps
        for name, macs in parts:
            row = computed(name)
            totals[row] = totals.get(row, 0) + macs
        by_step = [sum(map(mul, totals.values(), step)) for step in zip(*totals, strict=True)]
        for t, (letter, token, part) in enumerate(zip(plan.at, plan.tokens[ROOT], self.share(schedule), strict=False)):
            if letter != OWN and token == OFF:
                by_step[t] += part * self._other(letter).call_macs
        return by_step

    def bops(self, schedule: Schedule) -> int:
        """Bit operations of one picture: executed MACs times weight bits times activation bits, 16 by 16 unrounded."""
        saved = 0.0
        for form, macs in self._rounded(schedule):
            if not form.elided:
                saved += macs * (FULL * FULL - (form.weight or FULL) * (form.activation or FULL))
        return round(self.macs(schedule) * FULL * FULL - saved)

    @property
    def teacher_bops(self) -> int:
        """Bit operations of the teacher's run."""
        return self.teacher_macs * FULL * FULL

    def size(self, schedule: Schedule) -> int:
        """Bytes of the weights of all denoisers that run: rounded at their nominal bits, elided as 16-bit tables.

        Raises:
            ValueError: Weights, a layer, or another denoiser were not counted.
        """
        if not self.weight_bytes:
            raise ValueError("weights were not counted; make the tables with count_costs")
        total = sum(self._other(letter).weight_bytes for letter in self.stitched(schedule))
        if OWN not in (schedule.plan.at or OWN):
            return total
        total += self.weight_bytes
        for name, form in schedule.bits.items():
            (outputs, inputs), (weight, bias) = self._lookup(name, self.layer_shapes), self.layer_bytes[name]
            if form.elided:
                total += 2 * outputs * (schedule.steps or self.steps) - weight - bias
            else:
                total += packed_bytes(form, outputs, inputs) - weight
                total += 4 * outputs if name in schedule.corrected_layers else 0  # a factor and a summand in fp16
        return total

    @property
    def all_weight_bytes(self) -> int:
        """Bytes of the weights of the denoiser and of all other denoisers."""
        return self.weight_bytes + sum(costs.weight_bytes for costs in self.others.values())

    def _rounded(self, schedule: Schedule) -> list[tuple[FormatPart, float]]:
        """Format and executed full-precision MACs of each layer that has one."""
        bits = schedule.bits
        if not bits:
            return []
        computed = self._computed_by_step(schedule)
        return [
            (form, self._lookup(layer, self.layer_macs) * sum(computed(self._place(schedule, layer))))
            for layer, form in bits.items()
        ]

    @staticmethod
    def _place(schedule: Schedule, layer: str) -> str:
        """The node that a layer is computed with: its component or block, else the whole denoiser."""
        node = schedule.tree.node_of(layer)
        return node.name if node.kind in ("component", "block") else ROOT

    @staticmethod
    def _lookup(name: str, table: Mapping[str, Any]) -> Any:
        if name not in table:
            raise ValueError(f"bits.layers.{name} was not counted; the tables have {len(table)} layers")
        return table[name]

    def share(self, schedule: Schedule) -> list[float]:
        """Part of the batch that each step computes: 1, or 0.5 where guidance computes the conditional half only."""
        branch = schedule.guidance.branch if schedule.guidance else None
        return [1.0 if kind == "C" else 0.5 for kind in branch or "C" * (schedule.steps or 0)]

    def _computed_by_step(self, schedule: Schedule) -> Callable[[str], tuple[float, ...]]:
        """Which part of the batch runs through a node at each step [T], in groups in the worst case or as measured."""
        tokens, at = schedule.plan.tokens, schedule.plan.at
        whole = self.share(schedule) or [1.0] * schedule.plan.steps
        share = [part if not at or at[t] == OWN else 0.0 for t, part in enumerate(whole)]
        groups = {block: self._gated(gate, share) for gate in schedule.gates for block in gate.blocks}
        rows: dict[tuple[str, ...], tuple[float, ...]] = {}

        def computed(name: str) -> tuple[float, ...]:
            if (block := name.partition(":")[0]) in groups:
                return groups[block]
            if (row := tuple(tokens[name])) not in rows:
                rows[row] = tuple(map(mul, share, map(OFF.__eq__, row)))
            return rows[row]

        return computed

    def _gated(self, gate: Gate, share: Sequence[float]) -> tuple[float, ...]:
        """Which part of the batch a group computes at each step [T]."""
        measured = self.gates.get(gate.name, gate.worst(share))
        ran = zip(gate.tokens, measured, share, strict=True)
        return tuple(part * {OFF: 1.0, ASK: done}.get(token, 0.0) for token, done, part in ran)

    def measured(self, gates: Mapping[str, Sequence[float]]) -> "Costs":
        """The same tables with what gates decided in a run.

        Args:
            gates: By group the share of the pictures for which it was computed at each step [T].
        """
        return replace(self, gates=gates)

    def stitched(self, schedule: Schedule) -> dict[str, float]:
        """How many times the whole batch runs through each of the other denoisers that the schedule names."""
        runs: dict[str, float] = {}
        for letter, token, part in zip(
            schedule.plan.at, schedule.plan.tokens[ROOT], self.share(schedule), strict=False
        ):
            if letter != OWN:
                runs[letter] = runs.get(letter, 0) + part * (token == OFF)
        return runs

    def _other(self, letter: str) -> "Costs":
        if letter not in self.others:
            counted = ", ".join(self.others) or "none"
            raise ValueError(f"models.names.{letter} was not counted; the tables have other denoisers: {counted}")
        return self.others[letter]

    def latency(self, schedule: Schedule) -> float:
        """Predicted milliseconds of one picture; ValueError where latency was not calibrated."""
        if not self.milliseconds:
            raise ValueError("latency was not calibrated; call search.calibrate.latency.add_latency first")
        return float(np.dot(self.features(schedule), list(self.milliseconds.values())))

    @property
    def teacher_latency(self) -> float:
        """Predicted milliseconds of the teacher's run."""
        kinds = list(self.kinds.values())
        counts = [1, self.steps, *(self.steps * n for n in kinds), *(0 for _ in self.others)]
        return float(np.dot(counts, list(self.milliseconds.values())))

    @cached_property
    def kinds(self) -> dict[str, int]:
        """Component kinds and how many nodes each has; nodes of unlike cost count by their share of the mean."""
        counts: dict[str, int] = {}
        for name in self._parts:
            kind = name.rpartition(":")[2]
            counts[kind] = counts.get(kind, 0) + 1
        return counts

    @cached_property
    def _parts(self) -> dict[str, float]:
        """Components by how much they cost in terms of the mean of their kind."""
        macs = {name: m for name, m in self.component_macs.items() if ":" in name}
        totals: dict[str, list[int]] = {}
        for name, m in macs.items():
            totals.setdefault(name.rpartition(":")[2], []).append(m)
        means = {kind: sum(values) / len(values) for kind, values in totals.items()}
        kinds = {name: name.rpartition(":")[2] for name in macs}
        return {name: m / means[kinds[name]] if means[kinds[name]] else 1.0 for name, m in macs.items()}

    def features(self, schedule: Schedule) -> list[float]:
        """The features [2+K] that latency is linear in, in the order of `milliseconds`.

        1, calls of the denoiser, computed components of each kind, calls of each other denoiser. A step that computes
        half of the batch counts half.
        """
        computed = self._computed_by_step(schedule)
        counts: dict[str, float] = dict.fromkeys(self.kinds, 0)
        for name, part in self._parts.items():
            counts[name.rpartition(":")[2]] += part * sum(computed(name))
        stitched = self.stitched(schedule)
        return [1, sum(computed(ROOT)), *counts.values(), *(stitched.get(letter, 0) for letter in self.others)]

    @property
    def timed(self) -> list[str]:
        """Names of the features after the first two: component kinds, `model S`, ..."""
        return [*self.kinds, *(f"model {letter}" for letter in self.others)]

    def peak_bytes(self, schedule: Schedule) -> int:
        """Peak bytes of kept values; equals what the applied schedule reports for a batch of one picture.

        Of groups whose gates are asked it is a bound, see `search.profile.memory.peak_bytes`.
        """
        return peak_bytes(schedule, self.value_bytes)
