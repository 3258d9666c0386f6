"""Checkpoints that survive kills, power cuts and bad disks: written atomically with a digest, the previous one is kept.

They are pickles: reading one runs what is in it. So they are for the searches of their own user (SECURITY.md); the
digest detects damage, it does not prove who wrote the file.
"""

import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

from search.results.disk import write_atomically

HEAD = b"search checkpoint 1\n"  # then the sha256 of the pickle, then the pickle
SIZE = hashlib.sha256().digest_size


def previous_checkpoint(path: Path) -> Path:
    """The file of the checkpoint before this one."""
    return path.with_name(f"{path.stem}.old{path.suffix}")


def checkpoint_exists(path: Path) -> bool:
    """Whether this checkpoint or the one before it exists."""
    return path.exists() or previous_checkpoint(path).exists()


def save_checkpoint(value: Any, path: Path) -> None:
    """Write a value as the newest checkpoint; a process killed here resumes from the previous one."""
    data = pickle.dumps(value)
    write_atomically(path, HEAD + hashlib.sha256(data).digest() + data, previous_checkpoint(path))


def load_checkpoint(path: Path, on_message: Callable[[str], None] = lambda text: None) -> Any:
    """The newest checkpoint that is intact; `on_message` gets the reason where the newest one is not.

    Raises:
        ValueError: No checkpoint in the folder can be read.
    """
    damages = []
    for file in (path, previous_checkpoint(path)):
        try:
            value = _read(file)
        except FileNotFoundError:
            continue
        except _DamagedCheckpoint as error:
            damages.append(f"{file}: {error}")
            continue
        if damages:
            on_message(f"{damages[0]}; going on from the generation before, in {file.name}")
        return value
    raise ValueError(
        f"no checkpoint in {path.parent} can be read ({'; '.join(damages)}). Delete {path.stem}*{path.suffix} there "
        f"and type python -m search resume={path.parent.name}: the search starts again, and looks up in memo.sqlite "
        "what it has measured before"
    )


class _DamagedCheckpoint(Exception):
    """Why a checkpoint is not read."""


def _read(path: Path) -> Any:
    content = path.read_bytes()
    head, digest, data = content[: len(HEAD)], content[len(HEAD) : len(HEAD) + SIZE], content[len(HEAD) + SIZE :]
    if head != HEAD:
        raise _DamagedCheckpoint("it is not a checkpoint of this version")
    if hashlib.sha256(data).digest() != digest:
        raise _DamagedCheckpoint(f"it is damaged or incomplete, {len(content)} bytes")
    try:
        return pickle.loads(data)
    except (AttributeError, ImportError, TypeError, pickle.UnpicklingError) as error:
        raise _DamagedCheckpoint(f"another version of this project wrote it ({error})") from None
