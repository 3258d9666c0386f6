"""python -m search.report: one page to look at a finished search, in one HTML file that works offline.

run=latest       a search: latest, a folder under runs/, or a path
out=report.html  where to write
runs=runs        where the searches are
"""

import sys

import search
from search.config.options import Options, run_command

DEFAULTS = {"run": "latest", "out": "report.html", "runs": "runs"}


def main(arguments: list[str]) -> int:
    """Parse `key=value`, write, print where the page is."""
    return run_command(arguments, __doc__, _work, DEFAULTS)


def _work(options: Options) -> None:
    from rich.console import Console

    from search.loop.progress import phase_bars

    with phase_bars(Console(stderr=True)) as on_progress:
        path = search.report(**options.given, on_progress=on_progress)
    print(path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
