"""What happens at a planned node: compute, reuse, forecast or skip, with values kept as long as they are read."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from diffusers.hooks import ModelHook
from torch import Tensor, nn

from search.schedule.errors import ScheduleError
from search.schedule.forecast import combine, newton_weights
from search.schedule.guidance import DIFFERENCE, WITH, WITHOUT, Guidance, last_use
from search.schedule.nodes import ROOT
from search.schedule.plan import ABSENT, OFF, Plan, history
from search.schedule.sampler import Clock
from search.schedule.stitch import Stitch
from search.schedule.values import Value, half, joined, mapped, nbytes
from search.schedule.verify import argument, check_block, check_component, check_value, first

if TYPE_CHECKING:
    from search.schedule.ahead import Ahead


class Store:
    """Computed values of one node, per CFG branch; each is freed after the last step that reads it.

    With `latest` above 0 the last so many values of a branch stay to the end instead: another plan may read them.
    """

    latest = 0
    copies = False  # whether the model may write into what it gave or is given
    correction: "Correction | None" = None
    entered: Value = None  # into the node of the running call, where its residual is kept

    def __init__(self, name: str, plan: Plan, memory: "Memory") -> None:
        self.name, self.last_use = name, plan.last_use(name)
        self.tokens: Sequence[str] | Mapping[int, str] = plan.tokens[name]
        self.memory = memory
        self.values: dict[int, list[tuple[int, Value]]] = {}  # branch -> [(step, value)], oldest first
        self.weights: dict[tuple[int, int], list[float]] = {}  # (step, branch) -> forecast weights
        self.counts: dict[str, int] = {}

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
        """Keep a computed value if a later step reads it."""
        if not self.wants(step, branch):
            return
        kept = self.values.setdefault(branch, [])
        if kept and kept[-1][0] == step:
            raise ScheduleError(
                f"{self.name} was called twice in one denoiser call at step {step}; its values cannot be told "
                "apart (call disable_forward_chunking() if its feed-forward runs in chunks)"
            )
        value = _detached(value, self.copies)
        self.memory.add(value)
        kept.append((step, value))
        if self.latest and len(kept) > self.latest:
            self.memory.free(kept.pop(0)[1])

    def wants(self, step: int, branch: int) -> bool:
        """Whether the value computed at this step has to be kept."""
        return self.latest > 0 or self.uses(branch).get(step, -1) > step

    def restore(self, values: Mapping[int, Sequence[tuple[int, Value]]]) -> None:
        """Take the `values` of another store of this node, which stay as they are."""
        self.clear()
        self.weights.clear()
        self.values = {branch: list(kept) for branch, kept in values.items()}
        for kept in self.values.values():
            for _, value in kept:
                self.memory.add(value)

    def read(self, step: int, branch: int, clock: Clock) -> Value:
        """The value that the action of this step stands for."""
        return self._read(step, branch, clock, history(self.tokens[step]))

    def count(self, token: str) -> None:
        self.counts[token] = self.counts.get(token, 0) + 1

    def _read(self, step: int, branch: int, clock: Clock, needs: int) -> Value:
        kept = self.values.get(branch, [])[-needs:]
        if len(kept) < needs:
            raise ScheduleError(
                f"{self.name} reads {needs} value(s) at step {step}, but this CFG branch computed {len(kept)}; "
                "guidance may not be switched on during a run"
            )
        if needs == 1:
            value = _detached(kept[-1][1], True) if self.copies else kept[-1][1]
        else:
            if (step, branch) not in self.weights:
                places = [clock.places[s] for s, _ in kept]
                self.weights[step, branch] = newton_weights(places, clock.places[step])
            weights = self.weights[step, branch]
            value = mapped(lambda *tensors: combine(tensors, weights), *(v for _, v in kept))
        self._free(step, branch)
        return value

    def _free(self, step: int, branch: int) -> None:
        if self.latest:
            return
        alive: list[tuple[int, Value]] = []
        for source, value in self.values[branch]:
            if self.uses(branch)[source] > step:
                alive.append((source, value))
            else:
                self.memory.free(value)
        self.values[branch] = alive


class HalvedStore(Store):
    """Computed values of one node by half of the guided batch, where some steps compute the conditional one only.

    A half's place in the batch, 0 or 1, is its branch here: such a pipeline calls the denoiser once a step. Branch 2
    of the denoiser is the difference of its halves, which guidance may read.
    """

    apart = 2

    def __init__(self, name: str, plan: Plan, memory: "Memory", guidance: Guidance) -> None:
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
            super().keep(step, self.guidance.conditional, value)
            return
        together = self.halves[0].get(step) == self.halves[1].get(step)
        for place in (0, 1):
            if self.wants(step, place):  # halves that are freed apart must not share one piece of memory
                part = half(value, place)
                super().keep(step, place, part if together else mapped(Tensor.clone, part))
        pictures = self.name == ROOT and value.dim() == 4
        if self.halves[self.apart].get(step) or (self.latest and pictures):
            super().keep(step, self.apart, self.guidance.difference(step, value))

    def read(self, step: int, branch: int, clock: Clock) -> Value:
        """The value [B, ...] that the action of a full step stands for, [B/2, ...] at a narrow one."""
        if self.guidance.narrow(step):
            return super().read(step, self.guidance.conditional, clock)
        needs = history(self.tokens[step])
        return joined(*(self._read(step, place, clock, needs) for place in (0, 1)))

    def restore(self, values: Mapping[int, Sequence[tuple[int, Value]]]) -> None:
        """The same; where another store did not keep it, with the difference of the halves."""
        if self.name == ROOT and self.halves[self.apart] and self.apart not in values:
            pairs = zip(values.get(0, ()), values.get(1, ()), strict=True)
            both = [(step, joined(a, b)) for (step, a), (_, b) in pairs]
            values = {**values, self.apart: [(step, self.guidance.difference(step, value)) for step, value in both]}
        super().restore(values)

    def guided_with(self, step: int, clock: Clock) -> Tensor | None:
        """What guidance reads at this step: the last unconditional half (R), the last difference (A), or nothing."""
        kind = self.guidance.branch[step]
        if kind not in "RA":
            return None
        return self._read(step, self.apart if kind == "A" else 1 - self.guidance.conditional, clock, 1)


Values = Mapping[int, Sequence[tuple[int, Value]]]

# Of a step, the value that is read there, and what would compute the node there instead: the value to go on with.
Correction = Callable[[int, Tensor, Callable[[], Tensor]], Tensor]


def halved(values: Values) -> Values:
    """Values of a `Store` as a `HalvedStore` has them."""
    return {place: [(step, half(value, place)) for step, value in values.get(0, ())] for place in (0, 1)}


def whole(values: Values) -> Values:
    """Values of a `HalvedStore` that has seen full steps only as a `Store` has them."""
    pairs = zip(values.get(0, ()), values.get(1, ()), strict=True)
    return {0: [(step, joined(a, b)) for (step, a), (_, b) in pairs]}


class Memory:
    """Bytes of all kept values, now and at the peak."""

    def __init__(self) -> None:
        self.now = self.peak = 0

    def add(self, value: Value) -> None:
        self.now += nbytes(value)
        self.peak = max(self.peak, self.now)

    def free(self, value: Value) -> None:
        self.now -= nbytes(value)


class PlannedHook(ModelHook):
    """Base of the hooks: knows the step and the CFG branch."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def branch(self) -> int:
        return self.clock.calls - 1  # the denoiser hook has counted the running call already

    def reuse(self, store: Store, compute: Callable[[], Value]) -> Value:
        """The value that a node's action at this step stands for, corrected where the schedule says so."""
        span = self.clock.span
        value = store.read(self.clock.step + span - 1, self.branch(), self.clock)
        if span > 1:
            value = mapped(lambda tensor: tensor.repeat(span, *[1] * (tensor.dim() - 1)), value)
        if store.correction is None:
            return value
        return store.correction(self.clock.step, value, partial(self._aside, compute))

    def _aside(self, compute: Callable[[], Value]) -> Value:
        self.clock.aside = True
        try:
            return compute()
        finally:
            self.clock.aside = False


