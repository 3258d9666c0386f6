"""The start part: what a run begins with. There is exactly one initialiser, told apart by its `kind`.

Another kind is another class here, a name in KINDS and a member of the union StartPart.
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
        """A run begins on these timesteps [T]."""
        self.noise, self._steps = None, frozenset(self.inject.steps(timesteps, training))

    def after(self, step: int, sample: Tensor, latents: Tensor) -> Tensor:
        """The latents [B, ...] of the next step, from those that the solver made of `sample` at this one."""
        if step == 0 and self._steps:
            self.noise = sample.clone()
        if step + 1 not in self._steps or self.noise is None:
            return latents
        return latents + self.inject.strength * self.noise
