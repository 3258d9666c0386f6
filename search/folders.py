"""Where a search writes: one new folder each."""

import re
from datetime import datetime
from pathlib import Path


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
