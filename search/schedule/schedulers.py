"""Facts about scheduler classes of diffusers: grids, configurations, orders."""

import copy
import inspect
import json
import math
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from typing import Any

import diffusers
import torch

from search.schedule.errors import ScheduleError

# Classes whose solver order follows `lower_order_nums`, and whose last step to sigma 0 is of order 1.
ORDERED = ("DPMSolverMultistepScheduler", "DEISMultistepScheduler", "UniPCMultistepScheduler")
# Classes that run whatever whole numbers stand in their `timesteps` array, and have no sigmas.
WITHOUT_SIGMAS = ("DDIMScheduler", "LCMScheduler")
# Classes that run whatever stands in their `timesteps` and `sigmas` arrays.
GRIDDED = (
    *ORDERED,
    "DPMSolverSinglestepScheduler",
    "EulerDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler",
    *WITHOUT_SIGMAS,
)

# Classes whose every step predicts the result and adds new noise to it: nothing of the noise before is left.
RENOISING = ("LCMScheduler", "FlowMatchLCMScheduler", "SCMScheduler", "CMStochasticIterativeScheduler")

STEP_ARGUMENTS = ("model_output", "timestep", "sample")  # of `step`, where its signature does not name them


def scheduler_class(name: str) -> type:
    """A scheduler class of diffusers by name; ScheduleError for any other name."""
    cls = getattr(diffusers, name, None) if name.endswith("Scheduler") else None
    if not (isinstance(cls, type) and issubclass(cls, diffusers.SchedulerMixin)):
        raise ScheduleError(f"sampler.class {name!r} is not a scheduler of diffusers {diffusers.__version__}")
    return cls


def build_scheduler(class_name: str, config: Mapping[str, Any], cls: Any = None) -> Any:
    """A scheduler of diffusers, or of `cls`; ScheduleError where the class is unknown or the configuration wrong."""
    cls = cls or scheduler_class(class_name)
    try:
        return cls.from_config(dict(config))
    except ScheduleError:
        raise
    except Exception as error:  # diffusers raises many kinds for one mistake: a config that does not fit
        raise ScheduleError(f"sampler.config does not fit {class_name}: {error}") from error


def renoises(scheduler: Any) -> bool:
    """Whether all noise of the state is drawn anew at every step, as samplers of consistency models do."""
    drawn = getattr(getattr(scheduler, "config", None), "stochastic_sampling", False)
    return type(scheduler).__name__ in RENOISING or bool(drawn)


def scheduler_of_part(sampler: Mapping[str, Any]) -> Any:
    """The scheduler of a sampler part, built once, to read from and never to run."""
    return _cached_scheduler(sampler["class"], json.dumps(sampler.get("config", {}), sort_keys=True))


@lru_cache(maxsize=64)
def _cached_scheduler(class_name: str, config_json: str) -> Any:
    return build_scheduler(class_name, json.loads(config_json))


def public_config(scheduler: Any) -> dict[str, Any]:
    """The scheduler's own arguments as JSON data; JSON has no infinities, so those are left to the default."""
    parameters = inspect.signature(type(scheduler).__init__).parameters
    config = {k: v.tolist() if hasattr(v, "tolist") else v for k, v in sorted(scheduler.config.items())}
    return {k: v for k, v in config.items() if k in parameters and not (isinstance(v, float) and not math.isfinite(v))}


def step_arguments(scheduler: type, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    """The arguments of a class's `step` by name; CogVideoX's takes them in another order than the others."""
    given = _step_signature(scheduler).bind(None, *args, **kwargs).arguments
    return given if "timestep" in given else dict(zip(STEP_ARGUMENTS, args, strict=False)) | dict(kwargs)


@cache
def _step_signature(scheduler: type) -> inspect.Signature:
    return inspect.signature(scheduler.step)  # type: ignore[attr-defined]


def scheduler_grid(scheduler: Any, steps: int, **given: Any) -> tuple[list[float], list[float] | None]:
    """Timesteps and sigmas of a scheduler as diffusers sets them.

    Args:
        scheduler: It is not changed.
        steps: How many steps.
        given: Other arguments of `set_timesteps`, such as `mu`.

    Returns:
        Timesteps [steps], and sigmas after the shift [steps + 1], None where the class has none.
    """
    probe = copy.deepcopy(scheduler)
    probe.set_timesteps(steps, **given)
    return grid_of_scheduler(probe)


def grid_of_scheduler(scheduler: Any) -> tuple[list[float], list[float] | None]:
    """Timesteps [T] and sigmas [T+1] that a scheduler is set to; None where the class has no sigmas."""
    sigmas = getattr(scheduler, "sigmas", None)
    timesteps = [float(t) for t in scheduler.timesteps]
    if sigmas is None or len(sigmas) != len(timesteps) + 1:
        return timesteps, None
    return timesteps, [float(s) for s in sigmas]


def forecast_coordinates(scheduler: Any, axis: str) -> list[float]:
    """Place of every step [T] on a forecast axis: index, timestep, sigma or logsnr."""
    timesteps = scheduler.timesteps.detach().float().cpu()
    sigmas = getattr(scheduler, "sigmas", None)
    flow = getattr(scheduler.config, "prediction_type", "") == "flow_prediction" or type(scheduler).__name__.startswith(
        "FlowMatch"
    )
    if axis == "index":
        values = torch.arange(len(timesteps), dtype=torch.float32)
    elif axis == "timestep":
        values = timesteps
    elif sigmas is not None and len(sigmas) == len(timesteps) + 1:
        sigma = sigmas.detach().float().cpu()[:-1]
        small = sigma.clamp(1e-4, 1 - 1e-4)
        values = sigma if axis == "sigma" else ((1 - small) / small if flow else 1 / sigma).log()
    elif (alphas := getattr(scheduler, "alphas_cumprod", None)) is None:
        raise ScheduleError(f"plan.axis {axis!r}: {type(scheduler).__name__} has no sigmas; use 'index' or 'timestep'")
    else:
        alphas = alphas.detach().float().cpu()[timesteps.round().long()].clamp(min=1e-12)
        sigma = ((1 - alphas) / alphas).sqrt()
        values = sigma if axis == "sigma" else -sigma.log()
    numbers: list[float] = values.tolist()
    return numbers


def check_order(name: str, order: Sequence[int], sigmas: Sequence[float] | None, config: Mapping[str, Any]) -> None:
    """Raise ScheduleError where the class of scheduler would not follow these orders, one per step [T]."""
    highest = 3 if name in ORDERED else 1
    for i, k in enumerate(order):
        if not 1 <= k <= min(highest, i + 1):
            raise ScheduleError(f"sampler.order is {k} at step {i}; {name} takes 1 to {min(highest, i + 1)} there")
    to_zero = name in ORDERED and name != "DEISMultistepScheduler" and config.get("final_sigmas_type", "zero") == "zero"
    if sigmas is not None and name != "DPMSolverMultistepScheduler":  # which goes by its config in any case
        to_zero = sigmas[-1] == 0
    if order[-1] != 1 and to_zero:
        raise ScheduleError(f"sampler.order ends with {order[-1]}; the step to sigma 0 is of order 1")
