"""Trace a scheduler of diffusers to the linear table that it computes."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from search.schedule.apply.clock import Clock
from search.schedule.apply.scheduler import plan_scheduler
from search.solvers.table import SolverTable

# Tracing


class Float64Tensor(torch.Tensor):
    """A float64 tensor that stays one: schedulers round their sample to float32 on the way."""

    def to(self, *args: Any, **kwargs: Any) -> "Float64Tensor":
        return self


def trace_scheduler(
    scheduler: Any,
    steps: int | None = None,
    *,
    timesteps: Sequence[float] | None = None,
    sigmas: Sequence[float] | None = None,
) -> SolverTable:
    """The table that `scheduler.step` computes, from runs on unit vectors in float64.

    Args:
        scheduler: A scheduler of diffusers; it is not changed.
        steps: Trace the scheduler's own grid of so many steps; or give `timesteps`.
        timesteps: Falling timesteps [T] of a given grid.
        sigmas: The sigmas [T+1] of this grid, where the class has them.

    Returns:
        The coefficients of T steps.

    Raises:
        ValueError: The scheduler draws noise, clips, or is not linear in the state and the outputs; says what to use.

    Example:
        >>> from diffusers import DDIMScheduler
        >>> from search.solvers.trace import trace_scheduler
        >>> table = trace_scheduler(DDIMScheduler(clip_sample=False), steps=3)
        >>> table.state.shape, table.outputs.shape
        ((3,), (3, 3))
    """
    check_linear(scheduler)
    name = type(scheduler).__name__
    if (steps is None) == (timesteps is None):
        raise ValueError("give either steps or timesteps (with sigmas, where the class has them)")

    def fresh() -> Any:
        planned = plan_scheduler(scheduler, Clock(), steps=None, timesteps=timesteps, sigmas=sigmas)
        shift = {"mu": 1.0} if planned.config.get("use_dynamic_shifting") else {}  # the given grid is after the shift
        planned.set_timesteps(steps if timesteps is None else len(timesteps), **shift)
        for key, value in list(vars(planned).items()):  # constants of float32 keep their values
            if key != "timesteps" and isinstance(value, torch.Tensor) and value.is_floating_point():
                setattr(planned, key, value.double())
        return planned

    def run(x: torch.Tensor, e: torch.Tensor) -> np.ndarray:
        """States [T, B] after x [B, 1], where the denoiser gives e [B, T]."""
        planned, states = fresh(), []
        for j, t in enumerate(planned.timesteps):
            if hasattr(planned, "scale_model_input"):
                planned.scale_model_input(x, t)  # some insist that it was called
            x = planned.step(e[:, [j]].as_subclass(Float64Tensor), t, x.as_subclass(Float64Tensor), return_dict=False)[
                0
            ]
            states.append(x.as_subclass(torch.Tensor)[:, 0])
        trajectory: np.ndarray = torch.stack(states).numpy()
        return trajectory

    try:
        with torch.random.fork_rng(devices=[]):
            units = torch.eye(1 + len(fresh().timesteps), dtype=torch.float64)
            rows = run(units[:, :1], units[:, 1:])
            drawn = 3 * torch.randn(4, len(units), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
            first, second = (run(drawn[:, :1], drawn[:, 1:]) for _ in range(2))
    except (TypeError, RuntimeError, IndexError, AttributeError, NotImplementedError, ImportError) as error:
        raise ValueError(f"{name} cannot be traced: its step fails on plain tensors ({error})") from error
    table = SolverTable(rows[:, 0].copy(), rows[:, 1:].copy())
    if not math.isfinite(table.size):
        raise ValueError(f"{name} gives no finite numbers on this grid; use another solver or grid")
    if not np.array_equal(first, second, equal_nan=True):
        raise ValueError(f"{name} draws noise at every step; a table takes a deterministic scheduler such as DDIM")
    if not np.allclose(first, rows @ drawn.numpy().T, rtol=1e-6, atol=1e-6 * np.abs(first).max()):
        raise ValueError(f"{name} is not linear in the state and the outputs (it clips or rescales); use another")
    return table


def check_linear(scheduler: Any) -> None:
    """Check that a scheduler's steps are linear and deterministic, and call the denoiser once each.

    Raises:
        ValueError: Names the setting that makes them otherwise, and what to set instead.
    """
    name, config = type(scheduler).__name__, scheduler.config
    if scheduler.order != 1:
        raise ValueError(
            f"{name} calls the denoiser {scheduler.order} times a step; a table takes one call a step, as "
            "DPMSolverMultistepScheduler does"
        )
    if getattr(config, "thresholding", False):
        raise ValueError(f"{name} thresholds x0, which is not linear; set its thresholding false")
    if getattr(config, "clip_sample", False):
        raise ValueError(f"{name} clips x0, which is not linear; set its clip_sample false")
    if str(getattr(config, "algorithm_type", "")).startswith("sde"):
        raise ValueError(f"{name} draws noise; set its algorithm_type dpmsolver++")
    if getattr(config, "stochastic_sampling", False):
        raise ValueError(f"{name} draws noise; set its stochastic_sampling false")
