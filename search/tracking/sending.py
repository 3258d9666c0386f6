"""Send finished searches to MLflow, those that wait because it could not be reached."""

from collections.abc import Callable
from pathlib import Path

from search.results.folder import find_run
from search.tracking import registry, spool, store, tracker


def send_searches(
    run: str = "all",
    runs: str | Path = "runs",
    uri: str | None = None,
    on_sent: Callable[[str, str], None] = lambda name, page: None,
) -> dict[str, str]:
    """Send searches to the stores that they wait for, or to the one at `uri`.

    Args:
        run: `all` that wait, or one search: latest, the name of a folder below `runs`, or a path.
        runs: Folder of the searches.
        uri: The store. Without it only the one in `runs` is written to; see `store.address_to_use`.
        on_sent: Called with the name and page of each search that was sent.

    Returns:
        The page of each search by its name.

    Raises:
        ValueError: Some could not be sent; all others were. The message has a line for each.
    """
    from rich.progress import track

    root, pages = Path(runs), {}
    waiting = spool.unsent_folders(root)
    failed: dict[str, str] = {}
    down: set[str] = set()  # stores that have failed: no search is sent there again
    folders = list(waiting) if run == "all" else [find_run(run, root)]
    for folder in track(folders, "MLflow") if folders else ():
        try:
            address = _address(folder, root, uri, waiting)
            if address in down:
                failed[folder.name] = "the store failed just now"
                continue
            found = tracker.deliver_folder(folder, root, address)
        except (ValueError, OSError) as error:
            failed[folder.name] = str(error)
            continue
        if "error" in found:
            down.add(address)
            failed[folder.name] = found["error"]
            continue
        pages[folder.name] = store.page_url(found["page"], address)
        on_sent(folder.name, pages[folder.name])
    if failed:
        lines = [f"{name} was not sent: {reason}" for name, reason in failed.items()]
        raise ValueError("\n".join([*lines, "try again with: python -m search.send"]))
    return pages


def _address(folder: Path, root: Path, uri: str | None, waiting: dict[Path, str]) -> str:
    if folder in waiting:
        return store.address_to_use(root, uri, waiting[folder], folder)
    return registry.registered_model_of(folder, root, uri)[1]
