"""python -m search.send: send finished searches to MLflow, those that wait because it could not be reached.

    python -m search.send                                    what waits
    python -m search.send run=latest uri=http://mlflow:5000  a search, to another server

run=all    all that waits, or one search, waiting or not: latest, a folder under runs/, or a path
runs=runs  where the searches are
uri=       the MLflow server, http://...; by default the one that the search should have gone to
"""

import sys
from pathlib import Path

from search.config import options as command
from search.results.folder import find_run

DEFAULTS = {"run": "all", "runs": "runs", "uri": ""}


def send(run: str = "all", runs: str | Path = "runs", uri: str | None = None) -> dict[str, str]:
    """Send searches, and return the page of each by its name; ValueError where the store refuses one."""
    from rich.progress import track

    from search.results import disk
    from search.results.result import Result
    from search.tracking import registry, spool, store, tracker

    root, pages = Path(runs), {}
    waiting = spool.unsent_folders(root)
    folders = list(waiting) if run == "all" else [find_run(run, root)]
    for folder in track(folders, "MLflow") if folders else ():
        address = uri or waiting.get(folder) or registry.registered_model_of(folder, root)[1]
        with disk.locked_run_folder(folder):
            found = tracker.deliver_result(Result.load(folder), root, address)
        if error := found.get("error"):
            raise ValueError(f"{folder.name} was not sent: {error}; try again with: python -m search.send")
        pages[folder.name] = store.page_url(found["page"], address)
    return pages


def main(arguments: list[str]) -> int:
    """Parse `key=value`, send, say where it is."""
    return command.run_command(arguments, __doc__, _work, DEFAULTS, first="run")


def _work(options: command.Options) -> None:
    pages = send(**options.given)
    print("\n".join(f"{name}  {page}" for name, page in pages.items()) or "nothing waits")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
