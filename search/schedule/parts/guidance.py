"""The part of the file about classifier-free guidance."""

from typing import Annotated, Any

from pydantic import Field

from search.schedule.errors import ScheduleError
from search.schedule.parts.part import Finite, Part
from search.schedule.plan.guidance import GAIN, RADIUS, Approximation
from search.schedule.plan.tokens import MAX_STEPS, denoiser_switches, steps_since_switch

Weight = Annotated[float, Field(ge=-100, le=100)]
Weights = Weight | Annotated[list[Weight], Field(max_length=MAX_STEPS)]


class ApproximatePart(Part):
    """How a step A estimates the unconditional output from the conditional one, FasterCache (arXiv:2410.19355).

    It adds the last full step's difference of the halves, with its frequencies weighted.

    Attributes:
        low: Weight of the low frequencies, a number or one per step.
        high: Weight of the others, a number or one per step.
        radius: How far from the spectrum's centre frequencies are low, in parts of the shorter side, 0 to 1.
    """

    low: Weights = GAIN
    high: Weights = GAIN
    radius: float = Field(default=RADIUS, ge=0, le=1)


class GuidancePart(Part):
    """Classifier-free guidance per step; without this part guidance is the pipeline's.

    Attributes:
        call: The guidance_scale of the pipeline call, above 1.
        scale: The scale of each step [T] instead, 0 to 1000; null is `call` at every step.
        branch: What each step [T] computes, null is C at every step. C computes both halves of the batch, O only the
            conditional one (no guidance), R reuses the unconditional half's last output, A approximates it, M runs one
            merged pass on text states extrapolated from the unconditional ones by the scale.
        approximate: The weights of steps A; null is FasterCache's.
    """

    call: Finite
    scale: list[Finite] | None = Field(default=None, max_length=MAX_STEPS)
    branch: str | None = Field(default=None, max_length=MAX_STEPS, pattern="^[CORMA]+$")
    approximate: ApproximatePart | None = None

    @property
    def is_off(self) -> bool:
        """Whether every step is guided as the pipeline does it."""
        return self.normal() == {"call": self.call}

    def normal(self) -> dict[str, Any]:
        """The normal form: without scales that are not used (O), unused weights, and the pipeline's own values."""
        scale, branch = list(self.scale or ()), self.branch or ""
        for i, kind in enumerate(branch[: len(scale)]):
            scale[i] = self.call if kind == "O" else scale[i]
        body: dict[str, Any] = {"call": self.call}
        body |= {"scale": scale} if set(scale) - {self.call} else {}
        body |= {"branch": branch} if set(branch) - {"C"} else {}
        return body | ({"approximate": self._weights(branch)} if "A" in branch else {})

    def approximation(self, steps: int) -> Approximation:
        """The weights of every step [T]."""
        part = self.approximate or ApproximatePart()
        low, high = (tuple(w) if isinstance(w, list) else (w,) * steps for w in (part.low, part.high))
        return Approximation(low, high, part.radius)

    def _weights(self, branch: str) -> dict[str, Any]:
        """What steps A use: one number where they agree, and no radius where low and high weights are the same."""
        weights = self.approximation(len(branch))
        used = [i for i, kind in enumerate(branch) if kind == "A"]
        entries: dict[str, Any] = {}
        for name, values in (("low", weights.low), ("high", weights.high)):
            one = len({values[i] for i in used}) == 1
            used_values = [value if kind == "A" else 1.0 for value, kind in zip(values, branch, strict=True)]
            entries[name] = float(values[used[0]]) if one else used_values
        return entries | ({"radius": weights.radius} if entries["low"] != entries["high"] else {})


def check_guidance(guidance: GuidancePart, steps: int, at: str) -> None:
    """Raise ScheduleError where lengths or scales are wrong, or a step reuses what no full step has computed."""
    approximate = guidance.approximate or ApproximatePart()
    lists = (("approximate.low", approximate.low), ("approximate.high", approximate.high))
    for field, values in (("scale", guidance.scale), ("branch", guidance.branch), *lists):
        if isinstance(values, list | str) and len(values) != steps:
            raise ScheduleError(f"guidance.{field} has {len(values)} entries; {steps} steps need {steps}")
    if not 1 < guidance.call <= 1000:
        raise ScheduleError(f"guidance.call is {guidance.call}; guidance needs a scale above 1, at most 1000")
    for i, scale in enumerate(guidance.scale or []):
        if not 0 <= scale <= 1000:
            raise ScheduleError(f"guidance.scale is {scale} at step {i}; admissible is 0 to 1000")
    began, full, barriers = 0, False, denoiser_switches(at)
    for step, kind in enumerate(guidance.branch or ""):
        if step in barriers:
            began, full = step, False
        full |= kind == "C"
        if kind in "RA" and not full:
            raise ScheduleError(
                f"guidance.branch is {kind} at step {step}, but no C came before it{steps_since_switch(began)} to reuse"
            )
