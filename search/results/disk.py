"""What a search does to its folder, and what it says when it cannot: one process at a time, room to write."""

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
CLOSED = {errno.EROFS, errno.EACCES, errno.EPERM}


def check_writable(root: Path) -> None:
    """ValueError where a folder of runs cannot be made or written to: before anything is computed."""
    there = root.absolute()
    while not there.exists():
        there = there.parent
    if not there.is_dir():
        raise ValueError(f"runs={root}: {there} is no folder; type runs=<another folder>")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"runs={root}: nothing can be written to {there}; type runs=<another folder>")


def write_atomically(path: Path, content: bytes | str, previous: Path | None = None) -> None:
    """Write a file completely or not at all: a process killed here leaves the old file as it was.

    The content is on the disk when this returns. `previous` is where the old file is moved to, if it is to be kept.
    """
    temporary = path.with_name(f"{path.name}.new")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode("utf-8") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
    except OSError:  # the disk is full: what is half written only takes more of it
        temporary.unlink(missing_ok=True)
        raise
    if previous is not None and path.exists():
        path.replace(previous)
    temporary.replace(path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Write the names in a folder to the disk too, where folders can be opened."""
    try:
        number = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        with suppress(OSError):
            os.fsync(number)
    finally:
        os.close(number)


@contextmanager
def locked_run_folder(folder: Path) -> Iterator[None]:
    """The folder for this process alone until it ends, in whatever way; ValueError where another one has it."""
    with open(folder / "lock", "a+", encoding="utf-8") as file:
        if not _locked(file.fileno()):
            file.seek(0)
            raise ValueError(
                f"another search goes on in {folder} ({file.read().strip()[:100] or 'unknown'}); wait until it ends, "
                "or stop it, or begin one of your own without resume="
            )
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}\n")
        file.flush()
        yield


@contextmanager
def explain_disk_errors(folder: Path, again: str) -> Iterator[None]:
    """A disk that is full or read-only is told in one line, with what to type `again`; other errors pass."""
    try:
        yield
    except OSError as error:
        where = Path(os.fsdecode(error.filename)).absolute() if error.filename else folder.absolute()
        if error.errno in FULL:
            raise ValueError(
                f"there is no room left on the disk of {folder}; what is there already is kept: make room, then "
                f"type {again}"
            ) from error
        if error.errno in CLOSED and where.is_relative_to(folder.absolute()):
            raise ValueError(
                f"{where} cannot be written to ({error.strerror}); allow it, then type {again}; or type "
                "runs=<another folder>"
            ) from error
        raise


@contextmanager
def log_to_file(path: Path) -> Iterator[None]:
    """What is logged meanwhile goes into a file; a full disk is told by the search itself."""
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
    """A log file that says nothing on the terminal when it cannot be written."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass


def _locked(file: int) -> bool:
    """Take the lock, which the system gives back when the process is gone. Where there are no locks, all is free."""
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # a network's file system may know none
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
