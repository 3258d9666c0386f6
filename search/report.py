"""python -m search.report: one page to look at a finished search, in one HTML file that works offline.

run=latest       a search: latest, a folder under runs/, or a path
out=report.html  where to write
runs=runs        where the searches are
"""

import sys
from pathlib import Path

from search.config import options as command
from search.results.folder import find_run
from search.results.result import Result

DEFAULTS = {"run": "latest", "out": "report.html", "runs": "runs"}


def report(run: str = "latest", out: str | Path = "report.html", runs: str | Path = "runs") -> Path:
    """Write the report of a search to `out` and return its path; ValueError says what to type.

    Reads the run folder only: neither a GPU nor a model is needed. A notebook shows the result itself:
    `Result.load(folder)`.
    """
    from rich.progress import track

    from search.figures.report.page import report_page

    result = Result.load(find_run(run, Path(runs)))
    text = report_page(result, lambda entries: track(entries, "pictures", transient=True))
    target = Path(out)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")
    return target


def main(arguments: list[str]) -> int:
    """Parse `key=value`, write, print where the page is."""
    return command.run_command(arguments, __doc__, lambda options: print(report(**options.given)), DEFAULTS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
