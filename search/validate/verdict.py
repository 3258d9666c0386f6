"""The verdict on a schedule: whether it holds, the scores behind it, and what to do if it does not."""

import html
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from search.results.pick import Condition
from search.results.scores import Score
from search.validate.criteria import DIGITS, FEWEST, decide, measured_units

if TYPE_CHECKING:
    pass


EXIT = {True: 0, False: 1, None: 3}
WORDS = {True: "holds", False: "does not hold", None: "undecided"}


@dataclass(frozen=True)
class Verdict:
    """Whether a schedule holds: `passed` is None where the pictures that there was time for do not decide it.

    `scores` are measured here, `claimed` are the file's; `values` the scores of each picture. `differences` says of
    what the file records (architecture, library versions, device, the pipeline's call) what it is there and here.
    """

    passed: bool | None
    reason: str
    criterion: str
    scores: Mapping[str, Score] = field(default_factory=dict)
    claimed: Mapping[str, Score] = field(default_factory=dict)
    differences: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    values: Mapping[str, Sequence[float]] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def samples(self) -> int:
        """Pictures that were compared."""
        return len(next(iter(self.values.values()), ()))

    @property
    def exit_code(self) -> int:
        return EXIT[self.passed]

    def __str__(self) -> str:
        lines = [f"{WORDS[self.passed]}: {self.reason}"]
        for name, score in self.scores.items():
            claim = f"   the file: {score_text(name, self.claimed[name])}" if name in self.claimed else ""
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
    kept = {True: "is surely", False: "is surely not", None: "may be or not be"}
    parts = []
    for limit in limits:
        found = decide(limit, scores[limit.name])
        if found is passed:
            measured = f"{limit.name} {score_text(limit.name, scores[limit.name])}"
            parts.append(f"{measured} {kept[found]} {limit.sign} {limit.limit:.4g}")
    text = f"{' and '.join(parts)}, {count} pictures"
    if passed is not None:
        return text
    more = "longer with seconds=" if count < most else "more with samples="
    few = f", of which {FEWEST} are needed" if count < FEWEST else ""
    return f"{text}{few}; look {more}, or say what is good enough with criterion="


def remedy_for(differing: Mapping[str, tuple[str, str]]) -> str:
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
    return Verdict(passed, reason, criterion, scores or {}, claimed, differing, values or {}, time.monotonic() - start)


def score_text(name: str, score: Score) -> str:
    unit = measured_units().get(name, "")
    digits, unit = DIGITS.get(unit, ".4f"), {"ratio": "", "dB": " dB"}.get(unit, unit)
    span = "" if score.low is None else f" [{score.low:{digits}}, {score.high:{digits}}]"
    return f"{score.value:{digits}}{unit}{span}"
