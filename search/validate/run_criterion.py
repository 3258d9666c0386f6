"""The criterion of certificates: a condition that every single run is held to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from search.objectives.base import Distance, Objective, Quality, Reward
from search.results.pick import Condition, parse_conditions

DROP = "_drop"  # ends the name of a reward's drop: the teacher's value minus the schedule's
EXAMPLE = 'certify="psnr>=30"'


@dataclass(frozen=True)
class RunCriterion:
    """A condition on one value of each run.

    Attributes:
        text: As it is typed and reported: `psnr>=30`, `clip_drop<=1`.
        limit: The condition.
        objective: Name of the quality that is measured.
        quality: It measures the runs.
        is_drop: Whether the value is the teacher's reward minus the schedule's.
    """

    text: str
    limit: Condition
    objective: str
    quality: Quality
    is_drop: bool

    def values(self, measured: Sequence[float], teacher: Sequence[float] | None = None) -> list[float]:
        """The values that the condition is about; a drop needs the teacher's rewards of the same runs."""
        if not self.is_drop:
            return [float(value) for value in measured]
        assert teacher is not None
        return [float(before - after) for before, after in zip(teacher, measured, strict=True)]

    def missed(self, values: Sequence[float]) -> list[bool]:
        """Which of the runs with these values miss the criterion; a value that is not a number misses it."""
        return [not self.limit.met_by(value) for value in values]

    def badness(self, value: float) -> float:
        """A number that is the greater the worse a value is."""
        return value if "<" in self.limit.sign else -value


def run_criterion(text: str, objectives: Mapping[str, Objective]) -> RunCriterion:
    """The criterion that a text says.

    Args:
        text: One condition on a quality: `psnr>=30`, `drift<=0.1`; of a reward also on its drop: `clip_drop<=1`.
        objectives: What is measured of every run, by name.

    Raises:
        ValueError: It is not one condition on a value that every run has; the message says what can be typed.

    Example:
        >>> from search.objectives.psnr import Psnr
        >>> from search.validate.run_criterion import run_criterion
        >>> criterion = run_criterion("psnr >= 30dB", {"psnr": Psnr()})
        >>> criterion.text, criterion.missed([29.9, 30.0])
        ('psnr>=30', [True, False])
    """
    qualities = {n: o for n, o in objectives.items() if isinstance(o, Quality) and not isinstance(o, Distance)}
    drops = {name + DROP: quality for name, quality in qualities.items() if isinstance(quality, Reward)}
    named = qualities | drops
    try:
        limits = parse_conditions(text, [{"held_out": dict.fromkeys(named)}], {n: q.unit for n, q in named.items()})
    except ValueError as error:
        reason = str(error).partition("; use recommended")[0]
        raise ValueError(
            f"certify: {reason}; give one condition on a value of every run, such as {EXAMPLE}, on "
            f"{', '.join(named)}, or on an objective that guard=[…] names; certify=off promises nothing"
        ) from None
    if len(limits) != 1:
        raise ValueError(f"certify={text!r} has {len(limits)} conditions; give one, such as {EXAMPLE}")
    (limit,) = limits
    quality, is_drop = named[limit.name], limit.name in drops
    better = "<" if is_drop or quality.better == "lower" else ">"
    if better not in limit.sign:
        side = "lower" if better == "<" else "higher"
        raise ValueError(f"certify={text!r}: {side} values of {limit.name} are better; type {limit.name}{better}=…")
    name = limit.name.removesuffix(DROP) if is_drop else limit.name
    return RunCriterion(f"{limit.name}{limit.sign}{limit.limit:g}", limit, name, quality, is_drop)
