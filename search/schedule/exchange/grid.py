"""Timesteps and sigmas of a scheduler: which of them belong together, and which the scheduler sets by itself.

A sampler here is the part of a schedule file, `{"class": …, "config": …}` and perhaps a grid. Sigmas are sigma/alpha
of models that predict noise, v or samples, and in 0..1 of flow models.
"""

import copy
import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from search.schedule.errors import ScheduleError
from search.schedule.noise import Noise, is_flow
from search.schedule.schedulers import GRIDDED, build_scheduler, public_config, scheduler_grid

Grid = tuple[list[float], list[float] | None]
FRACTIONAL = ("EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler")  # the others run whole timesteps
NEAR = 2e-3  # of one training timestep: float32 arithmetic
MAX_SIGMA = math.sqrt((1 - 2.0**-48) / 2.0**-48)  # of 48 bits of signal
MOST = 100_000  # training timesteps, and any other whole number of a configuration
CLOSE = 0.05  # of 1000 training timesteps: two grids of this distance are one


def sampler_of(pipe: Any) -> dict[str, Any]:
    """Class and configuration of a pipeline's scheduler."""
    return {"class": type(pipe.scheduler).__name__, "config": public_config(pipe.scheduler)}


def build(sampler: Mapping[str, Any]) -> Any:
    """The scheduler; ScheduleError where its configuration does not fit."""
    for name, value in sampler.get("config", {}).items():
        if isinstance(value, int) and abs(value) > MOST:  # a scheduler makes tables of such a size at once
            raise ScheduleError(f"sampler.config.{name:.40} is {value}; admissible are numbers up to {MOST}")
    return build_scheduler(sampler["class"], sampler.get("config", {}))


def gridded(sampler: Mapping[str, Any] | None) -> tuple[Mapping[str, Any], Any]:
    """A sampler and its scheduler; ScheduleError where none is given, or a schedule cannot bring it timesteps."""
    if sampler is None:
        raise ScheduleError("timesteps and sigmas are those of a scheduler; give a pipeline: exchange.load(path, pipe)")
    if sampler["class"] not in GRIDDED:
        raise ScheduleError(f"{sampler['class']} cannot run given timesteps; use {', '.join(GRIDDED)}")
    return sampler, build(sampler)


def finite_noise(scheduler: Any) -> Noise:
    """The scheduler's noise schedule, its sigmas finite also where nothing of the signal is left."""
    noise = Noise.of_scheduler(scheduler)
    return replace(noise, sigmas=np.minimum(noise.sigmas, MAX_SIGMA))


def timesteps_of(sigmas: Sequence[float], scheduler: Any) -> list[float]:
    """The timesteps that a class runs at these sigmas, without the terminal one [T]; ScheduleError where they meet."""
    name = type(scheduler).__name__
    if name == "EulerDiscreteScheduler":
        timesteps = set_grid(scheduler, sigmas=[*sigmas, 0.0])[0]
    elif is_flow(scheduler):
        count = int(scheduler.config.num_train_timesteps)
        timesteps = (torch.tensor(list(sigmas), dtype=torch.float32) * count).tolist()
    else:
        timesteps = finite_noise(scheduler).timestep(sigmas).tolist()
    if name not in FRACTIONAL:
        whole = [float(math.floor(t + NEAR) if is_flow(scheduler) else round(t)) for t in timesteps]
        timesteps = whole if _falls(whole) else timesteps
    if not _falls(timesteps):
        close = next(i for i, (a, b) in enumerate(zip(timesteps, timesteps[1:], strict=False)) if not a > b)
        raise ScheduleError(
            f"sigmas {sigmas[close]:g} and {sigmas[close + 1]:g} are one timestep, {timesteps[close]:g}; leave one out"
        )
    return timesteps


def _falls(values: Sequence[float]) -> bool:
    return all(a > b for a, b in zip(values, values[1:], strict=False))


