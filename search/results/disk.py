"""Run folders on disk: made, locked for one process, written atomically, and errors of a full or read-only disk."""

import errno
import logging
import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

log = logging.getLogger("search")
FULL = {errno.ENOSPC, errno.EDQUOT}
OTHER_KIND = {errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENOTEMPTY, errno.ELOOP}  # a folder for a file, say
CLOSED = {errno.EROFS, errno.EACCES, errno.EPERM}


def check_writable(root: Path) -> None:
    """Check that a folder of runs can be made and written to; ValueError before anything is computed if not."""
    existing = root.absolute()
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        raise ValueError(f"runs={root}: {existing} is not a folder; type runs=<another folder>")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(f"runs={root}: nothing can be written to {existing}; type runs=<another folder>")


@contextmanager
def locked_run_folder(folder: Path) -> Iterator[None]:
    """Lock a run folder until the block or the process ends; ValueError if another process has the lock."""
    with open(folder / "lock", "a+", encoding="utf-8") as file:
        if not _take_lock(file.fileno()):
            file.seek(0)
            raise ValueError(
                f"another search is running in {folder} ({file.read().strip()[:100] or 'unknown'}); wait until it "
                "ends, or stop it, or start a new search without resume="
            )
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}\n")
        file.flush()
        yield


@contextmanager
def explain_disk_errors(folder: Path, again: str) -> Iterator[None]:
    """Turn errors of a full or read-only disk, and of folders in place of files, into one line; other errors pass.

    `again` is what that line says to type.
    """
    try:
        yield
    except OSError as error:
        file = Path(os.fsdecode(error.filename)).absolute() if error.filename else folder.absolute()
        if error.errno in FULL:
            raise ValueError(
                f"there is no room left on the disk of {folder}; files that were written are kept: make room, then "
                f"type {again}"
            ) from error
        if error.errno in CLOSED and file.is_relative_to(folder.absolute()):
            raise ValueError(
                f"{file} cannot be written to ({error.strerror}); allow it, then type {again}; or type "
                "runs=<another folder>"
            ) from error
        if error.errno in OTHER_KIND and file.is_relative_to(folder.absolute()):
            raise ValueError(
                f"{file} is in the way ({error.strerror}): it is not a file or folder of a search; remove it, then "
                f"type {again}"
            ) from error
        raise


@contextmanager
def log_to_file(path: Path) -> Iterator[None]:
    """Write what is logged in the block into a file; errors of the disk are ignored here, the search reports them."""
    root, handler = logging.getLogger(), _Silent(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    level = root.level
    root.addHandler(handler)
    root.setLevel(min(level, logging.INFO))
    try:
        yield
    finally:
        root.setLevel(level)
        root.removeHandler(handler)
        with suppress(OSError):
            handler.close()


class _Silent(logging.FileHandler):
    """A log file that prints nothing on the terminal if it cannot be written."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass


def _take_lock(file: int) -> bool:
    """Take the lock, which the system releases when the process ends; True also where the system has no locks."""
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # file systems of a network may have no locks
        log.info("no lock: %s", error)
    return True


def new_run_folder(root: Path, space: str, model: str) -> Path:
    """Make `<root>/<date>_<time>_<space>_<model>`; a search of the same second gets `_2`, `_3`, ..."""
    name = re.sub(r"[^\w.+-]+", "-", f"{datetime.now():%Y-%m-%d_%H%M%S}_{space}_{model}")
    root.mkdir(parents=True, exist_ok=True)
    for count in range(1, 10_000):
        folder = root / (name if count == 1 else f"{name}_{count}")
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise ValueError(f"{root} holds 9999 folders named {name}_*; use runs=<another folder>")