class ComponentHook(PlannedHook):
    """A component: its output is kept before the block's gate; skipped, it adds nothing or passes its input on."""

    def __init__(self, clock: Clock, store: Store, skipped: Sequence[str] | None) -> None:
        """`skipped` are the arguments whose zeros it returns where it is skipped, () for its input as it is."""
        super().__init__(clock)
        self.store, self.skipped, self.verified = store, skipped, False

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Value:
        if self.clock.aside:
            return self.fn_ref.original_forward(*args, **kwargs)
        step, store = self.clock.step, self.store
        token = store.tokens[step]
        store.count(token)
        if token == OFF:
            output = self.fn_ref.original_forward(*args, **kwargs)
            if not self.verified:
                self._verify(module, args, kwargs, output)
            store.keep(step, self.branch(), output)
            return output
        if token == "S":
            return self._nothing(module, args, kwargs)
        return self.reuse(store, lambda: self.fn_ref.original_forward(*args, **kwargs))

    def _verify(self, module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], output: Value) -> None:
        """Against the contract, as far as the plan relies on it."""
        if self.skipped is not None and "S" in self.store.tokens:
            check_component(self.store.name, self.skipped, named(module, args, kwargs), output)
        else:
            check_value(self.store.name, output)
        self.verified = True

    def _nothing(self, module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Value:
        given = named(module, args, kwargs)
        if not self.skipped:
            hidden = next(iter(given.values()))
            return (hidden,) if given.get("return_dict") is False else hidden
        zeros = [torch.zeros_like(argument(self.store.name, name, given)) for name in self.skipped]
        return zeros[0] if len(zeros) == 1 else tuple(zeros)


class BlockHook(PlannedHook):
    """A block, and the stack around it: where the stack is not computed, its last block gives the stack's value.

    What is kept is what they give, or with `residual` what they add to what entered them.
    """

    def __init__(
        self,
        clock: Clock,
        block: Store,
        stack: Store,
        blocks: Sequence[nn.Module],
        last: bool,
        outputs: Sequence[str],
        residual: bool = False,
    ) -> None:
        """`blocks` are all of the stack; `outputs` the arguments that a block's outputs replace, in their order."""
        super().__init__(clock)
        self.block, self.stack, self.blocks, self.last, self.outputs = block, stack, blocks, last, outputs
        self.residual, self.verified = residual, False

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Value:
        if self.clock.aside:
            return self.fn_ref.original_forward(*args, **kwargs)
        step = self.clock.step
        outer = self.stack.tokens[step]
        if self.last:
            self.stack.count(outer)
        inputs = passed(module, args, kwargs, self.outputs) if self.outputs else None
        if outer not in (OFF, ABSENT):
            if outer == "S" or not self.last:
                return inputs
            return self._again(self.stack, inputs, lambda: self._through(args, kwargs))
        if self.residual and module is self.blocks[0]:
            self.stack.entered = inputs
        token = self.block.tokens[step]
        self.block.count(token)
        if token == OFF:
            output = self.fn_ref.original_forward(*args, **kwargs)
            if not self.verified:
                check_block(self.block.name, self.outputs, named(module, args, kwargs), output)
                self.verified = True
            self._keep(self.block, inputs, output)
        elif token == "S":
            output = inputs
        else:
            output = self._again(self.block, inputs, lambda: self.fn_ref.original_forward(*args, **kwargs))
        if self.last:
            self._keep(self.stack, self.stack.entered, output)
            self.stack.entered = None
        return output

    def _keep(self, store: Store, inputs: Value, output: Value) -> None:
        if store.latest or self.clock.step in store.last_use:
            store.keep(self.clock.step, self.branch(), self._value(inputs, output))

    def _again(self, store: Store, inputs: Value, compute: Callable[[], Value]) -> Value:
        value = self.reuse(store, lambda: self._value(inputs, compute()))
        return mapped(torch.add, value, inputs) if self.residual else value

    def _value(self, inputs: Value, output: Value) -> Value:
        return mapped(torch.sub, output, inputs) if self.residual else output

    def _through(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Value:
        """The whole stack, from what entered it."""
        given = named(self.blocks[0], args, kwargs)
        output: Value = None
        for block in self.blocks:
            output = block(**given)
            given |= zip(self.outputs, output if len(self.outputs) > 1 else (output,), strict=True)
        return output


class DenoiserHook(PlannedHook):
    """The denoiser: counts CFG branches, checks that the run is whole, reuses or forecasts whole steps, and guides.

    At a step of another denoiser that one is called instead, as it stands: with whatever hooks it has, none of ours.
    Values are cloned on the way in and out, because a pipeline may write into what it was given.
    """

    def __init__(
        self,
        clock: Clock,
        store: Store,
        check: Callable[[Mapping[str, Any]], None],
        guidance: Guidance | None = None,
        stitch: Stitch | None = None,
        ahead: "Ahead | None" = None,
    ) -> None:
        super().__init__(clock)
        self.store, self.check, self.guidance, self.stitch, self.ahead = store, check, guidance, stitch, ahead
        self.inputs: dict[int, tuple] = {}  # branch -> shape, dtype and device of this run
        self.container: Any = tuple  # of the outputs: a tuple, or a class with `sample`

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        self.check(kwargs)
        hidden = args[0] if args else kwargs[parameters(type(module))[0]]
        step, branch = self.clock.step, self.clock.calls
        self.clock.calls += 1
        found = tuple(hidden.shape), str(hidden.dtype), str(hidden.device)
        if step == 0:
            self.inputs = {b: known for b, known in self.inputs.items() if b < branch} | {branch: found}
        elif (known := self.inputs.get(branch)) != found:
            raise ScheduleError(
                f"the denoiser's input changed from {known} to {found} at step {step}; batch, resolution, "
                "type, device and guidance may not change during a run"
            )
        guidance = self.guidance
        if guidance is not None:
            guidance.check(hidden, step, branch)
        token = self.store.tokens[step]
        self.store.count(token)

        other = self.stitch.denoiser(step) if self.stitch else None
        run = self.fn_ref.original_forward if other is None else other

        def compute() -> Any:
            if self.ahead and (output := self.ahead.output(module, run, args, kwargs)) is not None:
                return output
            if guidance is None or not guidance.narrow(step):
                return run(*args, **kwargs)
            return run(**guidance.narrowed(module, step, args, kwargs))

        if token == OFF:
            try:
                output = compute()
            except BaseException:
                self.clock.stop()  # an interrupted run leaves no values behind
                raise
            if self.stitch:
                self.stitch.count(step)
            tensor, self.container = first(output), type(output)
            if self.store.latest or step in self.store.last_use:
                self.store.keep(step, branch, tensor.clone())
            value = tensor if guidance is None else self._guided(guidance, step, tensor)
            if value is tensor:
                return output
        else:
            value = self.reuse(self.store, lambda: first(compute())).clone()
            value = value if guidance is None else self._guided(guidance, step, value)
        if issubclass(self.container, Tensor):
            return value
        return (value,) if self.container is tuple else self.container(sample=value)

    def _guided(self, guidance: Guidance, step: int, value: Tensor) -> Tensor:
        stored = self.store.guided_with(step, self.clock) if isinstance(self.store, HalvedStore) else None
        return guidance.returned(step, value, stored)


def passed(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], outputs: Sequence[str]) -> Value:
    """What enters a block, as the block would give it back."""
    given = named(module, args, kwargs)
    inputs = tuple(argument(type(module).__name__, name, given) for name in outputs)
    return inputs[0] if len(inputs) == 1 else inputs


def named(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call of the module by name, first those given by place."""
    return dict(zip(parameters(type(module)), args, strict=False)) | dict(kwargs)


_PARAMETERS: dict[Any, tuple[str, ...]] = {}  # by module class: to look them up takes longer than a small block


def parameters(cls: Any) -> tuple[str, ...]:
    """Names of the arguments of a module class's forward."""
    if cls not in _PARAMETERS:
        _PARAMETERS[cls] = tuple(inspect.signature(cls.forward).parameters)[1:]
    return _PARAMETERS[cls]


def _detached(value: Value, copies: bool) -> Value:
    """Without gradients, and with memory of its own if asked for."""
    return mapped(lambda tensor: tensor.detach().clone() if copies else tensor.detach(), value)
