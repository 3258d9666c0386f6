"""Run folders: find one, read its front, name its files."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.results.scores import Speedup

if TYPE_CHECKING:
    import numpy as np


FIRST = "python -m search +space=cache model=pixart"
TENSORS = ".safetensors"  # ending of the file of tensors of a schedule that has corrections


def slug(name: str) -> str:
    """A name as part of a file name."""
    ascii_name = name.replace("×", "x").replace("α", "alpha").replace("δ", "delta")
    return re.sub(r"[^a-z0-9.]+", "-", ascii_name.lower()).strip("-")


def read_front(folder: Path) -> dict[str, Any]:
    """The content of front.json; ValueError says what to type if there is none."""
    try:
        return with_descriptions(json.loads((folder / "front.json").read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ValueError(
            f"the search in {folder} has no front yet; finish it with: python -m search resume={folder.name}"
        ) from None
    except ValueError as error:
        raise ValueError(
            f"{folder / 'front.json'} is not a complete JSON file ({error}); "
            f"write it again with: python -m search resume={folder.name}"
        ) from None


def with_descriptions(front: dict[str, Any]) -> dict[str, Any]:
    """The content of a front.json with `kinds`, `labels` and `shares`, also if it was written before these existed.

    The only place that has a list of objectives: those that existed then.
    """
    if "kinds" in front:
        return front
    names = {name for row in front["entries"] for name in row["held_out"]} | set(front["objectives"])
    costs = ("macs", "latency", "memory", "bops", "size", Speedup.key)
    kinds = {name: "cost" if name in costs else "quality" for name in sorted(names)}
    return front | {"kinds": kinds, "labels": {}, "shares": [name for name in ("macs", "bops") if name in names]}


def write_row(file: Path, images: "Sequence[np.ndarray]") -> None:
    """Write pictures [H, W, 3] of equal size as one lossless file, from left to right."""
    import numpy as np
    from PIL import Image

    Image.fromarray(np.concatenate(images, axis=1)).save(file)


def read_row(file: Path, count: int) -> "list[np.ndarray]":
    """The `count` pictures of a file that `write_row` wrote; ValueError if it has another number of them."""
    import numpy as np
    from PIL import Image

    try:
        return np.split(np.asarray(Image.open(file).convert("RGB")), count, axis=1)
    except (OSError, ValueError, ZeroDivisionError) as error:
        raise ValueError(
            f"{file} is not a row of {count} pictures of equal size ({error}); "
            f"write it again with: python -m search resume={file.parent.parent.name}"
        ) from None


def find_run(run: str, root: Path) -> Path:
    """The folder of `latest`, of a name below `root`, or of a path; ValueError says what to type."""
    folders = sorted(p.parent for p in root.glob("*/config.yaml"))
    if run == "latest":
        if not folders:
            raise ValueError(f"there is no search in {root} yet; type {FIRST}")
        return max(folders, key=lambda folder: (folder / "config.yaml").stat().st_mtime)
    for folder in (root / run, Path(run)):
        if (folder / "config.yaml").is_file():
            return folder
    names = ", ".join(folder.name for folder in folders[-3:]) or f"none yet; type {FIRST}"
    raise ValueError(f"run={run!r} is not a search in {root}; there are: {names}")
