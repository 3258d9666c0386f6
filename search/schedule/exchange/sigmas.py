"""Sigmas and timesteps as text: ComfyUI's node `ManualSigmas`, and SD.Next's list of timesteps.

ComfyUI wants model-space sigmas with the terminal one: sigma/alpha of models that predict noise or v, of flow models
0..1 after their shift. SD.Next reads whole numbers, at least three.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from search.schedule.errors import ScheduleError
from search.schedule.exchange.grid import (
    CLOSE,
    build,
    distance,
    finite_noise,
    full_sigmas,
    gridded,
    set_grid,
    timesteps_of,
)
from search.schedule.exchange.loss import plain, refuse_losses, solver_words, unsupported_parts
from search.schedule.exchange.masks import Parts
from search.schedule.noise import is_flow
from search.schedule.plan.tokens import MAX_STEPS
from search.schedule.schedule import Schedule

Sampler = Mapping[str, Any]
FEWEST = 3  # SD.Next takes fewer for no timesteps at all
BEYOND = 1.02  # how far above the training sigmas a list may begin: published tables are rounded
COMFYUI = "ManualSigmas holds sigmas, nothing else"
SDNEXT = "SD.Next's setting holds timesteps, nothing else"


def from_sigmas(data: Any, sampler: Sampler | None) -> Parts:
    """Falling sigmas with the terminal one, text or a list, as the grid of a scheduler, its class and config."""
    given = _numbers(data, "sigmas")
    sampler, scheduler = gridded(sampler)
    if len(given) < 2 or any(a <= b for a, b in zip(given, given[1:], strict=False)) or given[-1] < 0:
        raise ScheduleError(
            f"sigmas are {', '.join(f'{s:g}' for s in given[:6])}; they have to fall from step to step, down to a "
            "terminal value such as 0.0, which belongs to the list"
        )
    if given[0] > (most := 1.0 if is_flow(scheduler) else finite_noise(scheduler).sigmas[-1] * BEYOND):
        raise ScheduleError(
            f"sigmas begin at {given[0]:g}, and this {sampler['class']} knows none above {most:.4g}: they are for "
            "another kind of model"
        )
    return grid_parts(timesteps_of(given[:-1], scheduler), given, sampler)


def from_timesteps(data: Any, sampler: Sampler | None) -> Parts:
    """Falling whole timesteps, text or a list, as pipelines take them: of flow models 1000 times the sigmas before
    their shift.
    """
    given = _numbers(data, "timesteps")
    sampler, scheduler = gridded(sampler)
    timesteps, sigmas = set_grid(scheduler, **_set_arguments(given, scheduler))
    return grid_parts(timesteps, sigmas, sampler)


def grid_parts(timesteps: Sequence[float], sigmas: Sequence[float] | None, sampler: Sampler) -> Parts:
    """`steps` and the sampler part with this grid."""
    part = {"class": sampler["class"], "config": dict(sampler.get("config", {})), "timesteps": list(timesteps)}
    if sigmas is not None and sampler["class"] != "DDIMScheduler":
        part["sigmas"] = list(sigmas)
    return {"steps": len(part["timesteps"]), "sampler": part}


def to_comfyui(schedule: Schedule, lossy: bool = False) -> str:
    """The text of a ManualSigmas node; ScheduleError names what it would lose."""
    _, sigmas = _grid(schedule)
    refuse_losses("comfyui", losses_of_sigmas(schedule), lossy)
    return ", ".join(map(plain, sigmas))


def losses_of_sigmas(schedule: Schedule, reason: str = COMFYUI) -> list[str]:
    """What a list of sigmas would lose of this schedule, in words."""
    timesteps, sigmas = _grid(schedule)
    implied = timesteps_of(sigmas[:-1], build(_sampler(schedule)))
    gap = max(abs(a - b) for a, b in zip(implied, timesteps, strict=True))
    lines = [f"{line} ({reason})" for line in solver_words(schedule)]
    if gap > CLOSE:
        lines.append(f"sampler: the denoiser gets timesteps up to {gap:.3g} away from those of its sigmas ({reason})")
    return lines + unsupported_parts(schedule, ("sampler",), reason)


def to_sdnext(schedule: Schedule, lossy: bool = False) -> str:
    """SD.Next's comma-separated timesteps; ScheduleError names what they would lose."""
    numbers = _whole(schedule)
    if len(numbers) < FEWEST:
        raise ScheduleError(f"the schedule has {len(numbers)} steps; SD.Next reads timesteps from {FEWEST} on")
    scheduler = build(_sampler(schedule))
    set_grid(scheduler, **_set_arguments(numbers, scheduler))  # ScheduleError where the class takes none
    refuse_losses("sdnext", losses_of_timesteps(schedule), lossy)
    return ", ".join(map(str, numbers))


