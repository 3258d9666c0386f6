"""Pick schedules of a front: by name, as the recommended one or the knee, or by conditions with units."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from search.results.result import first_of_each_kind

Row = dict[str, Any]  # an entry of front.json
CONDITION = re.compile(r"\s*(\w+)\s*(<=|>=|<|>)\s*([-+.\d]+(?:[eE][-+]?\d+)?)\s*([^\s\d]*)\s*")
# Units that can be typed for a score, by the score's own unit, with the factor to it.
UNITS = {
    "ms": {"ms": 1.0, "s": 1e3, "us": 1e-3, "µs": 1e-3},
    "MiB": {"MiB": 1.0, "KiB": 2**-10, "GiB": 2.0**10, "kB": 1e3 / 2**20, "KB": 1e3 / 2**20, "MB": 1e6 / 2**20,
            "GB": 1e9 / 2**20},
    "ratio": {"%": 0.01},
    "dB": {"dB": 1.0},
    "×": {"×": 1.0, "x": 1.0},
}  # fmt: skip


@dataclass(frozen=True)
class Condition:
    """A limit on a held-out score, in the score's own unit."""

    name: str
    sign: str  # <, <=, > or >=
    limit: float

    def holds(self, row: Row) -> bool:
        """Whether the score's value meets the limit."""
        return self.met_by(held_out_score(row, self.name))

    def surely(self, row: Row) -> bool:
        """Whether the score's value and both ends of its interval meet the limit."""
        score = row["held_out"][self.name]
        return all(self.met_by(v) for v in (score["value"], score.get("low"), score.get("high")) if v is not None)

    def met_by(self, value: float) -> bool:
        """Whether a value meets the limit; what is not a number does not."""
        return (value < self.limit if "<" in self.sign else value > self.limit) or (
            "=" in self.sign and value == self.limit
        )


def pick_entries(front: Row, pick: str) -> list[Row]:
    """The entries of the front that `pick` names, the best one first; ValueError says what can be picked.

    Args:
        front: The content of front.json.
        pick: `recommended`, `knee`, `all`, a name such as "FORA N=3", or conditions: "speedup>=2" (of these the least
            drift), "drift<=0.05 and psnr>=30" (of these the fastest), "latency<=400ms and memory<=1GB".
    """
    if named := [row for row in front["entries"] if row["name"] == pick]:
        return named
    rows = [row for row in front["entries"] if row["role"] == "front"]
    if not rows:
        raise ValueError("this search has an empty front; give it a larger budget.evaluations")
    if pick == "all":
        return rows
    if pick == "recommended":
        return [next((row for row in rows if row["name"] == front["recommended"]), rows[-1])]
    if pick == "knee":
        return [rows[_knee(front, rows)]]
    return entries_within(rows, parse_conditions(pick, rows, front.get("units", {})), front["kinds"])


def parse_conditions(text: str, rows: list[Row], units: dict[str, str]) -> list[Condition]:
    """The conditions in a text, joined by `and` or commas; `units` are those of the scores.

    Example:
        >>> from search.results.pick import parse_conditions
        >>> rows = [{"held_out": {"latency": {"value": 380.0}}}]
        >>> parse_conditions("latency<=0.4s", rows, {"latency": "ms"})
        [Condition(name='latency', sign='<=', limit=400.0)]
    """
    conditions = []
    for part in re.split(r",|\band\b", text):
        match = CONDITION.fullmatch(part)
        if match is None:
            raise ValueError(
                f"{text!r} is not understood; use recommended, knee, all, or conditions such as "
                '"speedup>=2", "drift<=0.05 and psnr>=30" or "latency<=400ms"'
            )
        name, sign, number, unit = match.groups()
        if name not in rows[0]["held_out"]:
            raise ValueError(f"{text!r}: there is no score {name!r}; there are {', '.join(rows[0]['held_out'])}")
        factors = UNITS.get(units.get(name, ""), {})
        if unit and unit not in factors:
            raise ValueError(f"{text!r}: {name} is not in {unit!r}; {_admissible(units.get(name, ''))}")
        try:
            conditions.append(Condition(name, sign, float(number) * factors.get(unit, 1.0)))
        except ValueError:
            raise ValueError(f"{text!r}: {number!r} is not a number") from None
    return conditions


def entries_within(rows: list[Row], limits: list[Condition], kinds: Mapping[str, str]) -> list[Row]:
    """The rows that meet all limits; with limits on costs only the least drift first, else the fastest.

    Args:
        rows: Entries of a front.
        limits: At least one condition.
        kinds: Of each score, `cost` or `quality`.

    Raises:
        ValueError: No row meets all limits; the message says what the best one has.
    """
    good = rows
    for limit in limits:
        left = [row for row in good if limit.holds(row)]
        if not left:
            raise ValueError(_unreachable(good, limit, len(good) < len(rows)))
        good = left
    if all(kinds.get(limit.name) == "cost" for limit in limits):
        return sorted(good, key=lambda row: held_out_score(row, "drift"))
    return sorted(good, key=lambda row: -held_out_score(row, "speedup"))


def held_out_score(row: Row, name: str) -> float:
    """A score on held-out prompts, without its interval."""
    if name not in row["held_out"]:
        raise ValueError(f"there is no score {name!r}, which this choice needs; there are {', '.join(row['held_out'])}")
    return float(row["held_out"][name]["value"])


def _knee(front: Row, rows: list[Row]) -> int:
    """Index of the knee between the first cost and the first quality that were searched for."""
    import numpy as np

    from search.pareto.domination import knee

    names = first_of_each_kind(front["objectives"], front["kinds"])
    signs = [-1 if front["better"].get(name) == "higher" else 1 for name in names]
    return knee(np.array([[held_out_score(row, name) for name in names] for row in rows]) * signs)


def _admissible(unit: str) -> str:
    return f"give a number, or one with {', '.join(UNITS[unit])}" if unit in UNITS else "it has no unit: give a number"


def _unreachable(rows: list[Row], limit: Condition, more_limits: bool) -> str:
    """Message with the best reachable limit, rounded so that it is met when it is typed."""
    name, sign = limit.name, limit.sign
    least = "<" in sign
    reach = (min if least else max)(held_out_score(row, name) for row in rows)
    unit = 10.0 ** max(-300, math.floor(math.log10(abs(reach))) - 3) if reach else 1.0
    rounded = (math.ceil if least else math.floor)(reach / unit) * unit
    return (
        f"no schedule of this front has {name}{sign}{limit.limit:g}"
        f"{' and the other conditions' if more_limits else ''}; "
        f'the best is {rounded:.4g}: ask for "{name}{sign[0]}={rounded:.4g}", or search with a larger budget'
    )
