"""The best schedules of a finished search within limits on their scores."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from search.results.front import load_schedule, read_front
from search.results.pick import Condition, Row, entries_within, held_out_score, parse_conditions
from search.results.scores import Speedup

if TYPE_CHECKING:
    from rich.table import Table

    from search.schedule import Schedule


@dataclass(frozen=True)
class Choice:
    """What fits: rows of the front, the best one first, and the limits that they were held against."""

    folder: Path
    limits: Sequence[Condition]
    rows: Sequence[Row]
    units: dict[str, str]
    kinds: dict[str, str]

    @property
    def name(self) -> str:
        return str(self.rows[0]["name"])

    @property
    def schedule(self) -> "Schedule":
        """The best one, ready to be applied."""
        return load_schedule(self.folder, self.rows[0])

    @property
    def doubtful(self) -> list[str]:
        """Names of limits that the best one meets on average, while its interval or range reaches beyond."""
        return [limit.name for limit in self.limits if not limit.surely(self.rows[0])]

    def table(self) -> "Table":
        """For a terminal, or as the last expression of a notebook's cell."""
        from rich.markup import escape
        from rich.table import Column, Table
        from rich.text import Text

        asked, names = [c.name for c in self.limits], list(self.rows[0]["held_out"])
        costs, qualities = ([n for n in names if (self.kinds.get(n) == "cost") == cost] for cost in (True, False))
        shown = [n for n in dict.fromkeys([*asked, Speedup.key, *costs, *qualities]) if n in names]
        heads = [f"{n} {self.units.get(n, '')}".replace(" ratio", "").strip() for n in shown]
        table = Table(Column("schedule", no_wrap=True), *map(escape, heads))
        for i, row in enumerate(self.rows):
            table.add_row(
                Text(row["name"]), *(f"{held_out_score(row, n):.4g}" for n in shown), style="" if i else "bold"
            )
        return table


def best_within(limits: str, folder: Path) -> Choice:
    """The schedules of a finished search's front that hold these limits, the best one first.

    ValueError says what can be had where none does.
    """
    front = read_front(folder)
    rows = [row for row in front["entries"] if row["role"] == "front"]
    if not rows:
        raise ValueError("this search has an empty front; give it a larger budget.evaluations")
    asked = parse_conditions(limits, rows, front.get("units", {}))
    return Choice(folder, asked, entries_within(rows, asked, front["kinds"]), front.get("units", {}), front["kinds"])
