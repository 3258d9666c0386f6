"""Hooks at planned modules: compute, reuse, forecast or skip, and store values as long as later steps read them."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NoReturn

import torch
from diffusers.hooks import ModelHook
from torch import nn

from search.schedule.apply.admission import HOOK
from search.schedule.apply.calls import (
    arguments_by_name,
    parameter_names,
    replaced_arguments,
    skipped_output,
)
from search.schedule.apply.clock import Clock, refuse_copy
from search.schedule.apply.outputs import check_block, check_component, check_value
from search.schedule.apply.stores import Store, ValueMissing
from search.schedule.plan.tokens import ABSENT, OFF
from search.schedule.values import Value, map_tensors


class PlannedHook(ModelHook):
    """Base of the hooks; `clock` has the step and the CFG branch of the running call."""

    registered_name = HOOK
    made_registry = False  # whether its module had no hooks of diffusers before

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        refuse_copy(protocol)

    def read(self, store: Store, compute: Callable[[], Value]) -> Value:
        """The stored value that a node reuses or forecasts at this step, corrected where it has a correction.

        Computed and stored where its branch has no values, as guidance was switched on in this run.
        """
        clock = self.clock
        try:
            value = store.read(clock.step + clock.span - 1, clock.calls - 1, clock)  # this call is counted already
        except ValueMissing:
            if clock.span > 1:
                raise
            value = self._compute_suspended(compute)
            self.keep(store, value)
            return value
        if clock.span > 1:
            value = map_tensors(lambda tensor: tensor.repeat(clock.span, *[1] * (tensor.dim() - 1)), value)
        if store.correction is None:
            return value
        return store.correction(clock.step, value, partial(self._compute_suspended, compute))

    def keep(self, store: Store, value: Value) -> None:
        """Store a value that the running call computed."""
        store.keep(self.clock.step, self.clock.calls - 1, value)

    def _compute_suspended(self, compute: Callable[[], Value]) -> Value:
        with self.clock.suspended():
            return compute()


class StepHook(PlannedHook):
    """A module within the denoiser: as a step begins, the step's action is put in the place of its forward.

    So a module that computes and stores nothing is called directly, without overhead. Between runs, and where other
    code has wrapped the module since, diffusers' chain of hooks is called, with the same result.
    """

    # What runs at a step in place of the module's own forward.
    compiled: Callable[[int], Callable[..., Any]] | None = None
    module: nn.Module
    placed: Callable[..., Any]  # what was last put in the forward's place

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.actions: dict[int, Callable[..., Any]] = {}

    def initialize_hook(self, module: nn.Module) -> nn.Module:
        self.module = module
        return module

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Value:
        """Run the module until the first run begins; the name is that of `ModelHook`."""
        return self.forward(*args, **kwargs)

    def follow_clock(self) -> None:
        """Follow the clock; called once diffusers has put its chain of hooks in the place of the forward."""
        self.attributes = self.module.__dict__
        self.chain = self.placed = self.attributes["forward"]
        self.clock.on_step.append(self.begin_step)

    def begin_step(self, step: int) -> None:
        """Put the action of this step in place; -1, outside of a run: compute."""
        action = self.actions.get(step)
        if action is None:
            action = self.actions[step] = self.forward if step < 0 else self.action(step)
        free = self.attributes.get("forward") is self.placed
        if free:
            self.attributes["forward"] = self.placed = self.chain if step < 0 else action
        if not free or step < 0:
            self.fn_ref.forward = action

    @property
    def forward(self) -> Callable[..., Any]:
        """The module's own forward."""
        forward: Callable[..., Any] = self.fn_ref.original_forward
        return forward

    def action(self, step: int) -> Callable[..., Any]:
        """What is called in place of the module's forward at a step."""
        return self.computing(step)

    def computing(self, step: int) -> Callable[..., Any]:
        """What computes the module at a step."""
        return self.forward if self.compiled is None else self.compiled(step)

    def reset_actions(self) -> None:
        """Choose the actions again, as they have changed."""
        self.actions.clear()
        self.begin_step(self.clock.step)


