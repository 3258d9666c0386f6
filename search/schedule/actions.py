"""What happens at a planned node: compute, reuse, forecast or skip, with values kept as long as they are read."""

import inspect
from collections import Counter
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


Kept = tuple[tuple[int, Value], ...]  # steps and what was computed there, oldest first


class Store:
    """Computed values of one node, per CFG branch; each is freed after the last step that reads it.

    With `latest` above 0 the last so many values of a branch stay to the end instead: another plan may read them.
    """

    latest = 0
    copies = False  # whether the model may write into what it gave or is given
    borrowed = False  # whether its output lies in memory that a later call writes into: CUDA graphs
    correction: "Correction | None" = None
    entered: Value = None  # into the node of the running call, where its residual is kept

    def __init__(self, name: str, plan: Plan, memory: "Memory") -> None:
        self.name, self.last_use = name, plan.last_use(name)
        self.tokens: Sequence[str] | Mapping[int, str] = plan.tokens[name]
        self.memory = memory
        self.values: dict[int, Kept] = {}  # by branch; never written into, so that others may hold them
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
                f"{self.name} was called twice in one denoiser call at step {step}; its values cannot be told "
                "apart (call disable_forward_chunking() if its feed-forward runs in chunks)"
            )
        if self.copies or self.borrowed:
            value = mapped(_copied, value)
        elif torch.is_grad_enabled():
            value = mapped(Tensor.detach, value)
        self.memory.add(value)
        if self.latest and len(kept) == self.latest:
            self.memory.free(kept[0][1])
            kept = kept[1:]
        self.values[branch] = (*kept, (step, value))

    def keeps(self, step: int) -> bool:
        """Whether what is computed at this step is read later."""
        return self.latest > 0 or step in self.last_use

    def restore(self, values: Mapping[int, Kept]) -> None:
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
        return self._read(step, branch, clock, 1 if token == "R" else history(token))

    def _read(self, step: int, branch: int, clock: Clock, needs: int) -> Value:
        kept = self.values.get(branch, ())
        if len(kept) < needs:
            raise ScheduleError(
                f"{self.name} reads {needs} value(s) at step {step}, but this CFG branch computed {len(kept)}; "
                "guidance may not be switched on during a run"
            )
        if needs == 1:
            value = mapped(_copied, kept[-1][1]) if self.copies else kept[-1][1]
        else:
            kept = kept[-needs:]
            if (step, branch) not in self.weights:
                places = [clock.places[s] for s, _ in kept]
                self.weights[step, branch] = newton_weights(places, clock.places[step])
            weights = self.weights[step, branch]
            value = mapped(lambda *tensors: combine(tensors, weights), *(v for _, v in kept))
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
            if self.wants(step, self.guidance.conditional):
                super().keep(step, self.guidance.conditional, value)
            return
        together = self.halves[0].get(step) == self.halves[1].get(step)
        for place in (0, 1):
            if self.wants(step, place):  # halves that are freed apart must not share one piece of memory
                part = half(value, place)
                super().keep(step, place, part if together else mapped(_copied, part))
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
        needs = history(self.tokens[step])
        return joined(*(self._read(step, place, clock, needs) for place in (0, 1)))

    def restore(self, values: Mapping[int, Kept]) -> None:
        """The same; where another store did not keep it, with the difference of the halves."""
        if self.name == ROOT and self.halves[self.apart] and self.apart not in values:
            other = dict(values.get(1, ()))  # narrow steps kept one half only
            both = [(step, joined(a, other[step])) for step, a in values.get(0, ()) if step in other]
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


def halved(values: Mapping[int, Kept]) -> dict[int, Kept]:
    """Values of a `Store` as a `HalvedStore` has them."""
    return {place: tuple((step, half(value, place)) for step, value in values.get(0, ())) for place in (0, 1)}


