"""Watch the steps of a pipeline's call from outside: what the scheduler got and returned, and how to end it.

Nothing stays on the pipeline. Some pipelines copy their scheduler within the call, so it is the class that is watched;
a planned scheduler has a step of its own.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any

from torch import Tensor

from search.schedule.schedulers import step_arguments


class RunEnded(BaseException):
    """Ends a pipeline's call where the rest of it is not wanted. Not an error, so that no pipeline catches it."""


@dataclass(frozen=True, eq=False)
class RunStep:
    """One step of a run.

    Attributes:
        number: From 0.
        first: Index of the run's first step among the scheduler's timesteps; above 0 in runs from a picture.
        sample: The latents before it, as the scheduler was given them.
        output: What the denoiser gave, guided, as the scheduler was given it.
        latents: What the scheduler returned.
    """

    number: int
    first: int
    sample: Tensor
    output: Tensor
    latents: Tensor


@contextmanager
def watch_steps(scheduler: Any, on_step: Callable[[RunStep], None]) -> Iterator[None]:
    """Call `on_step` after each step that this scheduler makes."""
    number = first = 0

    def watched(original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        nonlocal number, first
        given = step_arguments(type(scheduler), args, kwargs)
        if number == 0:
            first = index_of_timestep(scheduler, given["timestep"])
        result = original(*args, **kwargs)
        on_step(RunStep(number, first, given["sample"], given["model_output"], result[0]))
        number += 1
        return result

    with replaced_step(scheduler, watched):
        yield


def index_of_timestep(scheduler: Any, timestep: Any) -> int:
    """Where a run begins among the scheduler's timesteps; 0 where this one is none of them."""
    timesteps = [float(t) for t in scheduler.timesteps]
    return timesteps.index(float(timestep)) if float(timestep) in timesteps else 0


@contextmanager
def replaced_step(
    scheduler: Any, step: Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
) -> Iterator[None]:
    """Let `step(original, args, kwargs)` stand for the scheduler's own step."""
    owner = scheduler if "step" in vars(scheduler) else type(scheduler)
    original = owner.step

    @wraps(original)
    def replacement(*args: Any, **kwargs: Any) -> Any:
        if owner is scheduler:
            return step(original, args, kwargs)
        if args[0] is not scheduler:
            return original(*args, **kwargs)
        return step(original.__get__(scheduler), args[1:], kwargs)

    with replaced_method(owner, "step", replacement):
        yield


@contextmanager
def replaced_method(owner: Any, name: str, replacement: Callable[..., Any]) -> Iterator[None]:
    """Let a function stand for a method of an object or class; afterwards it is as it was, inherited or its own."""
    inherited, original = name not in vars(owner), getattr(owner, name)
    setattr(owner, name, replacement)
    try:
        yield
    finally:
        if inherited:
            delattr(owner, name)
        else:
            setattr(owner, name, original)
