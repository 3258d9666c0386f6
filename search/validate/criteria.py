"""The criteria that a schedule is verified against: the scores that its file claims, or limits that were typed."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from search.results.pick import Condition, parse_conditions
from search.results.scores import Score, Speedup

if TYPE_CHECKING:
    from search.objectives.drift import Drift
    from search.objectives.psnr import Psnr
    from search.objectives.ssim import Ssim
    from search.schedule import Schedule


FEWEST = 8  # pictures, before which no verdict is given
DIGITS = {"dB": ".1f", "×": ".2f"}  # number format of a score by its unit; four digits for other units


def criteria_for(schedule: "Schedule", tolerance: float = 1.25, criterion: str = "") -> list[Condition]:
    """The conditions of a criterion that was typed, or `tolerance` times the drift that the schedule's file claims.

    Raises:
        ValueError: The criterion cannot be read, or there is none and the file claims no drift.

    Example:
        >>> from search.schedule import Schedule
        >>> from search.validate.criteria import criteria_for
        >>> schedule = Schedule.load("docs/presets/pixart/fora-n-2.json")
        >>> limits = criteria_for(schedule, criterion="drift<=0.1 and psnr>=30")
        >>> [(limit.name, limit.sign, limit.limit) for limit in limits]
        [('drift', '<=', 0.1), ('psnr', '>=', 30.0)]
    """
    if criterion:
        units = measured_units()
        names: dict[str, Any] = {"held_out": dict.fromkeys(units)}
        return parse_conditions(criterion, [names], units)
    if not 1 <= tolerance <= 100:
        raise ValueError(f"tolerance={tolerance:g}: give 1 to 100, of the drift that the file claims; for example 1.25")
    if (claim := claimed_criteria(schedule).get("drift")) is None:
        raise ValueError(
            "this schedule has no scores to hold it to; say what is good enough: "
            'criterion="drift<=0.1" or criterion="drift<=0.1 and psnr>=30"'
        )
    return [Condition("drift", "<=", tolerance * (claim.value if claim.high is None else claim.high))]


def measured_qualities() -> "tuple[type[Drift], type[Psnr], type[Ssim]]":
    """Classes of the qualities that are measured without a search."""
    from search.objectives.drift import Drift
    from search.objectives.psnr import Psnr
    from search.objectives.ssim import Ssim

    return Drift, Psnr, Ssim


@cache
def measured_units() -> dict[str, str]:
    """Units of the scores that can be verified, by name."""
    return {about.key: about.unit for about in (*measured_qualities(), Speedup)}


def claimed_criteria(schedule: "Schedule") -> dict[str, Score]:
    """The scores in a schedule's file that can be measured again."""
    return {
        name: Score(part["value"], *(part.get("ci") or (None, None)))
        for name, part in schedule.scores.items()
        if name in measured_units() and part.get("split") != "calibration"
    }


def decide(limit: Condition, score: Score) -> bool | None:
    """True if the whole interval of a score meets a limit, False if no part of it does, else None."""
    interval = {"value": score.value, "low": score.low, "high": score.high}
    if limit.surely({"held_out": {limit.name: interval}}):
        return True
    ends = [v for v in interval.values() if v is not None]
    return None if any(limit.holds({"held_out": {limit.name: {"value": v}}}) for v in ends) else False


def all_hold(limits: Sequence[Condition], scores: Mapping[str, Score]) -> bool | None:
    """True if all limits surely hold, False if one surely does not, else None."""
    decisions = [decide(limit, scores[limit.name]) for limit in limits]
    return False if False in decisions else None if None in decisions else True
