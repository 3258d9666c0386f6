"""What MLflow has not got yet: a mark in the run folder, with the store that it should go to."""

from pathlib import Path

MARK = "unsent"


def add_to_spool(folder: Path, address: str) -> None:
    """Mark a run folder as waiting for a store; all that is to be sent is in it."""
    (folder / MARK).write_text(address + "\n", encoding="utf-8")


def mark_sent(folder: Path) -> None:
    """It is in the store."""
    (folder / MARK).unlink(missing_ok=True)


def unsent_folders(root: Path) -> dict[Path, str]:
    """The folders that wait, the oldest first, and their stores."""
    return {mark.parent: mark.read_text(encoding="utf-8").strip() for mark in sorted(root.glob(f"*/{MARK}"))}
