"""python -m search.budget: the best schedule of a finished search within limits, without a new search.

    python -m search.budget run=latest "latency<=400ms and memory<=1GB"

run=latest  a search: latest, a folder under runs/, or a path
limits=     conditions on held-out scores, joined by `and`; the word before them may be left out. Times in s, ms, us,
            sizes in GB, GiB, MB, MiB, shares in %. Limits on cost give the least drift, one on quality the fastest.
runs=runs   where the searches are

`memory` is what a schedule keeps between steps for one picture, without weights and activations. Latencies are those
of the device that the search ran on; python -m search.verify measures them where it runs.
"""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from search.config import options as command
from search.results.folder import find_run, read_front
from search.results.pick import Condition, Row, entries_within, held_out_score, parse_conditions
from search.results.scores import Speedup

if TYPE_CHECKING:
    from rich.table import Table

    from search.schedule import Schedule

DEFAULTS = {"run": "latest", "limits": "", "runs": "runs"}


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
        return self.rows[0]["name"]

    @property
    def schedule(self) -> "Schedule":
        """The best one, ready to be applied."""
        from search.schedule import Schedule

        return Schedule.load(self.folder / self.rows[0]["file"])

    @property
    def doubtful(self) -> list[str]:
        """Names of limits that the best one meets on average, while its interval or range reaches beyond."""
        return [limit.name for limit in self.limits if not limit.surely(self.rows[0])]

    def table(self) -> "Table":
        """For a terminal, or as the last expression of a notebook's cell."""
        from rich.table import Column, Table

        asked, names = [c.name for c in self.limits], list(self.rows[0]["held_out"])
        costs, qualities = ([n for n in names if (self.kinds.get(n) == "cost") == cost] for cost in (True, False))
        shown = [n for n in dict.fromkeys([*asked, Speedup.key, *costs, *qualities]) if n in names]
        heads = [f"{n} {self.units.get(n, '')}".replace(" ratio", "").strip() for n in shown]
        table = Table(Column("schedule", no_wrap=True), *heads)
        for i, row in enumerate(self.rows):
            table.add_row(row["name"], *(f"{held_out_score(row, n):.4g}" for n in shown), style="" if i else "bold")
        return table


def budget(limits: str, run: str = "latest", runs: str | Path = "runs") -> Choice:
    """The schedules of a search's front that hold these limits; ValueError says what can be had where none does."""
    folder = find_run(run, Path(runs))
    front = read_front(folder)
    rows = [row for row in front["entries"] if row["role"] == "front"]
    if not rows:
        raise ValueError("this search has an empty front; give it a larger budget.evaluations")
    asked = parse_conditions(limits, rows, front.get("units", {}))
    return Choice(folder, asked, entries_within(rows, asked, front["kinds"]), front.get("units", {}), front["kinds"])


def main(arguments: Sequence[str]) -> int:
    """Print what fits, the best one first, and how to export it."""
    return command.run_command(_joined(arguments), __doc__, _work, DEFAULTS)


def _joined(arguments: Sequence[str]) -> list[str]:
    """Limits contain `=` themselves: what is no option of ours is one of them."""
    ours: list[str] = []
    limits: list[str] = []
    for argument in arguments:
        key, equals, _ = argument.partition("=")
        named = argument.startswith("-") or (equals and key.isidentifier())
        (ours if named else limits).append(argument)
    return [*ours, *([f"limits={' and '.join(limits)}"] if limits else [])]


def _work(options: command.Options) -> None:
    from rich.console import Console

    if not options["limits"]:
        raise ValueError('say what has to be kept, for example: python -m search.budget "latency<=400ms and psnr>=30"')
    choice = budget(**options.given)
    console = Console(soft_wrap=True)
    console.print(choice.table())
    for name in choice.doubtful:
        kept = choice.rows[0]["held_out"][name]
        console.print(f"[yellow]{name} is not sure: it was {kept['low']:.4g} to {kept['high']:.4g}[/yellow]")
    others = [f"{key}={shlex.quote(options[key])}" for key in ("run", "runs") if options[key] != DEFAULTS[key]]
    picked = ["python -m search.export", *others, f"pick={shlex.quote(choice.name)}", "out=schedule.json"]
    console.print(f"[bold]best: {choice.name}[/bold]\nexport     {' '.join(picked)}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
