"""The verdict on a schedule: whether it meets its criteria, the measured scores, and what to do if it does not."""

import html
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from search.results.pick import Condition
from search.results.scores import Score
from search.validate.criteria import DIGITS, FEWEST, decide, measured_units

if TYPE_CHECKING:
    from search.schedule import Schedule

EXIT = {True: 0, False: 1, None: 3}
WORDS = {True: "holds", False: "does not hold", None: "undecided"}


@dataclass(frozen=True)
class Verdict:
    """Whether a schedule meets its criteria on this machine.

    Attributes:
        passed: True, False, or None if the pictures that there was time for do not decide it.
        reason: The decisive scores in words.
        criterion: The conditions, such as `drift<=0.1 and psnr>=30`.
        scores: Means with 95 % intervals, measured here.
        claimed: The scores that the schedule's file states.
        differences: What differs from the file's record (architecture, library versions, device, arguments of the
            pipeline call), by name: (in the file, here).
        values: The scores of each picture.
        seconds: How long it took.
        schedule: The schedule with its new certificate, where one was asked for and is given.
    """

    passed: bool | None
    reason: str
    criterion: str
    scores: Mapping[str, Score] = field(default_factory=dict)
    claimed: Mapping[str, Score] = field(default_factory=dict)
    differences: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    values: Mapping[str, Sequence[float]] = field(default_factory=dict)
    seconds: float = 0.0
    schedule: "Schedule | None" = None

    def with_schedule(self, schedule: "Schedule | None") -> "Verdict":
        """The same verdict with a schedule that has its new certificate."""
        return replace(self, schedule=schedule)

    @property
    def samples(self) -> int:
        """Number of pictures that were compared."""
        return len(next(iter(self.values.values()), ()))

    @property
    def exit_code(self) -> int:
        """0 if it passed, 1 if it did not, 3 if it was not decided."""
        return EXIT[self.passed]

    def __str__(self) -> str:
        lines = [f"{WORDS[self.passed]}: {self.reason}"]
        for name, score in self.scores.items():
            claim = f"   in the file: {score_text(name, self.claimed[name])}" if name in self.claimed else ""
            lines.append(f"  {name:<8} {score_text(name, score)}{claim}")
        lines += [f"  {name}: {there} in the file, {here} here" for name, (there, here) in self.differences.items()]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        colour = {True: "#1a7f37", False: "#b42318", None: "#8a6100"}[self.passed]
        rows = [
            f"<tr><td>{name}</td><td>{score_text(name, score)}</td>"
            f"<td>{score_text(name, self.claimed[name]) if name in self.claimed else ''}</td></tr>"
            for name, score in self.scores.items()
        ]
        rows += [
            f"<tr><td>{html.escape(name)}</td><td>{html.escape(here)}</td><td>{html.escape(there)}</td></tr>"
            for name, (there, here) in self.differences.items()
        ]
        return (
            f'<p><b style="color:{colour}">{WORDS[self.passed]}</b>: {html.escape(self.reason)}</p>'
            f"<table><tr><th></th><th>here</th><th>in the file</th></tr>{''.join(rows)}</table>"
        )


def reason_of(
    passed: bool | None, limits: Sequence[Condition], scores: Mapping[str, Score], count: int, most: int
) -> str:
    """The limits that decide, with the measured scores; if nothing is decided also how to measure more.

    `count` pictures were measured of at most `most`.
    """
    words = {True: "is surely", False: "is surely not", None: "could be"}
    parts = []
    for limit in limits:
        decision = decide(limit, scores[limit.name])
        if decision is passed:
            measured = f"{limit.name} {score_text(limit.name, scores[limit.name])}"
            unsure = " or not" if decision is None else ""
            parts.append(f"{measured} {words[decision]} {limit.sign} {limit.limit:.4g}{unsure}")
    text = f"{' and '.join(parts)}, {count} pictures"
    if passed is not None:
        return text
    more = "measure longer with seconds=" if count < most else "measure more pictures with samples="
    few = f", and {FEWEST} are needed" if count < FEWEST else ""
    return f"{text}{few}; {more}, or type what is good enough with criterion="


def remedy_for(differing: Mapping[str, tuple[str, str]]) -> str:
    """The end of a message: the command to type if the schedule was made for another number of steps or size."""
    if "class" in differing:
        return ""
    if {"num_inference_steps", "fingerprint", "height", "width", "guidance_scale"} & set(differing):
        return "; python -m search.transfer carries it over"
    return ""


def make_verdict(
    passed: bool | None,
    reason: str,
    criterion: str,
    claimed: Mapping[str, Score],
    differing: Mapping[str, tuple[str, str]],
    scores: Mapping[str, Score] | None = None,
    values: Mapping[str, Sequence[float]] | None = None,
    start: float = 0.0,
) -> Verdict:
    """A verdict that began at `start`, in seconds of `time.monotonic`."""
    return Verdict(passed, reason, criterion, scores or {}, claimed, differing, values or {}, time.monotonic() - start)


def score_text(name: str, score: Score) -> str:
    """A score with its unit and interval: `41.2 dB [40.1, 42.6]`."""
    unit = measured_units().get(name, "")
    digits, unit = DIGITS.get(unit, ".4f"), {"ratio": "", "dB": " dB"}.get(unit, unit)
    span = "" if score.low is None else f" [{score.low:{digits}}, {score.high:{digits}}]"
    return f"{score.value:{digits}}{unit}{span}"