def whole(values: Mapping[int, Kept]) -> dict[int, Kept]:
    """Values of a `HalvedStore` that has seen full steps only as a `Store` has them."""
    pairs = zip(values.get(0, ()), values.get(1, ()), strict=True)
    return {0: tuple((step, joined(a, b)) for (step, a), (_, b) in pairs)}


class Memory:
    """Bytes of all kept values, now and at the peak."""

    def __init__(self) -> None:
        self.now = self.peak = 0

    def add(self, value: Value) -> None:
        self.now += value.nbytes if isinstance(value, Tensor) else nbytes(value)
        if self.now > self.peak:
            self.peak = self.now

    def free(self, value: Value) -> None:
        self.now -= value.nbytes if isinstance(value, Tensor) else nbytes(value)


class PlannedHook(ModelHook):
    """Base of the hooks: knows the step and the CFG branch."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def read(self, store: Store, compute: Callable[[], Value]) -> Value:
        """The value that a node's action at this step stands for, corrected where the schedule says so."""
        clock = self.clock
        value = store.read(clock.step + clock.span - 1, clock.calls - 1, clock)  # the denoiser has counted this call
        if clock.span > 1:
            value = mapped(lambda tensor: tensor.repeat(clock.span, *[1] * (tensor.dim() - 1)), value)
        if store.correction is None:
            return value
        return store.correction(clock.step, value, partial(self._aside, compute))

    def keep(self, store: Store, value: Value) -> None:
        store.keep(self.clock.step, self.clock.calls - 1, value)

    def _aside(self, compute: Callable[[], Value]) -> Value:
        with self.clock.aside():
            return compute()


class StepHook(PlannedHook):
    """A module within the denoiser: as a step begins, what it does there takes the place of its forward.

    So a module that computes and keeps nothing is called as if nobody had planned anything. Between runs, and where
    somebody else has wrapped the module since, diffusers' chain of hooks is called and comes to the same.
    """

    compiled: Callable[[int], Callable] | None = None  # what runs at a step in place of the module's own forward
    module: nn.Module
    placed: Callable  # what was last put in the forward's place

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.actions: dict[int, Callable] = {}

    def initialize_hook(self, module: nn.Module) -> nn.Module:
        self.module = module
        return module

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Value:
        """Until the first run; diffusers wants the name."""
        return self.forward(*args, **kwargs)

    def attend(self) -> None:
        """Follow the clock, once diffusers has put its chain in the forward's place."""
        self.attributes = self.module.__dict__
        self.chain = self.placed = self.attributes["forward"]
        self.clock.on_step.append(self.turn)

    def turn(self, step: int) -> None:
        """Do from now on what is planned for this step; compute where there is none."""
        action = self.actions.get(step)
        if action is None:
            action = self.actions[step] = self.forward if step < 0 else self.action(step)
        free = self.attributes.get("forward") is self.placed
        if free:
            self.attributes["forward"] = self.placed = self.chain if step < 0 else action
        if not free or step < 0:
            self.fn_ref.forward = action

    @property
    def forward(self) -> Callable:
        """The module's own."""
        return self.fn_ref.original_forward

    def action(self, step: int) -> Callable:
        """What is called in place of the module's forward at a step."""
        return self.computing(step)

    def computing(self, step: int) -> Callable:
        """What computes the module at a step."""
        return self.forward if self.compiled is None else self.compiled(step)

    def reconsider(self) -> None:
        """Actions are other ones from now on."""
        self.actions.clear()
        self.turn(self.clock.step)


