"""Run folders: find one, name its files, write and read its pictures."""

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from search.files import check_folder_of_files, read_regular_file
from search.results.front import REMEDY, resume_command

if TYPE_CHECKING:
    import numpy as np


FIRST = "python -m search +space=cache model=pixart"
TENSORS = ".safetensors"  # ending of the file of tensors of a schedule that has corrections
MAX_PICTURE_BYTES, MAX_PIXELS = 128 * 2**20, 64 * 2**20  # of a row of pictures


def slug(name: str) -> str:
    """A name as part of a file name, at most 100 characters."""
    ascii_name = name.replace("×", "x").replace("α", "alpha").replace("δ", "delta")
    return re.sub(r"[^a-z0-9.]+", "-", ascii_name.lower()).strip("-")[:100]


def picture_row(images: "Sequence[np.ndarray]") -> bytes:
    """Pictures [H, W, 3] of equal size, from left to right, as one lossless file."""
    import numpy as np
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.concatenate(images, axis=1)).save(buffer, "PNG")
    return buffer.getvalue()


def read_row(file: Path, count: int, folder: Path) -> "list[np.ndarray]":
    """The `count` pictures of a file of a run folder that holds a `picture_row`; ValueError if it does not."""
    import numpy as np
    from PIL import Image

    try:
        data = read_regular_file(file, MAX_PICTURE_BYTES, inside=folder)
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width} times {image.height} pixels are too many")
            return np.split(np.asarray(image.convert("RGB")), count, axis=1)
    except Exception as error:  # of any kind: a decoder of pictures has its own for what is damaged
        reason = str(error).replace("\n", " ")[:200] or type(error).__name__
        raise ValueError(
            f"{file} is not a row of {count} pictures of equal size ({reason}); {REMEDY}{resume_command(folder)}"
        ) from None


def find_run(run: str, root: Path) -> Path:
    """The folder of `latest`, of a name below `root`, or of a path.

    ValueError says what to type where there is none, or where it holds anything but files of its own.
    """
    folders = sorted(p.parent for p in root.glob("*/config.yaml") if p.is_file())
    if run == "latest":
        if not folders:
            raise ValueError(f"there is no search in {root} yet; type {FIRST}")
        return _checked(max(folders, key=lambda folder: (folder / "config.yaml").stat().st_mtime))
    for folder in (root / run, Path(run)):
        if (folder / "config.yaml").is_file():
            return _checked(folder)
    names = ", ".join(folder.name for folder in folders[-3:]) or f"none yet; type {FIRST}"
    raise ValueError(f"run={run!r} is not a search in {root}; there are: {names}")


def _checked(folder: Path) -> Path:
    check_folder_of_files(folder)
    return folder
