"""What a schedule is held to: its own claims or limits that were typed."""

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


FEWEST = 8  # pictures before anything is decided
DIGITS = {"dB": ".1f", "×": ".2f"}  # of a score, by its unit; others have four


def criteria_for(schedule: "Schedule", tolerance: float = 1.25, criterion: str = "") -> list[Condition]:
    """What a schedule is held to: what was typed, or `tolerance` times what its file claims."""
    if criterion:
        units = measured_units()
        known: dict[str, Any] = {"held_out": dict.fromkeys(units)}
        return parse_conditions(criterion, [known], units)
    if not 1 <= tolerance <= 100:
        raise ValueError(f"tolerance={tolerance:g}: give 1 to 100, of the drift that the file claims; for example 1.25")
    if (claim := claimed_criteria(schedule).get("drift")) is None:
        raise ValueError(
            "this schedule has no scores to hold it to; say what is good enough: "
            'criterion="drift<=0.1" or criterion="drift<=0.1 and psnr>=30"'
        )
    return [Condition("drift", "<=", tolerance * (claim.value if claim.high is None else claim.high))]


def measured_qualities() -> "tuple[type[Drift], type[Psnr], type[Ssim]]":
    """Classes of the qualities that can be measured without a search."""
    from search.objectives.drift import Drift
    from search.objectives.psnr import Psnr
    from search.objectives.ssim import Ssim

    return Drift, Psnr, Ssim


@cache
def measured_units() -> dict[str, str]:
    """Names and units of the scores that are measured here."""
    return {about.key: about.unit for about in (*measured_qualities(), Speedup)}


def claimed_criteria(schedule: "Schedule") -> dict[str, Score]:
    """The scores of a schedule's file that can be measured again."""
    found = {}
    for name, part in schedule.scores.items():
        if name in measured_units() and part.get("split") != "calibration":
            found[name] = Score(part["value"], *(part.get("ci") or (None, None)))
    return found


def decide(limit: Condition, score: Score) -> bool | None:
    """Whether a limit is surely kept, surely not, or neither is sure."""
    whole = {"value": score.value, "low": score.low, "high": score.high}
    if limit.surely({"held_out": {limit.name: whole}}):
        return True
    ends = [v for v in whole.values() if v is not None]
    return None if any(limit.holds({"held_out": {limit.name: {"value": v}}}) for v in ends) else False


def all_hold(limits: Sequence[Condition], scores: Mapping[str, Score]) -> bool | None:
    found = [decide(limit, scores[limit.name]) for limit in limits]
    return False if False in found else None if None in found else True