class ComponentHook(StepHook):
    """A component: its output is kept before the block's gate; skipped, it adds nothing or passes its input on."""

    def __init__(self, clock: Clock, store: Store, skipped: Sequence[str] | None) -> None:
        """`skipped` are the arguments whose zeros it returns where it is skipped, () for its input as it is."""
        super().__init__(clock)
        self.store, self.skipped, self.verified = store, skipped, False

    def action(self, step: int) -> Callable:
        token = self.store.tokens[step]
        if token == "S":
            return partial(skip, self.store.name, parameters(type(self.module)), self.skipped)
        if token not in (OFF, ABSENT):
            return self._again if self.store.correction else self._stored()
        if not self.verified:
            return self._first
        return self._keeping(self.computing(step)) if self.store.keeps(step) else self.computing(step)

    # Called at every kept and reused component: each lookup and each call within costs as much as a small kernel.

    def _keeping(self, compute: Callable) -> Callable:
        clock, keep = self.clock, self.store.keep

        def kept(*args: Any, **kwargs: Any) -> Value:
            output = compute(*args, **kwargs)
            keep(clock.step, clock.calls - 1, output)
            return output

        return kept

    def _stored(self) -> Callable:
        clock, read, again = self.clock, self.store.read, self._again

        def stored(*args: Any, **kwargs: Any) -> Value:
            return read(clock.step, clock.calls - 1, clock) if clock.span == 1 else again(*args, **kwargs)

        return stored

    def _again(self, *args: Any, **kwargs: Any) -> Value:
        return self.read(self.store, lambda: self.forward(*args, **kwargs))

    def _first(self, *args: Any, **kwargs: Any) -> Value:
        """The first time that it is computed."""
        output = self.computing(self.clock.step)(*args, **kwargs)
        verify(self.store, self.skipped, named(self.module, args, kwargs), output)
        if self.store.keeps(self.clock.step):
            self.keep(self.store, output)
        self.verified = True
        self.reconsider()
        return output


