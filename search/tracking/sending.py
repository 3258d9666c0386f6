"""Send finished searches to MLflow, those that wait because it could not be reached."""

from pathlib import Path

from search.results import disk
from search.results.folder import find_run
from search.results.result import Result
from search.tracking import registry, spool, store, tracker


def send_searches(run: str = "all", runs: str | Path = "runs", uri: str | None = None) -> dict[str, str]:
    """Send searches, and return the page of each by its name; ValueError where the store refuses one."""
    from rich.progress import track

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
