"""The hook on the denoiser itself."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from search.schedule.apply.ahead import Ahead
from search.schedule.apply.calls import describe_input, parameter_names
from search.schedule.apply.clock import Clock
from search.schedule.apply.hooks import PlannedHook
from search.schedule.apply.outputs import Container, SampleClass, describe_value, unpack_output
from search.schedule.apply.stitch import DenoiserSwitch
from search.schedule.apply.stores import HalvedStore, Store
from search.schedule.errors import ScheduleError
from search.schedule.model.nodes import ROOT
from search.schedule.plan.guidance import Guidance
from search.schedule.plan.tokens import OFF
from search.schedule.values import Value, copy_tensors, map_tensors


class DenoiserHook(PlannedHook):
    """The denoiser: counts CFG branches, checks that the run is complete, reuses or forecasts whole steps, and guides.

    The first steps of a run may be answered with what was recorded in another one that begins alike: then the denoiser
    does not run, and whatever surrounds it does.

    At a step of another denoiser that one is called instead, with the hooks that it has and none of ours. Values are
    cloned when they are stored and when they are returned, because a pipeline may write into what it gets.
    """

    def __init__(
        self,
        clock: Clock,
        stores: Mapping[str, Store],
        check: Callable[[int, Mapping[str, Any]], None],
        guidance: Guidance | None = None,
        stitch: DenoiserSwitch | None = None,
        ahead: Ahead | None = None,
    ) -> None:
        super().__init__(clock)
        self.stores, self.store, self.check = stores, stores[ROOT], check
        self.guidance, self.stitch, self.ahead = guidance, stitch, ahead
        self.calls: Counter[int] = Counter()  # that began at each step, of all runs, and followed the schedule
        self.full_calls: Counter[int] = Counter()  # that did not, as their run was unusual
        self.graphs = False  # whether CUDA graphs run beneath
        self.inputs: dict[int, tuple[Any, ...]] = {}  # branch -> shapes, dtypes and devices of this run
        self.container: Container | SampleClass | None = None  # of the outputs, as the last call returned them
        self.strict = False  # whether branches may not begin, nor their batch change, in the middle of a run
        self.records = False  # whether outputs are recorded
        self.answered = 0  # how many first steps of this run are answered with what is recorded
        self.recorded: list[tuple[Any, ...]] = []  # by step of this run, what each call returned; never written into

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return self.call(0, module, self.fn_ref.original_forward, args, kwargs)

    def call(self, expert: int, module: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """One call of the denoiser, or of the expert that runs at this step."""
        step, branch = self.clock.step, self.clock.calls
        if 0 <= step < self.answered:
            return self._answer(step, branch)
        self.check(expert, kwargs)
        output = self._forward(module, forward, *args, **kwargs)
        if self.records and step >= 0:
            del self.recorded[step + (branch > 0) :]
            before = self.recorded[step] if branch else ()
            self.recorded[step:] = [(*before, copy_tensors(output))]
        return output

    def begin_run(self, answers: Sequence[tuple[Any, ...]] = ()) -> None:
        """Begin a run whose first steps are answered with these outputs, by step and call."""
        self.recorded, self.answered = list(answers), len(answers)

    def _answer(self, step: int, branch: int) -> Any:
        outputs = self.recorded[step]
        if branch >= len(outputs):
            raise ScheduleError(
                f"the denoiser is called {branch + 1} times at step {step}, and was called {len(outputs)} times there "
                "in the run that this one continues; guidance must not change between runs"
            )
        self.clock.calls += 1
        return copy_tensors(outputs[branch])

    def _forward(self, module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs[parameter_names(type(module))[0]]
        latents = [leaf for leaf in tree_leaves(hidden) if isinstance(leaf, Tensor)]  # some denoisers take lists
        step, branch = self.clock.step, self.clock.calls
        if branch == 0 and latents:
            self.clock.follow(latents[0])
        self.clock.calls += 1
        signature = tuple((tuple(each.shape), each.dtype, each.device) for each in latents)
        if step == 0:
            self.inputs = {b: first for b, first in self.inputs.items() if b < branch} | {branch: signature}
        elif (first := self.inputs.get(branch)) != signature:
            if self.strict or not _differ_in_rows(first, signature, self.inputs):
                raise ScheduleError(
                    f"the denoiser's input changed from {describe_input(first)} to {describe_input(signature)} at step "
                    f"{step}; resolution, type and device must not change during a run, nor may guidance where blocks "
                    "are compiled, are in a group, or the schedule guides"
                )
            for store in self.stores.values():
                store.forget(branch)
            self.inputs[branch] = signature
        if self.clock.full:
            self.full_calls[step] += 1
            return self._run(partial(forward, *args, **kwargs))
        guidance = self.guidance
        if guidance is not None:
            if not isinstance(hidden, Tensor):
                raise ScheduleError(f"a guidance part is for denoisers of one batch, not of {describe_value(hidden)}")
            guidance.check(hidden, step, branch)
        token = self.store.tokens[step]
        self.calls[step] += 1
        if self.graphs:
            torch.compiler.cudagraph_mark_step_begin()  # outputs of the call before may be written into

        substitute = self.stitch.denoiser(step) if self.stitch else None
        run = forward if substitute is None else substitute

        def compute() -> Any:
            if self.ahead and (output := self.ahead.output(module, run, args, kwargs)) is not None:
                return output
            if guidance is None or not guidance.narrow(step):
                return run(*args, **kwargs)
            return run(**guidance.narrowed(module, step, args, kwargs))

        if token == OFF:
            output = self._run(compute)
            if self.stitch:
                self.stitch.count(step)
            computed, self.container = unpack_output(output)
            if self.store.keeps(step):
                self.store.keep(step, branch, map_tensors(torch.clone, computed))
            value = computed if guidance is None else self._guided(guidance, step, computed)
            if value is computed:
                return output
        else:
            value = map_tensors(torch.clone, self.read(self.store, lambda: unpack_output(compute())[0]))
            value = value if guidance is None else self._guided(guidance, step, value)
        assert self.container is not None  # set by the step that computed the value
        return self.container.pack(value)

    def _run(self, compute: Callable[[], Any]) -> Any:
        try:
            return compute()
        except BaseException:
            self.clock.stop()  # an interrupted run leaves no values behind
            raise

    def _guided(self, guidance: Guidance, step: int, value: Value) -> Tensor:
        if not isinstance(value, Tensor):
            raise ScheduleError(
                f"a guidance part is for denoisers that return one tensor, and this one returns {describe_value(value)}"
            )
        stored = self.store.guided_with(step, self.clock) if isinstance(self.store, HalvedStore) else None
        return guidance.returned(step, value, stored)


def _differ_in_rows(first: Sequence[Any] | None, now: Sequence[Any], others: Mapping[int, Sequence[Any]]) -> bool:
    """Whether inputs of a branch are as they were but for the rows, or it is new and of the type that others have."""
    if first is None:
        return {each[1:] for each in now} <= {each[1:] for other in others.values() for each in other}
    return len(first) == len(now) and all(
        a[0][1:] == b[0][1:] and a[1:] == b[1:] for a, b in zip(first, now, strict=True)
    )


class ExpertHook(PlannedHook):
    """A further expert of the same run: what the hook on the first one does, with another module."""

    def __init__(self, shared: DenoiserHook, expert: int) -> None:
        super().__init__(shared.clock)
        self.shared, self.expert = shared, expert

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return self.shared.call(self.expert, module, self.fn_ref.original_forward, args, kwargs)
