"""Ranges of layers' inputs that change from step to step, in effect at the step that runs."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from search.schedule.apply.clock import Clock
from search.schedule.errors import ScheduleError
from search.schedule.noise import Noise
from search.schedule.parts.bits import BitsPart

TOLERANCE = 1e-4  # of a timestep: grids are computed in single precision on some devices


class StepRanges:
    """The ranges of all layers whose format is per step, for the timestep of the current step.

    At a timestep of the file they are those of the file. Between two of them they are interpolated in log-SNR;
    before the first and after the last one nothing was measured, and a run there is refused.

    Every layer holds a view of one tensor, which is filled when a step begins: code that was compiled for one
    step stays right at the next one.

    Args:
        part: The bits, with ranges for the timesteps `at`.
        clock: Of the run.
        timesteps: Gives those of the current run.
        scheduler: Gives the scheduler of the run, in whose noise schedule is interpolated.
    """

    def __init__(
        self, part: BitsPart, clock: Clock, timesteps: Callable[[], list[float]], scheduler: Callable[[], Any]
    ) -> None:
        self.at, self.clock, self.timesteps, self.scheduler = part.at, clock, timesteps, scheduler
        self.layers = [name for name, form in part.layers.items() if part.formats[form].per_step]
        self.sides = [len(part.ranges[name]) // len(part.at) for name in self.layers]
        self.table = torch.zeros(len(part.at), len(self.layers), 2, 2)  # timesteps, layers, sides, (least, greatest)
        for i, (name, sides) in enumerate(zip(self.layers, self.sides, strict=True)):
            self.table[:, i, :sides] = torch.tensor(part.ranges[name]).reshape(len(part.at), sides, 2)
        self.current = self.table[0].clone()
        self.rows = self.table[:0]  # of the steps of the current run [T, layers, 2, 2]

    @property
    def views(self) -> Mapping[str, Tensor]:
        """By layer [sides, 2]: what `go` fills."""
        layers = enumerate(zip(self.layers, self.sides, strict=True))
        return {name: self.current[i, :sides] for i, (name, sides) in layers}

    def begin_run(self, device: torch.device) -> None:
        """Take the ranges of every step of the run that begins; ScheduleError where one lies outside of `at`."""
        self.rows = step_rows(self.table, self.at, self.timesteps(), self.scheduler).to(device)
        if self.current.device != device:
            self.current = self.current.to(device)

    def go(self) -> None:
        """Put the ranges of the step that runs in effect."""
        step = self.clock.step
        if step > 0 and len(self.rows) != self.clock.steps:  # the first step showed that the run begins later
            self.begin_run(self.current.device)
        if step >= 0:
            self.current.copy_(self.rows[step])


def step_rows(table: Tensor, at: Sequence[float], timesteps: Sequence[float], scheduler: Callable[[], Any]) -> Tensor:
    """The rows of a table [timesteps of `at`, ...] for other timesteps, interpolated in log-SNR.

    Raises:
        ScheduleError: A timestep lies outside of `at`, or the scheduler has no noise schedule to interpolate in.
    """
    check_covered(at, timesteps)
    distances = np.abs(np.subtract.outer(timesteps, at))
    places = distances.argmin(1).astype(float)
    moved = distances.min(1) > TOLERANCE
    if moved.any():
        noise = Noise.of_scheduler(scheduler())
        known, wanted = (np.clip(noise.logsnr(noise.sigma(values)), -30, 30) for values in (at, timesteps))
        places[moved] = np.interp(wanted[moved], known, np.arange(len(at)))
    low = torch.as_tensor(np.floor(places), dtype=torch.long)
    share = torch.as_tensor(places - np.floor(places), dtype=table.dtype)
    return torch.lerp(table[low], table[(low + 1).clamp(max=len(at) - 1)], share.reshape(-1, *[1] * (table.ndim - 1)))


def check_covered(at: Sequence[float], timesteps: Sequence[float]) -> None:
    """Raise ScheduleError where ranges at some timesteps do not reach as far as others."""
    for timestep in timesteps:
        if not at[-1] - TOLERANCE <= timestep <= at[0] + TOLERANCE:
            raise ScheduleError(
                f"bits.at has ranges for timesteps {at[0]:g} to {at[-1]:g}, and this run has the timestep "
                f"{timestep:g}; measure them on this grid with search.calibrate.ranges.with_measured_ranges, or use "
                "formats with one range for all steps (w8a8s) or for each input (w8a8d)"
            )
