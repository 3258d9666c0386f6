"""Stored values of nodes, and how much memory they take."""

import math
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


class ValueMissing(ScheduleError):
    """A node should read a value, and its branch has computed none: it began, or its batch changed, in this run."""


class Store:
    """Computed values of one node, per CFG branch; each is freed after the last step that reads it.

    With `latest` above 0 that many latest values of a branch are stored to the end instead: another plan may read them.
    """

    latest = 0
    copies = False  # whether the model may write into its outputs and inputs
    borrowed = False  # whether its output is in memory that a later call overwrites: CUDA graphs
    correction: "Correction | None" = None
    entered: Value = None  # the input of the node in the running call, where its residual is stored

    def __init__(self, name: str, plan: Plan, memory: "MemoryMeter") -> None:
        self.name, self.last_use = name, plan.last_use(name)
        self.tokens: Sequence[str] | Mapping[int, str] = plan.tokens[name]
        self.memory = memory
        self.values: dict[int, StoredSteps] = {}  # by branch; never written into, so that snapshots may share them
        self.weights: dict[tuple[int, int], list[float]] = {}  # (step, branch) -> forecast weights

    def clear(self) -> None:
        """Free all values."""
        for stored in self.values.values():
            for _, value in stored:
                self.memory.free(value)
        self.values.clear()
        self.entered = None

    def forget(self, branch: int) -> None:
        """Free the values of one branch."""
        for _, value in self.values.pop(branch, ()):
            self.memory.free(value)

    def uses(self, branch: int) -> Mapping[int, int]:
        """For each step whose value is read later: the last step that reads it."""
        return self.last_use

    def keep(self, step: int, branch: int, value: Value) -> None:
        """Store a computed value, at a step at which `keeps` is true."""
        stored = self.values.get(branch, ())
        if stored and stored[-1][0] == step:
            raise ScheduleError(
                f"{self.name} was called twice in one denoiser call at step {step}; its values cannot be kept "
                "apart (call disable_forward_chunking() if its feed-forward runs in chunks)"
            )
        if self.copies or self.borrowed:
            value = map_tensors(copy_value, value)
        elif torch.is_grad_enabled():
            value = map_tensors(Tensor.detach, value)
        self.memory.add(value)
        if self.latest and len(stored) == self.latest:
            self.memory.free(stored[0][1])
            stored = stored[1:]
        self.values[branch] = (*stored, (step, value))

    def keeps(self, step: int) -> bool:
        """Whether a value that is computed at this step is read later."""
        return self.latest > 0 or step in self.last_use

    def restore(self, values: Mapping[int, StoredSteps]) -> None:
        """Take the `values` of another store of this node."""
        self.clear()
        self.weights.clear()
        self.values = dict(values)
        for stored in self.values.values():
            for _, value in stored:
                self.memory.add(value)

    def read(self, step: int, branch: int, clock: Clock) -> Value:
        """The reused or forecast value of this step."""
        token = self.tokens[step]
        return self._read(step, branch, clock, 1 if token == "R" else values_read(token))

    def _read(self, step: int, branch: int, clock: Clock, needs: int) -> Value:
        stored = self.values.get(branch, ())
        if len(stored) < needs:
            raise ValueMissing(
                f"{self.name} reads {needs} value(s) at step {step}, but this CFG branch computed {len(stored)}; "
                "guidance must not be switched on during a run"
            )
        if needs == 1:
            value = map_tensors(copy_value, stored[-1][1]) if self.copies else stored[-1][1]
        else:
            stored = stored[-needs:]
            if (step, branch) not in self.weights:
                places = [clock.places[s] for s, _ in stored]
                self.weights[step, branch] = newton_weights(places, clock.places[step])
            weights = self.weights[step, branch]
            value = map_tensors(lambda *tensors: combine(tensors, weights), *(v for _, v in stored))
        if not self.latest:
            self._free(step, branch)
        return value

    def _free(self, step: int, branch: int) -> None:
        """Free the values that no later step reads."""
        uses, alive = self.uses(branch), []
        for pair in self.values[branch]:
            if uses.get(pair[0], math.inf) > step:  # what was computed in place of a missing value stays to the end
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
    """Computed values of one node by half of the guided batch, where some steps compute the conditional half only.

    The branch is here a half's place in the batch, 0 or 1: such a pipeline calls the denoiser once a step. Branch 2
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
        """Store the halves that a later step reads: of a full step both, of a narrow one the conditional half."""
        if self.guidance.narrow(step):
            if self.wants(step, self.guidance.conditional):
                super().keep(step, self.guidance.conditional, value)
            return
        together = self.halves[0].get(step) == self.halves[1].get(step)
        for place in (0, 1):
            if self.wants(step, place):  # halves that are freed at different steps must not share memory
                part = take_half(value, place)
                super().keep(step, place, part if together else map_tensors(copy_value, part))
        pictures = self.name == ROOT and value.dim() == 4
        if self.halves[self.apart].get(step) or (self.latest and pictures):
            super().keep(step, self.apart, self.guidance.difference(step, value))

    def wants(self, step: int, branch: int) -> bool:
        """Whether this half of a value that is computed at this step is read later."""
        return self.latest > 0 or step in self.halves[branch]

    def read(self, step: int, branch: int, clock: Clock) -> Value:
        """The reused or forecast value, [B, ...] at a full step, [B/2, ...] at a narrow one."""
        if self.guidance.narrow(step):
            return super().read(step, self.guidance.conditional, clock)
        needs = values_read(self.tokens[step])
        return join_halves(*(self._read(step, place, clock, needs) for place in (0, 1)))

    def restore(self, values: Mapping[int, StoredSteps]) -> None:
        """The same; the difference of the halves is computed where the other store did not keep it."""
        if self.name == ROOT and self.halves[self.apart] and self.apart not in values:
            second = dict(values.get(1, ()))  # narrow steps stored one half only
            both = [(step, join_halves(a, second[step])) for step, a in values.get(0, ()) if step in second]
            apart = tuple((step, self.guidance.difference(step, value)) for step, value in both)
            values = {**values, self.apart: apart}
        super().restore(values)

    def guided_with(self, step: int, clock: Clock) -> Tensor | None:
        """What guidance reads at this step: the last unconditional half (R), the last difference (A), or None."""
        kind = self.guidance.branch[step]
        if kind not in "RA":
            return None
        return self._read(step, self.apart if kind == "A" else 1 - self.guidance.conditional, clock, 1)


# From a step, its stored value, and a function that computes the node instead: the corrected value.
Correction = Callable[[int, Tensor, Callable[[], Tensor]], Tensor]


def split_halves(values: Mapping[int, StoredSteps]) -> dict[int, StoredSteps]:
    """Values of a `Store` as a `HalvedStore` has them."""
    return {place: tuple((step, take_half(value, place)) for step, value in values.get(0, ())) for place in (0, 1)}


def merge_halves(values: Mapping[int, StoredSteps]) -> dict[int, StoredSteps]:
    """Values of a `HalvedStore` that stored full steps only, as a `Store` has them."""
    pairs = zip(values.get(0, ()), values.get(1, ()), strict=True)
    return {0: tuple((step, join_halves(a, b)) for (step, a), (_, b) in pairs)}


class MemoryMeter:
    """Bytes of all stored values, now and at the peak."""

    def __init__(self) -> None:
        self.now = self.peak = 0

    def add(self, value: Value) -> None:
        self.now += value.nbytes if isinstance(value, Tensor) else nbytes(value)
        if self.now > self.peak:
            self.peak = self.now

    def free(self, value: Value) -> None:
        self.now -= value.nbytes if isinstance(value, Tensor) else nbytes(value)


def copy_value(tensor: Tensor) -> Tensor:
    """A copy without gradients."""
    return tensor.detach().clone()
