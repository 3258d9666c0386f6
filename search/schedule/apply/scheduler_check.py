"""Whether a scheduler's configuration runs: it is tried on a tiny tensor before anything on a pipeline is changed.

Diffusers checks few of its arguments when a scheduler is built; the others fail in the first call, each in its own way.
"""

import inspect
import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch

from search.schedule.errors import ScheduleError
from search.schedule.schedulers import build_scheduler

TRIED_STEPS = 4


def check_runs(class_name: str, config: Mapping[str, Any]) -> None:
    """Raise ScheduleError where a scheduler of this class and configuration fails, with the key that is to blame."""
    reason = _failure(class_name, json.dumps(config, sort_keys=True, default=str), tuple(sorted(config)))
    if reason:
        raise ScheduleError(reason)


@lru_cache(maxsize=256)
def _failure(class_name: str, config_json: str, keys: tuple[str, ...]) -> str:
    """Why it fails, "" where it runs."""
    config = json.loads(config_json)
    error = _try(class_name, config)
    if not error:
        return ""
    for key in keys:
        if not _try(class_name, {k: v for k, v in config.items() if k != key}):
            return f"sampler.config.{key} is {config[key]!r:.80}, with which {class_name} fails: {error}"
    return f"sampler.config does not run with {class_name}: {error}"


def _try(class_name: str, config: Mapping[str, Any]) -> str:
    """The error of a short run on a tiny tensor; "" where it ends with finite numbers."""
    errors = [_run(class_name, config, channels) for channels in (1, 2)]  # 2: the denoiser also gives a variance
    return "" if "" in errors else errors[0]


def _run(class_name: str, config: Mapping[str, Any], channels: int) -> str:
    try:
        scheduler = build_scheduler(class_name, config)
        takes = inspect.signature(scheduler.set_timesteps).parameters
        given = {"mu": 1.0} if "mu" in takes and scheduler.config.get("use_dynamic_shifting") else {}
        scheduler.set_timesteps(TRIED_STEPS, **given)
        sample = torch.linspace(-1, 1, 4).reshape(1, 1, 2, 2)
        for t in scheduler.timesteps:
            value = scheduler.scale_model_input(sample, t) if hasattr(scheduler, "scale_model_input") else sample
            sample = scheduler.step(value.repeat(1, channels, 1, 1) / 2, t, sample, return_dict=False)[0]
    except Exception as error:  # of whatever kind diffusers and torch raise
        cause = error.__cause__ if isinstance(error, ScheduleError) and error.__cause__ else error
        return f"{type(cause).__name__}: {str(cause).strip()[:200]}"
    return "" if torch.isfinite(sample).all() else "it gives values that are not finite"
