"""The start part: what a run begins with. There is exactly one initialiser, told apart by its `kind`.

Another kind is another class here, a name in KINDS and a member of the union StartPart.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from torch import Tensor

from search.schedule.errors import ScheduleError
from search.schedule.part import Part

TRAINING = 1000  # timesteps that `below` counts in, whatever the scheduler's own number is


class InjectPart(Part):
    """Prior noise injection, Faster Diffusion (arXiv:2312.09608): strength * x_T, the initial latents, is added to
    the latents before every step whose timestep is under `below`, of 1000; published are 0.003 and 500.

    Nothing is added before the first step, which begins with x_T itself, or after the last one.
    """

    strength: float = Field(ge=0, le=1)
    below: float = Field(gt=0, le=TRAINING)

    def steps(self, timesteps: Sequence[float], training: int) -> list[int]:
        """The steps before which noise is added; `timesteps` [T] are of so many training timesteps."""
        limit = self.below * training / TRAINING
        return [i for i, t in enumerate(timesteps) if i and t < limit and self.strength]


class NoiseStart(Part):
    """Noise, as the pipeline draws it; with `inject` some of it comes back later."""

    kind: Literal["noise"]
    inject: InjectPart | None = None

    def normal(self, timesteps: Sequence[float] | None, training: int) -> dict[str, Any]:
        """What it does: nothing where no step of these timesteps gets noise."""
        inject = self.inject
        if inject is None or not inject.strength or (timesteps and not inject.steps(timesteps, training)):
            return {}
        return {"kind": self.kind, "inject": inject.model_dump()}


KINDS = ("noise",)


def _known(value: Any) -> Any:
    kind = value.get("kind") if isinstance(value, dict) else None
    if isinstance(value, dict) and kind not in KINDS:
        raise ScheduleError(f"start.kind is {str(kind)[:60]!r}; this version knows {', '.join(KINDS)}")
    return value


StartPart = Annotated[NoiseStart, BeforeValidator(_known)]


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
