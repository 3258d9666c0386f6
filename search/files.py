"""Reads files that somebody else may have written, only regular ones of a bounded size, and writes files whole."""

import os
import stat
from contextlib import suppress
from pathlib import Path

MOST_FILES = 100_000  # in a run folder, which has hundreds
KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFDIR: "a folder",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class FileRefused(ValueError):
    """A file that is not read: it is not a regular file, lies outside of its folder, or is too large."""


def read_regular_file(path: str | Path, most: int, inside: Path | None = None) -> bytes:
    """The content of a regular file; a pipe, device or socket is not even opened, so that nothing waits for it.

    Args:
        path: The file. Links are followed.
        most: Bytes that it may have.
        inside: The folder that the file has to be in, after links are followed; None for any place.

    Raises:
        FileRefused: It is not a regular file, is outside of `inside`, or has more bytes.
        OSError: The system cannot read it; FileNotFoundError where there is none.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from search.files import read_regular_file
        >>> file = Path(tempfile.mkdtemp()) / "front.json"
        >>> _ = file.write_text("{}")
        >>> read_regular_file(file, most=100)
        b'{}'
    """
    try:
        mode = os.stat(path).st_mode
    except ValueError as error:
        raise FileRefused(f"cannot read {str(path)[:200]!r}: {error}") from None
    _check_regular(path, mode)
    if inside is not None and not is_inside(path, inside):
        raise FileRefused(f"{path} is a link that leads out of {inside}; put the file itself there")
    with open(path, "rb", opener=_open_without_waiting) as file:
        _check_regular(path, os.fstat(file.fileno()).st_mode)
        content = file.read(most + 1)
    if len(content) > most:
        raise FileRefused(f"{path}: the file has more than the {most} bytes that it may have")
    return content


def write_atomically(path: Path, content: bytes | str, previous: Path | None = None) -> None:
    """Write a file completely or not at all: a process killed here leaves the old file as it was.

    The content is on the disk when this returns. `previous` is where the old file is moved to, if it is to be kept.
    """
    temporary = path.with_name(f"{path.name}.new")
    temporary.unlink(missing_ok=True)
    try:
        with temporary.open("xb") as file:
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


def is_inside(path: str | Path, folder: Path) -> bool:
    """Whether a path, after links are followed, lies in a folder."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def check_folder_of_files(folder: Path) -> None:
    """Raise FileRefused unless a folder holds regular files and folders only, and links that stay inside.

    What is then read or written under a plain name below `folder` is in it, and waits for nobody.
    """
    count = 0
    for place, folders, files in os.walk(folder):
        count += len(folders) + len(files)
        if count > MOST_FILES:
            raise FileRefused(f"{folder} has more than {MOST_FILES} files; it is not the folder of a search")
        for name in (*folders, *files):
            path = Path(place, name)
            mode = os.lstat(path).st_mode
            if stat.S_ISLNK(mode):
                if not is_inside(path, folder):
                    raise FileRefused(f"{path} is a link that leads out of {folder}; remove it")
            elif not stat.S_ISDIR(mode):
                _check_regular(path, mode)


def _open_without_waiting(path: str, flags: int) -> int:
    """As `open` does, but a pipe that has replaced the file since it was looked at is not waited for."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _check_regular(path: str | Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise FileRefused(f"{path} is {KINDS.get(stat.S_IFMT(mode), 'something else')}, and not a regular file")


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
