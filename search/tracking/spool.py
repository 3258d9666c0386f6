"""Run folders that were not sent to MLflow yet: a file in each names the store that it should go to."""

from pathlib import Path

UNSENT = "unsent"


def add_to_spool(folder: Path, address: str) -> None:
    """Note in a run folder that it waits to be sent to a store; everything to send is in the folder."""
    (folder / UNSENT).write_text(address + "\n", encoding="utf-8")


def mark_sent(folder: Path) -> None:
    """Remove the file that says that the run folder waits."""
    (folder / UNSENT).unlink(missing_ok=True)


def unsent_folders(root: Path) -> dict[Path, str]:
    """The folders that wait, the oldest first, with the addresses of their stores."""
    return {file.parent: file.read_text(encoding="utf-8").strip() for file in sorted(root.glob(f"*/{UNSENT}"))}
