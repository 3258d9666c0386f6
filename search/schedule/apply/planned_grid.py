"""Write planned timesteps and sigmas into a scheduler that diffusers has just set."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from search.schedule.errors import ScheduleError
from search.schedule.schedulers import WITHOUT_SIGMAS


def is_even(sigmas: Sequence[float] | None) -> bool:
    """Whether a caller gave no sigmas, or the even ones from 1 to 1/n that Flux pipelines always give."""
    if sigmas is None:
        return True
    given = torch.tensor([float(s) for s in sigmas])
    return bool(torch.allclose(given, torch.linspace(1, 1 / max(len(given), 1), len(given)), atol=1e-6))


class StepsOfGap(int):
    """A step count that DDIM's `num_train_timesteps // num_inference_steps` turns into the wanted gap."""

    gap: int

    def __new__(cls, steps: int, gap: int) -> "StepsOfGap":
        self = super().__new__(cls, steps)
        self.gap = gap
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (int(self), self.gap)

    def __rfloordiv__(self, other: int) -> int:
        return self.gap


def write_grid(planned: Any, timesteps: Sequence[float], sigmas: Sequence[float] | None, left_out: int) -> None:
    """Overwrite the arrays that set_timesteps has just made, but for the first entries, which the run leaves out.

    So there are no conventions about arguments of a class to trust.
    """
    device = planned.timesteps.device
    whole = all(math.floor(t) == t for t in timesteps)
    dtype = planned.timesteps.dtype if whole else torch.float32
    before = planned.timesteps[:left_out].to(dtype)
    planned.timesteps = torch.cat([before, torch.tensor(timesteps, dtype=dtype, device=device)])
    planned.num_inference_steps = len(planned.timesteps)
    if (name := type(planned).__name__) in WITHOUT_SIGMAS:
        highest = planned.config.num_train_timesteps - 1
        if not whole or timesteps[0] > highest:
            raise ScheduleError(f"sampler.timesteps: {name} takes whole numbers from 0 to {highest}")
        return
    if sigmas is None:
        raise ScheduleError(f"sampler.sigmas is missing; {name} needs {len(timesteps) + 1} of them")
    given = torch.tensor(sigmas, dtype=planned.sigmas.dtype, device=planned.sigmas.device)
    planned.sigmas = torch.cat([planned.sigmas[:left_out], given])


def check_steps(steps: int, made: int, left_out: int = 0) -> None:
    """Raise ScheduleError where a run makes another number of steps than the schedule has.

    Args:
        steps: Of the schedule.
        made: Of the run.
        left_out: How many of the scheduler's steps the run leaves out, as it begins from a picture.
    """
    if made == steps:
        return
    if left_out:
        raise ScheduleError(
            f"this schedule has {steps} steps, and the run begins at step {left_out} and makes {made}; call the "
            "pipeline with the arguments that were searched, those of schedule.call"
        )
    raise ScheduleError(
        f"this schedule has {steps} steps, but the pipeline runs {made}; call it with num_inference_steps={steps}"
    )
