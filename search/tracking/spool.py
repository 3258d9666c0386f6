"""Run folders that were not sent to MLflow yet: a file in each names the store that it should go to."""

import os
from pathlib import Path

from search.files import read_regular_file

UNSENT = "unsent"
MAX_BYTES = 4096  # of the file


def add_to_spool(folder: Path, address: str) -> None:
    """Note in a run folder that it waits to be sent to a store; everything to send is in the folder."""
    (folder / UNSENT).write_text(address + "\n", encoding="utf-8")


def mark_sent(folder: Path) -> None:
    """Remove the file that says that the run folder waits."""
    (folder / UNSENT).unlink(missing_ok=True)


def unsent_folders(root: Path) -> dict[Path, str]:
    """The folders that wait, the oldest first, with the addresses of their stores.

    An address is empty where its file cannot be read. Who may be contacted is for `store.address_to_use` to say.
    """
    folders = sorted(folder for folder in root.glob("*") if folder.is_dir() and os.path.lexists(folder / UNSENT))
    return {folder: _address(folder) for folder in folders}


def _address(folder: Path) -> str:
    try:
        return read_regular_file(folder / UNSENT, MAX_BYTES, inside=folder).decode("utf-8").strip()
    except (OSError, ValueError):
        return ""
