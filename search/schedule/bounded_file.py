"""Reading a file of bounded size, with errors of a schedule."""

import os
from pathlib import Path

from search.files import FileRefused, read_regular_file
from search.schedule.errors import ScheduleError


def read_bounded(path: str | Path, most: int, remedy: str = "") -> bytes:
    """The content of a regular file; ScheduleError, which ends in `remedy`, where it cannot be read or is too large."""
    if not isinstance(path, str | os.PathLike):
        raise ScheduleError(f"{path!r:.100} is a {type(path).__name__}, and not the path of a file")
    try:
        return read_regular_file(path, most)
    except FileRefused as error:
        raise ScheduleError(f"{error}{remedy}") from None
    except OSError as error:
        raise ScheduleError(f"cannot read {str(path)!r}: {error.strerror}{remedy}") from None