class BlockHook(StepHook):
    """A block, and the stack around it: where the stack is not computed, its last block gives the stack's value.

    What is kept is what they give, or with `residual` what they add to what entered them.
    """

    def __init__(
        self,
        clock: Clock,
        block: Store,
        stack: Store,
        blocks: Sequence[nn.Module],
        outputs: Sequence[str],
        residual: bool = False,
    ) -> None:
        """`blocks` are all of the stack; `outputs` the arguments that a block's outputs replace, in their order."""
        super().__init__(clock)
        self.block, self.stack, self.blocks, self.outputs = block, stack, blocks, outputs
        self.residual, self.verified = residual, False

    def action(self, step: int) -> Callable:
        around, token = self.stack.tokens[step], self.block.tokens[step]
        last = self.module is self.blocks[-1]
        if around not in (OFF, ABSENT):
            return self._stack_again if last and around != "S" else self._passed
        if token == "S":
            run = self._passed
        elif token not in (OFF, ABSENT):
            run = self._again
        elif not self.verified:
            run = self._first
        else:
            run = self.computing(step)
            run = partial(self._kept, run) if self.block.keeps(step) else run
        if self.stack.keeps(step) and (last or self.module is self.blocks[0]):
            return partial(self._edge, run, last)
        return run

    def _passed(self, *args: Any, **kwargs: Any) -> Value:
        return passed(self.module, args, kwargs, self.outputs) if self.outputs else None

    def _kept(self, compute: Callable, *args: Any, **kwargs: Any) -> Value:
        output = compute(*args, **kwargs)
        self.keep(self.block, self._added(self._passed(*args, **kwargs), output) if self.residual else output)
        return output

    def _again(self, *args: Any, **kwargs: Any) -> Value:
        return self._value(self.block, lambda: self.forward(*args, **kwargs), args, kwargs)

    def _stack_again(self, *args: Any, **kwargs: Any) -> Value:
        return self._value(self.stack, lambda: self._through(args, kwargs), args, kwargs)

    def _first(self, *args: Any, **kwargs: Any) -> Value:
        """The first time that it is computed: looked at against the contract."""
        output = self.computing(self.clock.step)(*args, **kwargs)
        check_block(self.block.name, self.outputs, named(self.module, args, kwargs), output)
        if self.block.keeps(self.clock.step):
            self._kept(lambda *_, **__: output, *args, **kwargs)
        self.verified = True
        self.reconsider()
        return output

    def _edge(self, run: Callable, last: bool, *args: Any, **kwargs: Any) -> Value:
        """The first and the last block of a stack whose value is kept."""
        if self.residual and self.module is self.blocks[0]:
            self.stack.entered = self._passed(*args, **kwargs)
        output = run(*args, **kwargs)
        if last:
            self.keep(self.stack, self._added(self.stack.entered, output) if self.residual else output)
            self.stack.entered = None
        return output

    def _value(
        self, store: Store, compute: Callable[[], Value], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Value:
        """What stands for the block, or for its stack."""
        if not self.residual:
            return self.read(store, compute)
        inputs = self._passed(*args, **kwargs)
        return mapped(torch.add, self.read(store, lambda: self._added(inputs, compute())), inputs)

    @staticmethod
    def _added(inputs: Value, output: Value) -> Value:
        return mapped(torch.sub, output, inputs)

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
        self.calls: Counter[int] = Counter()  # that began at each step, of all runs
        self.graphs = False  # whether CUDA graphs run beneath
        self.inputs: dict[int, tuple] = {}  # branch -> shape, dtype and device of this run
        self.container: Any = tuple  # of the outputs: a tuple, or a class with `sample`

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        self.check(kwargs)
        hidden = args[0] if args else kwargs[parameters(type(module))[0]]
        step, branch = self.clock.step, self.clock.calls
        self.clock.calls += 1
        found = tuple(hidden.shape), hidden.dtype, hidden.device
        if step == 0:
            self.inputs = {b: known for b, known in self.inputs.items() if b < branch} | {branch: found}
        elif (known := self.inputs.get(branch)) != found:
            raise ScheduleError(
                f"the denoiser's input changed from {_shown(known)} to {_shown(found)} at step {step}; batch, "
                "resolution, type, device and guidance may not change during a run"
            )
        guidance = self.guidance
        if guidance is not None:
            guidance.check(hidden, step, branch)
        token = self.store.tokens[step]
        self.calls[step] += 1
        if self.graphs:
            torch.compiler.cudagraph_mark_step_begin()  # outputs of the call before may be written into

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
            if self.store.keeps(step):
                self.store.keep(step, branch, tensor.clone())
            value = tensor if guidance is None else self._guided(guidance, step, tensor)
            if value is tensor:
                return output
        else:
            value = self.read(self.store, lambda: first(compute())).clone()
            value = value if guidance is None else self._guided(guidance, step, value)
        if issubclass(self.container, Tensor):
            return value
        return (value,) if self.container is tuple else self.container(sample=value)

    def _guided(self, guidance: Guidance, step: int, value: Tensor) -> Tensor:
        stored = self.store.guided_with(step, self.clock) if isinstance(self.store, HalvedStore) else None
        return guidance.returned(step, value, stored)


def verify(store: Store, skipped: Sequence[str] | None, given: Mapping[str, Any], output: Value) -> None:
    """Look at what a component gave against its contract, as far as the plan relies on it."""
    if skipped is not None and "S" in store.tokens:
        check_component(store.name, skipped, given, output)
    else:
        check_value(store.name, output)


def skip(name: str, names: Sequence[str], skipped: Sequence[str] | None, *args: Any, **kwargs: Any) -> Value:
    """What a component gives where it is skipped: zeros like these arguments, or its first one as it is.

    `names` are those of all its arguments, `name` its own.
    """
    given = dict(zip(names, args, strict=False)) | kwargs
    if not skipped:
        hidden = next(iter(given.values()))
        return (hidden,) if given.get("return_dict") is False else hidden
    zeros = [torch.zeros_like(argument(name, wanted, given)) for wanted in skipped]
    return zeros[0] if len(zeros) == 1 else tuple(zeros)


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


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().clone()


def _shown(known: tuple | None) -> str:
    """Shape, type and device of an input, as an error names them."""
    return "None" if known is None else str((known[0], *map(str, known[1:])))