def full_sigmas(sampler: Mapping[str, Any], steps: int | None) -> tuple[list[float], list[float]]:
    """Timesteps [T] and sigmas [T+1] that a sampler part runs."""
    scheduler = build(sampler)
    timesteps, sigmas = sampler.get("timesteps"), sampler.get("sigmas")
    if timesteps is None:
        if steps is None:
            raise ScheduleError("the schedule is for any number of steps; its timesteps are not known")
        timesteps, sigmas = scheduler_grid(scheduler, steps)
    if sigmas is None:
        sigmas = [*finite_noise(scheduler).sigma(timesteps).tolist(), 0.0]
    return list(timesteps), list(sigmas)


def takes(scheduler: Any, name: str) -> bool:
    """Whether the class's `set_timesteps` has such an argument."""
    return name in inspect.signature(scheduler.set_timesteps).parameters


def set_grid(scheduler: Any, **given: Any) -> Grid:
    """Timesteps [T] and sigmas [T+1] after `set_timesteps`; ScheduleError where the class does not take that."""
    probe = copy.deepcopy(scheduler)
    try:
        probe.set_timesteps(**given)
    except Exception as error:  # TypeError, ValueError or NotImplementedError, by class
        what = next(iter(given))
        raise ScheduleError(
            f"{type(scheduler).__name__} takes no {what} of its own with this configuration ({error})"
        ) from None
    timesteps, sigmas = [float(t) for t in probe.timesteps], getattr(probe, "sigmas", None)
    return timesteps, None if sigmas is None or len(sigmas) != len(timesteps) + 1 else [float(s) for s in sigmas]


def distance(grid: Grid, wanted: Grid) -> float:
    """The largest difference: of timesteps, and of sigmas relative to the largest, in training timesteps."""
    if len(grid[0]) != len(wanted[0]):
        return math.inf
    gap = max(abs(a - b) for a, b in zip(grid[0], wanted[0], strict=True))
    if grid[1] is None or wanted[1] is None:
        return gap
    scale = 1000 / max(*wanted[1], 1e-9)
    return max(gap, *(abs(a - b) * scale for a, b in zip(grid[1], wanted[1], strict=True)))


def has_own_grid(sampler: Mapping[str, Any]) -> bool:
    """Whether the timesteps are those that the scheduler sets itself for so many steps."""
    if sampler.get("timesteps") is None:
        return True
    wanted = list(sampler["timesteps"]), sampler.get("sigmas")
    return any(distance(grid, wanted) < CLOSE for grid in own_grids(sampler))


def own_grids(sampler: Mapping[str, Any]) -> Iterator[Grid]:
    """Grids that pipelines may set for that many steps: the class's own, or even sigmas, as those of Flux do.

    Where the shift depends on the resolution, it is taken from the last sigma of the sampler part.
    """
    scheduler, steps = build(sampler), len(sampler["timesteps"])
    even = [1 - i / steps for i in range(steps)]
    for given in ({"num_inference_steps": steps}, {"sigmas": even}):
        try:
            yield set_grid(scheduler, **given, **_shift(scheduler, given, sampler.get("sigmas")))
        except ScheduleError:
            continue


def _shift(scheduler: Any, given: Mapping[str, Any], sigmas: Sequence[float] | None) -> dict[str, float]:
    """The argument `mu` of a scheduler whose shift depends on the resolution."""
    if not scheduler.config.get("use_dynamic_shifting", False) or not sigmas:
        return {}
    linear = scheduler.config.get("time_shift_type", "exponential") == "linear"
    bare = set_grid(scheduler, **given, mu=1.0 if linear else 0.0)[1]
    last, plain = sigmas[-2], (bare or sigmas)[-2]
    odds = (last / (1 - last)) / (plain / (1 - plain)) if 0 < last < 1 and 0 < plain < 1 else 1.0
    return {"mu": odds if linear else math.log(odds)}
