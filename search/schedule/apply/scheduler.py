"""The scheduler that follows a planned grid and a solver table."""

import copy
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import torch
from diffusers.schedulers.scheduling_utils import SchedulerOutput

from search.schedule.apply.clock import Clock, refuse_copy
from search.schedule.apply.finite_check import FiniteCheck
from search.schedule.apply.injection import Injection
from search.schedule.apply.linear_solver import LinearSolver
from search.schedule.apply.planned_grid import StepsOfGap, check_steps, is_even, write_grid
from search.schedule.apply.scheduler_check import check_runs
from search.schedule.errors import ScheduleError
from search.schedule.parts.start import TRAINING
from search.schedule.schedulers import (
    GRIDDED,
    WITHOUT_SIGMAS,
    build_scheduler,
    check_order,
    forecast_coordinates,
    scheduler_class,
    step_arguments,
)

SAVING = ("save_pretrained", "save_config", "push_to_hub")  # methods that write a scheduler's configuration


def plan_scheduler(
    scheduler: Any,
    clock: Clock,
    *,
    steps: int | None,
    class_name: str | None = None,
    config: dict[str, Any] | None = None,
    timesteps: Sequence[float] | None = None,
    sigmas: Sequence[float] | None = None,
    order: Sequence[int] | None = None,
    axis: str = "index",
    solver: LinearSolver | None = None,
    injection: Injection | None = None,
) -> Any:
    """Copy a scheduler of diffusers, so that the copy drives a clock and follows a plan; every part is optional.

    Args:
        scheduler: The pipeline's; it is not changed.
        clock: Is started by the copy's `set_timesteps` and advanced by its `step`.
        steps: How many steps a run has; None for any number.
        class_name: Another class of scheduler.
        config: The configuration of that class.
        timesteps: [T], falling.
        sigmas: [T+1], after the shift; they go with `timesteps`.
        order: Order of the solver at each step [T].
        axis: Where forecasts place the steps: index, timestep, sigma or logsnr.
        solver: A table that runs in place of the scheduler's own solver.
        injection: Adds initial noise at some steps.

    Raises:
        ScheduleError: This class of scheduler cannot run the plan.
    """
    planned = _build(scheduler, class_name, config, order)
    name = type(planned).__name__
    if timesteps is not None and name not in GRIDDED:
        raise ScheduleError(f"sampler.timesteps: {name} runs no given timesteps; use {', '.join(GRIDDED)}")
    if name in WITHOUT_SIGMAS and sigmas is not None:
        raise ScheduleError(f"sampler.sigmas: {name} has none; leave them out")
    if name == "DEISMultistepScheduler" and sigmas is not None and sigmas[-1] == 0:
        raise ScheduleError(f"sampler.sigmas ends with 0; {name} takes its logarithm, so end above 0")
    if order is not None:
        check_order(name, order, sigmas, planned.config)
    plan = _PlannedScheduler(planned, clock, steps, timesteps, sigmas, order, axis, solver, injection)
    plan.install()
    if timesteps is not None:
        planned.planned_steps = len(timesteps)
    if steps is not None:
        planned.schedule_steps = steps
    for name in SAVING:  # what is saved is the pipeline's own
        if hasattr(scheduler, name):
            setattr(planned, name, getattr(scheduler, name))
    return planned