class ComponentHook(StepHook):
    """A component: its output is stored before the block's gate; skipped, it adds nothing or passes its input on."""

    def __init__(self, clock: Clock, store: Store, skipped: Sequence[str] | None) -> None:
        """`skipped` are the arguments whose zeros it returns where it is skipped, () for its input as it is."""
        super().__init__(clock)
        self.store, self.skipped, self.verified = store, skipped, False

    def action(self, step: int) -> Callable[..., Any]:
        token = self.store.tokens[step]
        if token == "S":
            return partial(skipped_output, self.store.name, parameter_names(type(self.module)), self.skipped)
        if token not in (OFF, ABSENT):
            return self._read_corrected if self.store.correction else self._reading()
        if not self.verified:
            return self._compute_first
        return self._storing(self.computing(step)) if self.store.keeps(step) else self.computing(step)

    # Called at every stored and reused component: each lookup and each call within costs as much as a small kernel.

    def _storing(self, compute: Callable[..., Any]) -> Callable[..., Any]:
        clock, keep = self.clock, self.store.keep

        def compute_and_keep(*args: Any, **kwargs: Any) -> Value:
            output = compute(*args, **kwargs)
            keep(clock.step, clock.calls - 1, output)
            return output

        return compute_and_keep

    def _reading(self) -> Callable[..., Any]:
        clock, read, read_batch = self.clock, self.store.read, self._read_corrected

        def read_stored(*args: Any, **kwargs: Any) -> Value:
            if clock.span > 1:
                return read_batch(*args, **kwargs)
            try:
                return read(clock.step, clock.calls - 1, clock)
            except ValueMissing:
                return read_batch(*args, **kwargs)

        return read_stored

    def _read_corrected(self, *args: Any, **kwargs: Any) -> Value:
        return self.read(self.store, lambda: self.forward(*args, **kwargs))

    def _compute_first(self, *args: Any, **kwargs: Any) -> Value:
        """Compute it for the first time, and check its output against the contract."""
        output = self.computing(self.clock.step)(*args, **kwargs)
        check_output(self.store, self.skipped, arguments_by_name(self.module, args, kwargs), output)
        if self.store.keeps(self.clock.step):
            self.keep(self.store, output)
        self.verified = True
        self.reset_actions()
        return output


class BlockHook(StepHook):
    """A block, and the stack around it: where the stack is not computed, its last block gives the stack's value.

    Stored are their outputs, or with `residual` what they add to their inputs.
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

    def action(self, step: int) -> Callable[..., Any]:
        around, token = self.stack.tokens[step], self.block.tokens[step]
        last = self.module is self.blocks[-1]
        if around not in (OFF, ABSENT):
            return self._read_stack if last and around != "S" else self._pass_inputs
        if token == "S":
            run = self._pass_inputs
        elif token not in (OFF, ABSENT):
            run = self._read_block
        elif not self.verified:
            run = self._compute_first
        else:
            run = self.computing(step)
            run = partial(self._compute_and_keep, run) if self.block.keeps(step) else run
        if self.stack.keeps(step) and (last or self.module is self.blocks[0]):
            return partial(self._run_at_edge, run, last)
        return run

    def _pass_inputs(self, *args: Any, **kwargs: Any) -> Value:
        return replaced_arguments(self.module, args, kwargs, self.outputs) if self.outputs else None

    def _compute_and_keep(self, compute: Callable[..., Any], *args: Any, **kwargs: Any) -> Value:
        output = compute(*args, **kwargs)
        self.keep(self.block, self._added(self._pass_inputs(*args, **kwargs), output) if self.residual else output)
        return output

    def _read_block(self, *args: Any, **kwargs: Any) -> Value:
        return self._value(self.block, lambda: self.forward(*args, **kwargs), args, kwargs)

    def _read_stack(self, *args: Any, **kwargs: Any) -> Value:
        return self._value(self.stack, lambda: self._run_stack(args, kwargs), args, kwargs)

    def _compute_first(self, *args: Any, **kwargs: Any) -> Value:
        """Compute it for the first time, and check its output against the contract."""
        output = self.computing(self.clock.step)(*args, **kwargs)
        check_block(self.block.name, self.outputs, arguments_by_name(self.module, args, kwargs), output)
        if self.block.keeps(self.clock.step):
            self._compute_and_keep(lambda *_, **__: output, *args, **kwargs)
        self.verified = True
        self.reset_actions()
        return output

    def _run_at_edge(self, run: Callable[..., Any], last: bool, *args: Any, **kwargs: Any) -> Value:
        """Run the first or the last block of a stack whose value is stored."""
        if self.residual and self.module is self.blocks[0]:
            self.stack.entered = self._pass_inputs(*args, **kwargs)
        output = run(*args, **kwargs)
        if last:
            self.keep(self.stack, self._added(self.stack.entered, output) if self.residual else output)
            self.stack.entered = None
        return output

    def _value(
        self, store: Store, compute: Callable[[], Value], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Value:
        """The value in place of the block's output, or of its stack's."""
        if not self.residual:
            return self.read(store, compute)
        inputs = self._pass_inputs(*args, **kwargs)
        return map_tensors(torch.add, self.read(store, lambda: self._added(inputs, compute())), inputs)

    @staticmethod
    def _added(inputs: Value, output: Value) -> Value:
        return map_tensors(torch.sub, output, inputs)

    def _run_stack(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Value:
        """Run the whole stack on the inputs of its first block."""
        given = arguments_by_name(self.blocks[0], args, kwargs)
        output: Value = None
        for block in self.blocks:
            output = block(**given)
            given |= zip(self.outputs, output if len(self.outputs) > 1 else (output,), strict=True)
        return output


def check_output(store: Store, skipped: Sequence[str] | None, given: Mapping[str, Any], output: Value) -> None:
    """Check a component's output against its contract, as far as the plan relies on it."""
    if skipped is not None and "S" in store.tokens:
        check_component(store.name, skipped, given, output)
    else:
        check_value(store.name, output)
