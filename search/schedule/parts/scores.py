"""A score of a schedule, as its file records it."""

from typing import Literal

from pydantic import Field

from search.schedule.parts.part import Finite, Part


class ScorePart(Part):
    """A measured score: mean over prompts, 95 % interval, and on which prompts it was taken."""

    value: Finite
    ci: tuple[Finite, Finite] | None = None
    split: Literal["calibration", "held_out", "device"] = "held_out"
    unit: str = Field(default="", max_length=40)