class _PlannedScheduler:
    """What a planned scheduler does in place of `set_timesteps` and `step`; the arguments are `plan_scheduler`'s."""

    def __init__(
        self,
        scheduler: Any,
        clock: Clock,
        steps: int | None,
        timesteps: Sequence[float] | None,
        sigmas: Sequence[float] | None,
        order: Sequence[int] | None,
        axis: str,
        solver: LinearSolver | None,
        injection: Injection | None,
    ) -> None:
        self.scheduler, self.clock, self.steps = scheduler, clock, steps
        self.timesteps, self.sigmas, self.order, self.axis = timesteps, sigmas, order, axis
        self.solver, self.injection = solver, injection
        self.original_set_timesteps, self.original_step = scheduler.set_timesteps, scheduler.step
        self.gaps: list[int] = []  # DDIM only: from each step to the next; its own grid runs as diffusers runs it

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        refuse_copy(protocol)

    def install(self) -> None:
        """Put these methods in the place of the scheduler's own."""
        scheduler = self.scheduler
        scheduler.set_timesteps = _like(scheduler.set_timesteps, self.set_timesteps)
        scheduler.step = _like(scheduler.step, self.step)
        scheduler.__deepcopy__, scheduler.__reduce_ex__ = self.copy, self.__reduce_ex__

    def copy(self, memo: dict[int, Any]) -> Any:
        """A scheduler of the same plan that counts steps of its own: some pipelines copy theirs within the call."""
        copied = object.__new__(type(self.scheduler))
        placed = ("set_timesteps", "step", "__deepcopy__", "__reduce_ex__", *SAVING)
        vars(copied).update(copy.deepcopy({k: v for k, v in vars(self.scheduler).items() if k not in placed}, memo))
        clock = Clock(finite_check=self.clock.finite_check and FiniteCheck())
        clock.step, clock.steps, clock.places = self.clock.step, self.clock.steps, self.clock.places
        solver, injection = None, copy.copy(self.injection)
        if self.solver is not None:  # with the rows of this one, also where they are fitted in the running call
            solver = LinearSolver(self.solver.state, self.solver.outputs)
            solver.values = list(self.solver.values)
        grid = self.steps, self.timesteps, self.sigmas, self.order, self.axis
        plan = _PlannedScheduler(copied, clock, *grid, solver, injection)
        plan.gaps = list(self.gaps)
        plan.install()
        return copied

    def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
        """Begin a run, on the planned timesteps where there are any."""
        scheduler = self.scheduler
        self.clock.prepare()
        if self.timesteps is None:
            self.original_set_timesteps(*args, **kwargs)
            _check_device(scheduler)
            if self.steps is not None and len(scheduler.timesteps) < self.steps:
                check_steps(self.steps, len(scheduler.timesteps))
        else:
            arguments = inspect.signature(self.original_set_timesteps).bind(*args, **kwargs).arguments
            self._set_planned(self.timesteps, arguments)
        places = [float(i) for i in range(len(scheduler.timesteps))]
        if self.injection is not None:
            training = scheduler.config.get("num_train_timesteps", TRAINING)
            self.injection.begin(scheduler.timesteps.tolist(), training)
        if self.axis != "index":
            places = forecast_coordinates(scheduler, self.axis)
        self.clock.start(len(scheduler.timesteps), places)

    def _set_planned(self, timesteps: Sequence[float], given: Mapping[str, Any]) -> None:
        """Set the planned grid; `given` are the arguments of the caller's `set_timesteps`."""
        if given.get("timesteps") is not None or not is_even(given.get("sigmas")):
            raise ScheduleError("the schedule brings its own timesteps; call the pipeline without timesteps and sigmas")
        wanted = given.get("num_inference_steps") or _length(given.get("sigmas")) or len(timesteps)
        if wanted < len(timesteps):
            check_steps(len(timesteps), wanted)
        passed_on = {k: v for k, v in given.items() if k in ("device", "mu") and v is not None}
        self.original_set_timesteps(num_inference_steps=wanted, **passed_on)
        _check_device(self.scheduler)
        left_out = wanted - len(timesteps)  # of a run that begins later, from a picture
        self.gaps.clear()
        if type(self.scheduler).__name__ == "DDIMScheduler" and self.scheduler.timesteps[left_out:].tolist() != list(
            timesteps
        ):
            self.gaps.extend(int(a - b) for a, b in zip(timesteps, [*timesteps[1:], -1], strict=True))
        write_grid(self.scheduler, timesteps, self.sigmas, left_out)

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """Take one step, by the table or by the scheduler's own solver at the planned order."""
        at, given = self.clock.step, step_arguments(type(self.scheduler), args, kwargs)
        self._check_step(at, given["timestep"])
        if at == 0:
            with self.clock.ended_by_refusal():
                self._begin_at(float(given["timestep"]))
        if self.order is not None:
            self.scheduler.lower_order_nums = self.order[at] - 1
        if self.gaps:
            self.scheduler.num_inference_steps = StepsOfGap(len(self.gaps), self.gaps[at])
        monitor = self.clock.monitor
        if self.solver is None or (monitor is not None and monitor.needs_own_solver):
            result = self.original_step(*args, **kwargs)
        if self.solver is not None and not self.clock.full:
            sample = self.solver.step(at, given["model_output"], given["sample"])
            result = (sample,) if not given.get("return_dict", True) else SchedulerOutput(prev_sample=sample)
        if self.injection is not None:
            result = _with_latents(result, self.injection.after(at, given["sample"], result[0]))
        if self.clock.steps == 1 and isinstance(result, tuple) and len(result) == 1:
            result = (*result, result[0])  # PixArt's pipeline takes the predicted picture, where one step ends
        if self.clock.finite_check is not None:
            self.clock.finite_check.record(at, self.clock.steps, result[0])
        if monitor is not None and monitor.record(at, given["model_output"]):
            self.clock.full = True
        self.clock.advance()
        self.clock.follow(result[0])
        return result

    def _check_step(self, at: int, timestep: Any) -> None:
        if at < 0:
            raise ScheduleError(
                "scheduler.step was called more often than there are steps; call the pipeline again, or "
                "scheduler.set_timesteps before a loop of your own"
            )

    def _begin_at(self, timestep: float) -> None:
        """Count the steps from this timestep on: runs from a picture leave the first ones out."""
        timesteps = [float(t) for t in self.scheduler.timesteps]
        if timestep not in timesteps:
            raise ScheduleError(
                f"the run starts at timestep {timestep:g}, which is not one of the scheduler's, "
                f"{timesteps[0]:g} to {timesteps[-1]:g}; a schedule is for runs on the scheduler's own timesteps"
            )
        first = timesteps.index(timestep)
        if self.steps is not None:
            check_steps(self.steps, len(timesteps) - first, first)
        if first and self.injection is not None:
            raise ScheduleError(
                f"the schedule adds noise to whole runs, and this one begins at step {first}, from a picture; leave "
                "start out"
            )
        self.clock.begin_at(first)


