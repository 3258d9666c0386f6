"""The part of the file about how a run begins."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from search.schedule.errors import ScheduleError
from search.schedule.parts.part import Part

TRAINING = 1000  # `below` is of that many timesteps, whatever the scheduler's own number is


class InjectPart(Part):
    """Prior noise injection, Faster Diffusion (arXiv:2312.09608): strength * x_T, the initial latents, is added to
    the latents before every step whose timestep is under `below`, of 1000; published are 0.003 and 500.

    Nothing is added before the first step, which begins with x_T itself, or after the last one.

    Attributes:
        strength: Factor on x_T, 0 to 1; 0 adds nothing.
        below: Timestep of 1000 under which it is added, whatever the scheduler's number of training timesteps is.
    """

    strength: float = Field(ge=0, le=1)
    below: float = Field(gt=0, le=TRAINING)

    def steps(self, timesteps: Sequence[float], training: int) -> list[int]:
        """The steps before which noise is added; `timesteps` [T] are of so many training timesteps."""
        limit = self.below * training / TRAINING
        return [i for i, t in enumerate(timesteps) if i and t < limit and self.strength]


class NoiseStart(Part):
    """Noise, as the pipeline draws it.

    Attributes:
        kind: "noise".
        inject: Adds some of the noise again at later steps; null adds none.
    """

    kind: Literal["noise"]
    inject: InjectPart | None = None

    def normal(self, timesteps: Sequence[float] | None, training: int) -> dict[str, Any]:
        """The normal form: {} where noise is added at no step of these timesteps [T]."""
        inject = self.inject
        if inject is None or not inject.strength or (timesteps and not inject.steps(timesteps, training)):
            return {}
        return {"kind": self.kind, "inject": inject.model_dump()}


KINDS = ("noise",)


def _check_kind(value: Any) -> Any:
    kind = value.get("kind") if isinstance(value, dict) else None
    if isinstance(value, dict) and kind not in KINDS:
        raise ScheduleError(f"start.kind is {str(kind)[:60]!r}; this version has {', '.join(KINDS)}")
    return value


StartPart = Annotated[NoiseStart, BeforeValidator(_check_kind)]
