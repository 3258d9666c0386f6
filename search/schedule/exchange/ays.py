"""Align Your Steps (arXiv:2404.14507): the published tables, as diffusers ships them, at any number of steps.

Ten steps are as published. For other numbers NVIDIA's page interpolates the logarithm of sigma over the steps. Its
tables end with the smallest training sigma, 0.029, where diffusers' end with 0.0: it is put back for the
interpolation, from the scheduler.
"""

import math
from collections.abc import Mapping
from typing import Any

from diffusers.schedulers import AysSchedules

from search.schedule.errors import ScheduleError
from search.schedule.exchange.check import object_of, steps_of
from search.schedule.exchange.grid import finite_noise, gridded, set_grid, takes, timesteps_of
from search.schedule.exchange.masks import Parts
from search.schedule.exchange.sigmas import grid_parts
from search.schedule.noise import Noise

TIMESTEPS = {"AYS SD": "StableDiffusionTimesteps", "AYS SDXL": "StableDiffusionXLTimesteps"}
FIRST = 14.615  # the largest sigma of the models that these were made for


def from_ays(data: Any, sampler: Mapping[str, Any] | None) -> Parts:
    """`{"ays": "StableDiffusionSigmas", "num_inference_steps": 20}`, by default as many steps as are published."""
    config = object_of(data, "file")
    name = config.get("ays")
    if not isinstance(name, str) or name not in AysSchedules:
        raise ScheduleError(f"ays is {name!r:.60}; there are {', '.join(AysSchedules)}")
    sampler, scheduler = gridded(sampler)
    noise = finite_noise(scheduler)
    if noise.kind == "flow" or abs(nodes(name, noise)[0] / noise.sigmas[-1] - 1) > 0.02:
        raise ScheduleError(
            f"ays {name} begins at sigma {nodes(name, noise)[0]:g}, and the training sigmas of this "
            f"{sampler['class']} end at {noise.sigmas[-1]:.4g}: it is for another kind of model"
        )
    steps = steps_of(config.get("num_inference_steps", len(nodes(name, noise))), "num_inference_steps")
    if name.endswith("Timesteps") and steps == len(AysSchedules[name]) and takes(scheduler, "timesteps"):
        return grid_parts(*set_grid(scheduler, timesteps=AysSchedules[name]), sampler)
    sigmas = levels(name, steps, noise)
    return grid_parts(timesteps_of(sigmas, scheduler), [*sigmas, 0.0], sampler)


def levels(name: str, steps: int, noise: Noise) -> list[float]:
    """Falling sigmas [steps] of a table, without the terminal one, for a model of this noise schedule."""
    points = nodes(name, noise)
    if steps == len(points):
        return points
    logs = [math.log(sigma) for sigma in (*points, float(noise.sigmas[0]))]
    sigmas = []
    for i in range(steps):
        low, part = divmod(i / steps * len(points), 1)
        sigmas.append(math.exp(logs[int(low)] * (1 - part) + logs[int(low) + 1] * part))
    return sigmas


def timesteps(name: str, steps: int, noise: Noise) -> list[float]:
    """The same as fractional training timesteps."""
    if steps == len(table := AysSchedules[name]) and name.endswith("Timesteps"):
        return [float(t) for t in table]
    return list(noise.timestep(levels(name, steps, noise)).tolist())


def nodes(name: str, noise: Noise) -> list[float]:
    """The published sigmas without the terminal one."""
    table = AysSchedules[name]
    return list(noise.sigma(table).tolist()) if name.endswith("Timesteps") else [float(s) for s in table[:-1]]
