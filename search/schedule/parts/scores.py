"""A score of a schedule, as its file records it."""

from typing import Literal

from pydantic import Field

from search.schedule.parts.part import Finite, Part


class ScorePart(Part):
    """A measured score.

    Attributes:
        value: The mean over prompts.
        ci: Its 95 % interval (low, high); null where there is none.
        split: Where it was measured: on calibration prompts, on held-out prompts, or a time on the device.
        unit: The unit in words; "" without one.
    """

    value: Finite
    ci: tuple[Finite, Finite] | None = None
    split: Literal["calibration", "held_out", "device"] = "held_out"
    unit: str = Field(default="", max_length=40)
