"""Steps run ahead: where a UNet's encoder is reused nothing reads the latents, so one call can run several steps.

Faster Diffusion (arXiv:2312.09608) decodes the steps that follow a key step as one batch. Outputs are those of single
steps up to the rounding of larger batches; while it runs, the batch takes memory for all its steps.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from search.schedule.apply.calls import arguments_by_name
from search.schedule.apply.clock import Clock
from search.schedule.apply.outputs import first_tensor
from search.schedule.apply.stores import MemoryMeter
from search.schedule.errors import ScheduleError
from search.schedule.values import batch_rows

STEP_ARGUMENTS = (
    "down_block_additional_residuals",
    "mid_block_additional_residual",
    "down_intrablock_additional_residuals",
)


class Ahead:
    """Runs the denoiser for several steps at once, and returns the output of each step at its turn."""

    def __init__(
        self,
        runs: Sequence[range],
        clock: Clock,
        memory: MemoryMeter,
        timesteps: Callable[[], Tensor],
    ) -> None:
        """`runs` are the batches of steps; `timesteps` gives the timesteps of the run [T]."""
        self.runs, self.clock, self.memory = {run[0]: run for run in runs}, clock, memory
        self.timesteps = timesteps
        self.ready: dict[tuple[int, int], Any] = {}  # (step, branch) -> what the denoiser returns there

    def clear(self) -> None:
        """Free the outputs that wait for their step."""
        for output in self.ready.values():
            self.memory.free(first_tensor(output))
        self.ready.clear()

    def output(
        self, module: nn.Module, forward: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """What the denoiser returns for this call; None where its step is not in a batch."""
        step, branch = self.clock.step, self.clock.calls - 1
        if (step, branch) in self.ready:
            output = self.ready.pop((step, branch))
            self.memory.free(first_tensor(output))
            return output
        if step not in self.runs:
            return None
        parts = self._together(module, forward, args, kwargs, self.runs[step])
        for later, part in zip(self.runs[step][1:], parts[1:], strict=True):
            self.ready[later, branch] = part
            self.memory.add(first_tensor(part))
        return parts[0]

    def _together(
        self, module: nn.Module, forward: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], run: range
    ) -> list[Any]:
        """The denoiser's return values at all steps of a run, from one call."""
        given, times = arguments_by_name(module, args, kwargs), self.timesteps()[run.start : run.stop]
        if changing := [name for name in STEP_ARGUMENTS if given.get(name) is not None]:
            raise ScheduleError(
                f"plan.ahead runs {len(run)} steps at once from step {run.start} on, but {changing[0]} differs from "
                "step to step; leave ahead out"
            )
        sample = next(iter(given.values()))
        timestep = torch.as_tensor(given["timestep"]).flatten()[0].item()
        if timestep != times[0].item():
            raise ScheduleError(
                f"plan.ahead takes the timesteps of the scheduler, {times[0].item():g} at step {run.start}, but "
                f"the denoiser was given {timestep:g}; leave ahead out"
            )
        batch = len(sample)
        given = {
            name: batch_rows(lambda t: t.repeat(len(run), *[1] * (t.dim() - 1)), v, batch) for name, v in given.items()
        }
        given["timestep"] = times.to(sample.device).repeat_interleave(batch)
        self.clock.span = len(run)
        try:
            output = forward(**given)
        finally:
            self.clock.span = 1
        parts = [part.clone() for part in first_tensor(output).chunk(len(run))]
        return [(part,) if isinstance(output, tuple) else type(output)(sample=part) for part in parts]
