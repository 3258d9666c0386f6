"""The hook on the denoiser itself."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from search.schedule.apply.ahead import Ahead
from search.schedule.apply.calls import describe_input, parameter_names
from search.schedule.apply.clock import Clock
from search.schedule.apply.hooks import PlannedHook
from search.schedule.apply.outputs import first_tensor
from search.schedule.apply.stitch import DenoiserSwitch
from search.schedule.apply.stores import HalvedStore, Store
from search.schedule.errors import ScheduleError
from search.schedule.plan.guidance import Guidance
from search.schedule.plan.tokens import OFF


class DenoiserHook(PlannedHook):
    """The denoiser: counts CFG branches, checks that the run is complete, reuses or forecasts whole steps, and guides.

    At a step of another denoiser that one is called instead, with the hooks that it has and none of ours. Values are
    cloned when they are stored and when they are returned, because a pipeline may write into what it gets.
    """

    def __init__(
        self,
        clock: Clock,
        store: Store,
        check: Callable[[Mapping[str, Any]], None],
        guidance: Guidance | None = None,
        stitch: DenoiserSwitch | None = None,
        ahead: Ahead | None = None,
    ) -> None:
        super().__init__(clock)
        self.store, self.check, self.guidance, self.stitch, self.ahead = store, check, guidance, stitch, ahead
        self.calls: Counter[int] = Counter()  # that began at each step, of all runs
        self.graphs = False  # whether CUDA graphs run beneath
        self.inputs: dict[int, tuple[Any, ...]] = {}  # branch -> shape, dtype and device of this run
        self.container: Any = tuple  # of the outputs: a tuple, or a class with `sample`

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        self.check(kwargs)
        hidden = args[0] if args else kwargs[parameter_names(type(module))[0]]
        step, branch = self.clock.step, self.clock.calls
        if branch == 0:
            self.clock.follow(hidden)
        self.clock.calls += 1
        signature = tuple(hidden.shape), hidden.dtype, hidden.device
        if step == 0:
            self.inputs = {b: first for b, first in self.inputs.items() if b < branch} | {branch: signature}
        elif (first := self.inputs.get(branch)) != signature:
            raise ScheduleError(
                f"the denoiser's input changed from {describe_input(first)} to {describe_input(signature)} at step "
                f"{step}; "
                "batch, resolution, type, device and guidance must not change during a run"
            )
        guidance = self.guidance
        if guidance is not None:
            guidance.check(hidden, step, branch)
        token = self.store.tokens[step]
        self.calls[step] += 1
        if self.graphs:
            torch.compiler.cudagraph_mark_step_begin()  # outputs of the call before may be written into

        substitute = self.stitch.denoiser(step) if self.stitch else None
        run = self.fn_ref.original_forward if substitute is None else substitute

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
            tensor, self.container = first_tensor(output), type(output)
            if self.store.keeps(step):
                self.store.keep(step, branch, tensor.clone())
            value = tensor if guidance is None else self._guided(guidance, step, tensor)
            if value is tensor:
                return output
        else:
            value = self.read(self.store, lambda: first_tensor(compute())).clone()
            value = value if guidance is None else self._guided(guidance, step, value)
        if issubclass(self.container, Tensor):
            return value
        return (value,) if self.container is tuple else self.container(sample=value)

    def _guided(self, guidance: Guidance, step: int, value: Tensor) -> Tensor:
        stored = self.store.guided_with(step, self.clock) if isinstance(self.store, HalvedStore) else None
        return guidance.returned(step, value, stored)
