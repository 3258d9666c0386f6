"""Copy picked schedules of a finished search to where production loads them."""

import shutil
from pathlib import Path

from search.results.folder import TENSORS
from search.results.front import load_schedule, read_front
from search.results.pick import pick_entries


def copy_schedules(folder: Path, pick: str, out: Path) -> list[Path]:
    """Copy the schedules of a search that `pick` names to `out`, a file, or for pick=all a folder; their paths."""
    chosen = pick_entries(read_front(folder), pick)
    for entry in chosen if pick == "all" else chosen[:1]:
        load_schedule(folder, entry)  # nothing is written where one is gone or damaged
    if pick == "all":
        if out.suffix == ".json":
            raise ValueError(f"out={str(out)!r} is a file name; pick=all writes a folder, for example out=schedules")
        out.mkdir(parents=True, exist_ok=True)
        return [_copy(folder / entry["file"], out / Path(entry["file"]).name) for entry in chosen]
    out.parent.mkdir(parents=True, exist_ok=True)
    return [_copy(folder / chosen[0]["file"], out)]


def _copy(file: Path, target: Path) -> Path:
    """Copy a schedule, and its file of tensors where it has one."""
    tensors = file.with_suffix(TENSORS)
    if tensors.exists() and target.suffix == TENSORS:
        raise ValueError(f"out={str(target)!r} is the name of a schedule's file of tensors; type out=schedule.json")
    written = Path(shutil.copy(file, target))
    if tensors.exists():
        shutil.copy(tensors, written.with_suffix(TENSORS))
    return written