def _check_device(scheduler: Any) -> None:
    if scheduler.timesteps.is_meta:
        raise ScheduleError(
            "the pipeline's device is meta, as its weights are offloaded module by module; use "
            "pipe.enable_model_cpu_offload() instead"
        )


def _length(sigmas: Sequence[float] | None) -> int | None:
    return None if sigmas is None else len(sigmas)


def _like(original: Callable[..., Any], replacement: Callable[..., Any]) -> Callable[..., Any]:
    """The replacement with the signature of the original, which pipelines look at."""

    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        return replacement(*args, **kwargs)

    return call


def _with_latents(result: Any, latents: torch.Tensor) -> Any:
    """What a scheduler's step returned, with other latents."""
    if isinstance(result, tuple):
        return (latents, *result[1:])
    return type(result)(**{**result, "prev_sample": latents})


def _build(scheduler: Any, class_name: str | None, config: dict[str, Any] | None, order: Sequence[int] | None) -> Any:
    """A scheduler of this class and configuration, set up for `order`; by default a copy of the given one."""
    if class_name is None:
        cls, config = type(scheduler), dict(scheduler.config)
    else:
        cls = scheduler_class(class_name)
        parameters = set(inspect.signature(cls.__init__).parameters)
        if unknown := sorted(set(config or {}) - parameters):
            raise ScheduleError(f"sampler.config has {unknown[:9]}, which {class_name} does not take")
        if config and config.get("solver_p") is not None:
            raise ScheduleError("sampler.config.solver_p is another scheduler, which no file can hold; leave it out")
        config = dict(config or {})
        check_runs(class_name, config)
    if order is None and class_name is None:
        return copy.deepcopy(scheduler)
    if order is not None:
        config |= {"solver_order": max(order), "lower_order_final": False}
        if "euler_at_final" in inspect.signature(cls.__init__).parameters:
            config["euler_at_final"] = False
    return build_scheduler(cls.__name__, {k: v for k, v in config.items() if not k.startswith("_")}, cls)