def losses_of_timesteps(schedule: Schedule) -> list[str]:
    """What whole timesteps would lose of this schedule, in words."""
    wanted = _grid(schedule)
    scheduler = build(_sampler(schedule))
    lines = [f"{line} ({SDNEXT})" for line in solver_words(schedule)]
    try:
        gap = distance(set_grid(scheduler, **_set_arguments(_whole(schedule), scheduler)), wanted)
    except ScheduleError as error:
        lines.append(f"sampler: {error}")
    else:
        if gap > CLOSE:
            lines.append(f"sampler: whole timesteps move the grid by up to {gap:.3g} of 1000 training timesteps")
    return lines + unsupported_parts(schedule, ("sampler",), SDNEXT)


def _sampler(schedule: Schedule) -> Sampler:
    if schedule.sampler is None:
        raise ScheduleError(
            "the schedule has no sampler part: the pipeline's own timesteps run, there is nothing to write"
        )
    return schedule.sampler


def _grid(schedule: Schedule) -> tuple[list[float], list[float]]:
    return full_sigmas(_sampler(schedule), schedule.steps)


def _whole(schedule: Schedule) -> list[int]:
    """Timesteps as pipelines take them: of flow matching, before the shift."""
    timesteps, sigmas = _grid(schedule)
    scheduler = build(_sampler(schedule))
    if not type(scheduler).__name__.startswith("FlowMatch"):
        return [round(t) for t in timesteps]
    shift = 1.0 if scheduler.config.get("use_dynamic_shifting", False) else float(scheduler.config.shift)
    return [round(1000 * s / (shift - (shift - 1) * s)) for s in sigmas[:-1]]


def _set_arguments(timesteps: Sequence[float], scheduler: Any) -> dict[str, list[Any]]:
    """The argument that pipelines give to `set_timesteps`: timesteps, or sigmas where their class is of flow matching.

    SD.Next divides by 1000 where a pipeline takes sigmas only, as those of Flux and SD 3 do.
    """
    if type(scheduler).__name__.startswith("FlowMatch"):
        return {"sigmas": [t / 1000 for t in timesteps]}
    return {"timesteps": [round(t) for t in timesteps]}


def _numbers(data: Any, what: str) -> list[float]:
    if isinstance(data, str):
        words = [word for word in re.split(r"[\s,]+", data.strip(" \n\t,")) if word]
        if wrong := next((word for word in words if not re.fullmatch(r"\d{1,9}(\.\d{0,60})?|\.\d{1,60}", word)), None):
            raise ScheduleError(
                f"{what} have {wrong[:40]!r}; write numbers such as 14.6, without exponents, with commas between them"
            )
        data = [float(word) for word in words]
    if not isinstance(data, list) or not 0 < len(data) <= MAX_STEPS + 1:
        raise ScheduleError(f"{what} are {data!r:.40}; they have to be a list of 1 to {MAX_STEPS + 1} numbers")
    for number in data:
        if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
            raise ScheduleError(f"{what} have {number!r:.40}; admissible are finite numbers")
    return [float(number) for number in data]
