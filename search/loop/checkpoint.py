"""Checkpoints that survive kills, power cuts and bad disks: written atomically with a digest, the previous one is kept.

A checkpoint is data: JSON, and arrays as safetensors. Reading one runs nothing that is in it. The digest detects
damage; it does not prove who wrote the file, so what is read is checked by schemas (`search.loop.state`).
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from search.files import read_regular_file, write_atomically

NAME = "checkpoint.bin"  # of the newest one, in a run folder
HEAD = b"search checkpoint 2\n"  # then the sha256 of the rest, then the rest: arrays, one of them the bytes of the JSON
SIZE = hashlib.sha256().digest_size
MAX_BYTES = 2**32  # of a checkpoint; its rows are most of it
MAX_JSON = 2**27  # bytes of the JSON, of which a candidate takes about 80; in memory it is some twenty times as large
JSON, ARRAY = "json", "$array"  # the name of the array of the JSON; the key under which the JSON names an array
KINDS = "biuf"  # of arrays: booleans, integers, floats
# What reading a state may raise that does not fit.
FITS_NOT = (ValueError, TypeError, KeyError, IndexError, AttributeError, ArithmeticError)
Value = TypeVar("Value")


def previous_checkpoint(path: Path) -> Path:
    """The file of the checkpoint before this one."""
    return path.with_name(f"{path.stem}.old{path.suffix}")


def checkpoint_exists(path: Path) -> bool:
    """Whether this checkpoint or the one before it exists."""
    return path.exists() or previous_checkpoint(path).exists()


def refuse_pickled_checkpoint(folder: Path) -> None:
    """ValueError where a run folder has the pickle of an earlier version and no checkpoint of this one."""
    pickled, path = folder / "checkpoint.pkl", folder / NAME
    if checkpoint_exists(pickled) and not checkpoint_exists(path):
        raise ValueError(
            f"{pickled} is a pickle of an earlier version, and reading a pickle runs code: it is not read. Finish the "
            f"search with the version that began it, or delete checkpoint*.pkl there and type python -m search "
            f"resume={folder.name}: the search starts again, and looks up in memo.sqlite what it has measured before"
        )


def save_checkpoint(value: Any, path: Path) -> None:
    """Write plain data as the newest checkpoint; a process killed here resumes from the previous one."""
    data = to_bytes(value)
    write_atomically(path, HEAD + hashlib.sha256(data).digest() + data, previous_checkpoint(path))


def load_checkpoint(
    path: Path, parse: Callable[[Any], Value], on_message: Callable[[str], None] = lambda text: None
) -> Value:
    """What `parse` makes of the newest checkpoint that is intact and that it accepts.

    Args:
        path: The newest checkpoint; the one before lies beside it.
        parse: Makes a value of the plain data; ValueError where these do not fit.
        on_message: Gets the reason where the newest checkpoint is not used.

    Raises:
        ValueError: No checkpoint in the folder can be read.
    """
    damages = []
    for file in (path, previous_checkpoint(path)):
        try:
            value = parse(_read(file))
        except FileNotFoundError:
            continue
        except FITS_NOT as error:
            reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
            damages.append(f"{file}: {reason[:500]}")
            continue
        if damages:
            on_message(f"{damages[0]}; going on from the generation before, in {file.name}")
        return value
    raise ValueError(
        f"no checkpoint in {path.parent} can be read ({'; '.join(damages)}). Delete {path.stem}*{path.suffix} there "
        f"and type python -m search resume={path.parent.name}: the search starts again, and looks up in memo.sqlite "
        "what it has measured before"
    )


def to_bytes(value: Any) -> bytes:
    """Plain data as bytes.

    Args:
        value: Dictionaries with texts as keys, lists, tuples (which come back as lists), numbers, texts, booleans,
            None, and NumPy arrays of numbers.

    Raises:
        TypeError: There is something else in it; names the place.

    Example:
        >>> import numpy as np
        >>> from search.loop.checkpoint import from_bytes, to_bytes
        >>> from_bytes(to_bytes({"row": np.array([1, 2]), "count": 2**70}))
        {'row': array([1, 2]), 'count': 1180591620717411303424}
    """
    from safetensors.numpy import save

    arrays: dict[str, np.ndarray] = {}
    text = json.dumps(_without_arrays(value, arrays, "state"))
    data: bytes = save({JSON: np.frombuffer(text.encode(), dtype=np.uint8), **arrays})
    return data


def from_bytes(data: bytes) -> Any:
    """What `to_bytes` was given; ValueError where it is not of `to_bytes`."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        arrays: dict[str, np.ndarray] = load(data)
        text = arrays.pop(JSON).tobytes()
        if len(text) > MAX_JSON:
            raise ValueError(f"its JSON has {len(text)} bytes, at most {MAX_JSON} are read")
        return _with_arrays(json.loads(text), arrays)
    except (SafetensorError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"it is not a checkpoint of this version ({type(error).__name__}: {error})") from None


def _without_arrays(value: Any, arrays: dict[str, np.ndarray], place: str) -> Any:
    """The value as JSON can write it, with the names of arrays where they were; these are put into `arrays`."""
    if isinstance(value, np.ndarray) and value.dtype.kind in KINDS:
        arrays[name := str(len(arrays))] = value.copy(order="C")
        return {ARRAY: name}
    if isinstance(value, Mapping) and ARRAY not in value and all(isinstance(key, str) for key in value):
        return {key: _without_arrays(item, arrays, f"{place}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_arrays(item, arrays, f"{place}[{i}]") for i, item in enumerate(value)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(
        f"{place} is a {type(value).__name__}, which is not plain data: use dictionaries with texts as keys, lists, "
        "numbers, texts, booleans, None, or arrays of numbers"
    )


def _with_arrays(value: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    if isinstance(value, dict):
        if set(value) == {ARRAY}:
            return arrays[value[ARRAY]].copy()  # safetensors' own cannot be written to
        return {key: _with_arrays(item, arrays) for key, item in value.items()}
    return [_with_arrays(item, arrays) for item in value] if isinstance(value, list) else value


def _read(path: Path) -> Any:
    """The plain data of a file; ValueError where it is damaged, not a regular file of this folder, or too large."""
    content = read_regular_file(path, MAX_BYTES, inside=path.parent)
    head, digest, data = content[: len(HEAD)], content[len(HEAD) : len(HEAD) + SIZE], content[len(HEAD) + SIZE :]
    if head != HEAD:
        raise ValueError("it is not a checkpoint of this version")
    if hashlib.sha256(data).digest() != digest:
        raise ValueError(f"it is damaged or incomplete, {len(content)} bytes")
    return from_bytes(data)
