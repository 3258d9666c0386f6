"""Schedules for diffusers alone: a scheduler, and arguments of the pipeline's call."""

from collections.abc import Iterator, Mapping
from typing import Any

from search.schedule.errors import ScheduleError
from search.schedule.exchange.check import list_of, object_of, steps_of
from search.schedule.exchange.grid import (
    CLOSE,
    Grid,
    build,
    distance,
    full_sigmas,
    has_own_grid,
    set_grid,
    takes,
)
from search.schedule.exchange.loss import constant_scale, refuse_losses, solver_words, unsupported_parts
from search.schedule.exchange.masks import Parts
from search.schedule.exchange.sigmas import grid_parts
from search.schedule.model.nodes import Tree
from search.schedule.schedule import Schedule
from search.schedule.schedulers import ORDERED, public_config

REASON = "the pipeline's call takes no argument for it"
# Which of timesteps and sigmas the calls of a denoiser's pipelines take; for other denoisers both are tried.
ACCEPTED: Mapping[str, tuple[str, ...]] = {
    "DiTTransformer2DModel": (),
    "WanTransformer3DModel": (),
    "FluxTransformer2DModel": ("sigmas",),
    "SD3Transformer2DModel": ("sigmas",),
}
BOTH = ("timesteps", "sigmas")
FLUX = "FluxTransformer2DModel"  # its pipelines use even sigmas by default


def from_diffusers(data: Any, tree: Tree, sampler: Mapping[str, Any] | None = None) -> Parts:
    """`{"scheduler": {"class": …, "config": {…}}, "call": {…}}` as the grid that a pipeline of `tree` would run.

    Where the data has no scheduler, it is `sampler`, the pipeline's own.
    """
    call = object_of(object_of(data, "file").get("call", {}), "call")
    given: dict[str, Any] = {name: list_of(call[name], f"call.{name}") for name in BOTH if call.get(name) is not None}
    if not given:
        given = {"num_inference_steps": steps_of(call.get("num_inference_steps"), "call.num_inference_steps")}
    if "scheduler" not in data and "num_inference_steps" in given:
        return {"steps": given["num_inference_steps"]}
    part = object_of(data.get("scheduler", sampler), "scheduler")
    if not isinstance(part.get("class"), str):
        raise ScheduleError(f"scheduler.class is {part.get('class')!r:.40}; name a scheduler class of diffusers")
    part = {"class": part["class"], "config": dict(object_of(part.get("config", {}), "scheduler.config"))}
    if tree.model_class == FLUX and "num_inference_steps" in given:
        steps = given["num_inference_steps"]
        given = {"sigmas": [1 - i / steps for i in range(steps)]}
    return grid_parts(*set_grid(build(part), **given), part)


def to_diffusers(schedule: Schedule, lossy: bool = False) -> dict[str, Any]:
    """`scheduler` (class and config) and `call` (arguments); ScheduleError names what they would lose."""
    refuse_losses("diffusers", losses(schedule), lossy)
    scheduler, call = _plan(schedule)[:2]
    scale = constant_scale(schedule)
    call |= {"guidance_scale": scale if scale is not None else schedule.guidance.call} if schedule.guidance else {}
    return ({"scheduler": scheduler} if scheduler else {}) | {"call": call}


def losses(schedule: Schedule) -> list[str]:
    """What a scheduler and arguments would lose of this schedule, in words."""
    sampler, call, gap = _plan(schedule)
    lines = []
    if gap > CLOSE:
        how = f"the nearest, {', '.join(call)}, moves them by up to {gap:.3g} of 1000 training timesteps"
        lines.append(f"sampler: timesteps of its own ({sampler['class']} and its pipelines do not take them; {how})")
    words = solver_words(schedule)
    if words and not (_ordered(schedule) and "coefficients" not in (schedule.sampler or {})):
        lines += [f"{line} ({REASON})" for line in words]
    supported = ["sampler"] + (["guidance"] if constant_scale(schedule) is not None else [])
    return lines + unsupported_parts(schedule, supported, REASON)


def _plan(schedule: Schedule) -> tuple[dict[str, Any], dict[str, Any], float]:
    """Scheduler, arguments, and how far they move the grid: the first that do not move it, else the nearest."""
    steps = {"num_inference_steps": schedule.steps} if schedule.steps else {}
    if schedule.sampler is None:
        return {}, steps, 0.0
    unchanged = {"class": schedule.sampler["class"], "config": _config(schedule)}
    if has_own_grid(schedule.sampler):
        return unchanged, steps, 0.0
    wanted = full_sigmas(schedule.sampler, schedule.steps)
    tried = [(part, call, distance(grid, wanted)) for part, call, grid in _attempts(schedule, unchanged, wanted)]
    exact = [attempt for attempt in tried if attempt[2] <= CLOSE]
    return exact[0] if exact else min(tried, key=lambda attempt: attempt[2])


def _attempts(
    schedule: Schedule, unchanged: dict[str, Any], wanted: Grid
) -> Iterator[tuple[dict[str, Any], dict[str, Any], Grid]]:
    """Scheduler, arguments, and their grid, of all attempts that the class of scheduler takes."""
    accepted = ACCEPTED.get(schedule.tree.model_class, BOTH)
    timesteps, sigmas = wanted
    assert sigmas is not None
    unshifted = unchanged
    if unchanged["class"].startswith("FlowMatch"):  # which shifts what it is given
        unshifted = unchanged | {"config": unchanged["config"] | {"shift": 1.0, "use_dynamic_shifting": False}}
    ended = (
        sigmas if unchanged["class"] == "EulerDiscreteScheduler" else sigmas[:-1]
    )  # which reads the terminal one too
    for part, call in (
        (unchanged, {"timesteps": [round(t) for t in timesteps]}),
        (unshifted, {"sigmas": ended}),
        (unchanged, {"num_inference_steps": len(timesteps)}),
    ):
        scheduler, name = build(part), next(iter(call))
        if name == "num_inference_steps":
            shift = {"mu": 0.0} if scheduler.config.get("use_dynamic_shifting", False) else {}
            yield part, call, set_grid(scheduler, **call, **shift)
        elif name in accepted and takes(scheduler, name):
            try:
                yield part, call, set_grid(scheduler, **call)
            except ScheduleError:
                continue


def _config(schedule: Schedule) -> dict[str, Any]:
    """The scheduler's configuration; with orders as a class takes them by itself, the one that gives these."""
    assert schedule.sampler is not None
    config = dict(schedule.sampler.get("config", {}))
    if _ordered(schedule):
        config |= {"solver_order": max(map(int, schedule.sampler["order"])), "lower_order_final": False}
        if "euler_at_final" in public_config(build(schedule.sampler)):
            config["euler_at_final"] = False
    return config


def _ordered(schedule: Schedule) -> bool:
    """Whether the orders per step are what a class does by itself: rising to one order, and 1 where it ends at 0."""
    order = [int(k) for k in (schedule.sampler or {}).get("order", "")]
    if not order or (schedule.sampler or {})["class"] not in ORDERED:
        return False
    rising = [min(i + 1, max(order)) for i in range(len(order))]
    to_zero = full_sigmas(schedule.sampler or {}, schedule.steps)[1][-1] == 0
    return order == [*rising[:-1], 1 if to_zero else rising[-1]]
