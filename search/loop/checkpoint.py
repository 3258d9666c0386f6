"""Checkpoints that survive kills, power cuts and bad disks: written whole, with a digest, the one before kept beside.

They are pickles: what is in them is run when they are read. So they are for the searches of their own user
(SECURITY.md); the digest tells damage, it does not tell who wrote the file.
"""

import hashlib
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

HEAD = b"search checkpoint 1\n"  # then the sha256 of the pickle, then the pickle
SIZE = hashlib.sha256().digest_size


def previous_checkpoint(path: Path) -> Path:
    """Where the checkpoint before this one is kept."""
    return path.with_name(f"{path.stem}.old{path.suffix}")


def checkpoint_exists(path: Path) -> bool:
    return path.exists() or previous_checkpoint(path).exists()


def save_checkpoint(value: Any, path: Path) -> None:
    """Whole or not at all: whoever is killed here goes on from the checkpoint before."""
    data = pickle.dumps(value)
    beside = path.with_suffix(".new")
    try:
        with beside.open("wb") as file:
            file.write(HEAD + hashlib.sha256(data).digest() + data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:  # no room: what is half written only takes more of it
        beside.unlink(missing_ok=True)
        raise
    if path.exists():
        path.replace(previous_checkpoint(path))
    beside.replace(path)
    _settle(path.parent)


def load_checkpoint(path: Path, told: Callable[[str], None] = lambda text: None) -> Any:
    """The newest checkpoint that is sound; `told` hears of one that is not. ValueError where none is."""
    wrong = []
    for file in (path, previous_checkpoint(path)):
        try:
            value = _read(file)
        except FileNotFoundError:
            continue
        except _Damaged as error:
            wrong.append(f"{file}: {error}")
            continue
        if wrong:
            told(f"{wrong[0]}; going on from the generation before, in {file.name}")
        return value
    raise ValueError(
        f"no checkpoint in {path.parent} can be read ({'; '.join(wrong)}). Delete {path.stem}*{path.suffix} there and "
        f"type python -m search resume={path.parent.name}: the search begins again, and looks up in memo.sqlite what "
        "it has measured before"
    )


class _Damaged(Exception):
    """Why a checkpoint is not read."""


def _read(path: Path) -> Any:
    content = path.read_bytes()
    head, digest, data = content[: len(HEAD)], content[len(HEAD) : len(HEAD) + SIZE], content[len(HEAD) + SIZE :]
    if head != HEAD:
        raise _Damaged("this is no checkpoint of this version")
    if hashlib.sha256(data).digest() != digest:
        raise _Damaged(f"it is damaged or incomplete, {len(content)} bytes")
    try:
        return pickle.loads(data)
    except (AttributeError, ImportError, TypeError, pickle.UnpicklingError) as error:
        raise _Damaged(f"another version of this project wrote it ({error})") from None


def _settle(folder: Path) -> None:
    """Let the names reach the disk too, where folders can be opened."""
    try:
        number = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(number)
    except OSError:
        pass
    finally:
        os.close(number)
