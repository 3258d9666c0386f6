"""The start part of a schedule: what a run begins with.

Another kind of start is another class here, a name in KINDS and a member of the union StartPart (parts/start.py).
"""

from collections.abc import Sequence

from torch import Tensor

from search.schedule.parts.start import InjectPart


class Injection:
    """Adds initial noise at some steps of a run. `noise` is the run's x_T [B, ...], None between runs."""

    def __init__(self, inject: InjectPart) -> None:
        self.inject = inject
        self.noise: Tensor | None = None
        self._steps: frozenset[int] = frozenset()

    def begin(self, timesteps: Sequence[float], training: int) -> None:
        """Begin a run on these timesteps [T], of `training` training timesteps."""
        self.noise, self._steps = None, frozenset(self.inject.steps(timesteps, training))

    def after(self, step: int, sample: Tensor, latents: Tensor) -> Tensor:
        """The latents [B, ...] of the next step, from those that the solver computed from `sample` at this one."""
        if step == 0 and self._steps:
            self.noise = sample.clone()
        if step + 1 not in self._steps or self.noise is None:
            return latents
        return latents + self.inject.strength * self.noise
