"""Stored values of nodes, and how much memory they take."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from search.kernels.forecast import combine
from search.schedule.apply.clock import Clock
from search.schedule.apply.forecast import newton_weights
from search.schedule.errors import ScheduleError
from search.schedule.model.nodes import ROOT
from search.schedule.plan.guidance import DIFFERENCE, WITH, WITHOUT, Guidance, last_use
from search.schedule.plan.plan import Plan
from search.schedule.plan.tokens import OFF, values_read
from search.schedule.values import Value, join_halves, map_tensors, nbytes, take_half

StoredSteps = tuple[tuple[int, Value], ...]  # steps and what was computed there, oldest first


class Store:
    """Computed values of one node, per CFG branch; each is freed after the last step that reads it.

    With `latest` above 0 the last so many values of a branch stay to the end instead: another plan may read them.
    """

    latest = 0
    copies = False  # whether the model may write into what it gave or is given
    borrowed = False  # whether its output lies in memory that a later call writes into: CUDA graphs
    correction: "Correction | None" = None
    entered: Value = None  # into the node of the running call, where its residual is kept

    def __init__(self, name: str, plan: Plan, memory: "MemoryMeter") -> None:
        self.name, self.last_use = name, plan.last_use(name)
        self.tokens: Sequence[str] | Mapping[int, str] = plan.tokens[name]
        self.memory = memory
        self.values: dict[int, StoredSteps] = {}  # by branch; never written into, so that others may hold them
        self.weights: dict[tuple[int, int], list[float]] = {}  # (step, branch) -> forecast weights

    def clear(self) -> None:
        for kept in self.values.values():
            for _, value in kept:
                self.memory.free(value)
        self.values.clear()
        self.entered = None

    def uses(self, branch: int) -> Mapping[int, int]:
        """For each step whose value is read later: the last step that reads it."""
        return self.last_use

    def keep(self, step: int, branch: int, value: Value) -> None:
        """Keep a computed value, at a step at which this store `keeps` any."""
        kept = self.values.get(branch, ())
        if kept and kept[-1][0] == step:
            raise ScheduleError(
                f"{self.name} was called twice in one denoiser call at step {step}; its values cannot be kept "
                "apart (call disable_forward_chunking() if its feed-forward runs in chunks)"
            )
        if self.copies or self.borrowed:
            value = map_tensors(copy_value, value)
        elif torch.is_grad_enabled():
            value = map_tensors(Tensor.detach, value)
        self.memory.add(value)
        if self.latest and len(kept) == self.latest:
            self.memory.free(kept[0][1])
            kept = kept[1:]
        self.values[branch] = (*kept, (step, value))

    def keeps(self, step: int) -> bool:
        """Whether what is computed at this step is read later."""
        return self.latest > 0 or step in self.last_use

    def restore(self, values: Mapping[int, StoredSteps]) -> None:
        """Take the `values` of another store of this node."""
        self.clear()
        self.weights.clear()
        self.values = dict(values)
        for kept in self.values.values():
            for _, value in kept:
                self.memory.add(value)

    def read(self, step: int, branch: int, clock: Clock) -> Value:
        """The value that the action of this step stands for."""
        token = self.tokens[step]
        return self._read(step, branch, clock, 1 if token == "R" else values_read(token))

    def _read(self, step: int, branch: int, clock: Clock, needs: int) -> Value:
        kept = self.values.get(branch, ())
        if len(kept) < needs:
            raise ScheduleError(
                f"{self.name} reads {needs} value(s) at step {step}, but this CFG branch computed {len(kept)}; "
                "guidance must not be switched on during a run"
            )
        if needs == 1:
            value = map_tensors(copy_value, kept[-1][1]) if self.copies else kept[-1][1]
        else:
            kept = kept[-needs:]
            if (step, branch) not in self.weights:
                places = [clock.places[s] for s, _ in kept]
                self.weights[step, branch] = newton_weights(places, clock.places[step])
            weights = self.weights[step, branch]
            value = map_tensors(lambda *tensors: combine(tensors, weights), *(v for _, v in kept))
        if not self.latest:
            self._free(step, branch)
        return value

    def _free(self, step: int, branch: int) -> None:
        """Let go of what no later step reads."""
        uses, alive = self.uses(branch), []
        for pair in self.values[branch]:
            if uses[pair[0]] > step:
                alive.append(pair)
            else:
                self.memory.free(pair[1])
        self.values[branch] = tuple(alive)


class StoreWithoutPlan(Store):
    """The store of a schedule without a plan: every node is computed at every step, whatever their number."""

    def __init__(self, name: str, memory: "MemoryMeter") -> None:
        self.name, self.memory = name, memory
        self.tokens, self.last_use = defaultdict(lambda: OFF), {}
        self.values, self.weights = {}, {}


class HalvedStore(Store):
    """Computed values of one node by half of the guided batch, where some steps compute the conditional one only.

    A half's place in the batch, 0 or 1, is its branch here: such a pipeline calls the denoiser once a step. Branch 2
    of the denoiser is the difference of its halves, which guidance may read.
    """

    apart = 2

    def __init__(self, name: str, plan: Plan, memory: "MemoryMeter", guidance: Guidance) -> None:
        super().__init__(name, plan, memory)
        self.guidance = guidance
        halves = last_use(plan, name, guidance.branch)
        place = guidance.conditional
        self.halves = {place: halves[WITH], 1 - place: halves[WITHOUT], self.apart: halves[DIFFERENCE]}
        self.last_use = halves[WITH] | halves[WITHOUT] | halves[DIFFERENCE]

    def uses(self, branch: int) -> Mapping[int, int]:
        return self.halves[branch]

    def keep(self, step: int, branch: int, value: Value) -> None:
        """Keep what a later step reads: of a full step both halves, of a narrow one the conditional half."""
        if self.guidance.narrow(step):
            if self.wants(step, self.guidance.conditional):
                super().keep(step, self.guidance.conditional, value)
            return
        together = self.halves[0].get(step) == self.halves[1].get(step)
        for place in (0, 1):
            if self.wants(step, place):  # halves that are freed apart must not share one piece of memory
                part = take_half(value, place)
                super().keep(step, place, part if together else map_tensors(copy_value, part))
        pictures = self.name == ROOT and value.dim() == 4
        if self.halves[self.apart].get(step) or (self.latest and pictures):
            super().keep(step, self.apart, self.guidance.difference(step, value))

    def wants(self, step: int, branch: int) -> bool:
        """Whether this half of what is computed at this step is read later."""
        return self.latest > 0 or step in self.halves[branch]

    def read(self, step: int, branch: int, clock: Clock) -> Value:
        """The value [B, ...] that the action of a full step stands for, [B/2, ...] at a narrow one."""
        if self.guidance.narrow(step):
            return super().read(step, self.guidance.conditional, clock)
        needs = values_read(self.tokens[step])
        return join_halves(*(self._read(step, place, clock, needs) for place in (0, 1)))

    def restore(self, values: Mapping[int, StoredSteps]) -> None:
        """The same; where another store did not keep it, with the difference of the halves."""
        if self.name == ROOT and self.halves[self.apart] and self.apart not in values:
            other = dict(values.get(1, ()))  # narrow steps kept one half only
            both = [(step, join_halves(a, other[step])) for step, a in values.get(0, ()) if step in other]
            apart = tuple((step, self.guidance.difference(step, value)) for step, value in both)
            values = {**values, self.apart: apart}
        super().restore(values)

    def guided_with(self, step: int, clock: Clock) -> Tensor | None:
        """What guidance reads at this step: the last unconditional half (R), the last difference (A), or nothing."""
        kind = self.guidance.branch[step]
        if kind not in "RA":
            return None
        return self._read(step, self.apart if kind == "A" else 1 - self.guidance.conditional, clock, 1)


# Of a step, the value that is read there, and what would compute the node there instead: the value to go on with.
Correction = Callable[[int, Tensor, Callable[[], Tensor]], Tensor]


def split_halves(values: Mapping[int, StoredSteps]) -> dict[int, StoredSteps]:
    """Values of a `Store` as a `HalvedStore` has them."""
    return {place: tuple((step, take_half(value, place)) for step, value in values.get(0, ())) for place in (0, 1)}


def merge_halves(values: Mapping[int, StoredSteps]) -> dict[int, StoredSteps]:
    """Values of a `HalvedStore` that has seen full steps only as a `Store` has them."""
    pairs = zip(values.get(0, ()), values.get(1, ()), strict=True)
    return {0: tuple((step, join_halves(a, b)) for (step, a), (_, b) in pairs)}


class MemoryMeter:
    """Bytes of all kept values, now and at the peak."""

    def __init__(self) -> None:
        self.now = self.peak = 0

    def add(self, value: Value) -> None:
        self.now += value.nbytes if isinstance(value, Tensor) else nbytes(value)
        if self.now > self.peak:
            self.peak = self.now

    def free(self, value: Value) -> None:
        self.now -= value.nbytes if isinstance(value, Tensor) else nbytes(value)


def copy_value(tensor: Tensor) -> Tensor:
    return tensor.detach().clone()
