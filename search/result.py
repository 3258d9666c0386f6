"""What a finished search is: entries with scores, and the run folder that holds them."""

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from search.schedule import Schedule

FIRST = "python -m search +space=cache model=pixart"


@dataclass(frozen=True)
class Score:
    """A mean over prompts with its 95 % interval; costs have none. Times are medians with their range."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass
class Entry:
    """One schedule and what it does. `role` is front, preset or teacher.

    Scores by name: drift, psnr (dB), ssim, macs (share of the teacher's), latency (ms), memory (MiB) and
    speedup. `images` are uint8 [H, W, 3], one for each prompt that the result shows.
    """

    name: str
    role: str
    schedule: Schedule
    calibration: dict[str, Score]
    held_out: dict[str, Score]
    images: list[np.ndarray] | None = None

    @property
    def slug(self) -> str:
        ascii_name = self.name.replace("×", "x").replace("α", "alpha")
        return re.sub(r"[^a-z0-9.]+", "-", ascii_name.lower()).strip("-")


@dataclass
class Result:
    """Everything that tracking, figures and export need. Entries: front by cost, then presets, the teacher last."""

    search_id: str
    folder: Path
    model: str
    space: str
    objectives: list[str]
    units: dict[str, str]
    better: dict[str, str]
    entries: list[Entry]
    history: list[dict[str, float]]
    points: list[dict[str, Any]]
    prompts: dict[str, list[str]]
    shown: list[str]
    recommended: str
    no_visible_loss: float
    config: dict[str, Any]
    environment: dict[str, str]
    stopped: str = ""

    def of(self, role: str) -> list[Entry]:
        return [entry for entry in self.entries if entry.role == role]

    @property
    def best(self) -> Entry:
        """The recommended entry; the teacher where the front is empty."""
        return next((e for e in self.entries if e.name == self.recommended), self.entries[-1])

    def file(self, entry: Entry) -> str:
        """Path of an entry's schedule inside of the run folder."""
        return f"schedules/{self.entries.index(entry):02d}_{entry.slug}.json"

    def save(self) -> None:
        """Write schedules/*.json and front.json."""
        (self.folder / "schedules").mkdir(exist_ok=True)
        for stale in (self.folder / "schedules").glob("*.json"):
            stale.unlink()
        rows = []
        for entry in self.entries:
            entry.schedule.save(self.folder / self.file(entry))
            rows.append(
                {
                    "name": entry.name,
                    "role": entry.role,
                    "file": self.file(entry),
                    "calibration": {k: asdict(s) for k, s in entry.calibration.items()},
                    "held_out": {k: asdict(s) for k, s in entry.held_out.items()},
                }
            )
        kept = ("search_id", "model", "space", "objectives", "units", "better", "recommended", "no_visible_loss")
        kept += ("prompts", "config", "environment", "history", "points", "stopped")
        data = {name: getattr(self, name) for name in kept} | {"entries": rows}
        beside = self.folder / "front.json.new"
        beside.write_text(json.dumps(data, indent=1, ensure_ascii=False), encoding="utf-8")
        beside.replace(self.folder / "front.json")


def find_run(run: str, root: Path) -> Path:
    """The folder of `latest`, of a name below `root`, or of a path; ValueError says what to type."""
    known = sorted(p.parent for p in root.glob("*/config.yaml"))
    if run == "latest":
        if not known:
            raise ValueError(f"there is no search in {root} yet; type {FIRST}")
        return max(known, key=lambda folder: (folder / "config.yaml").stat().st_mtime)
    for folder in (root / run, Path(run)):
        if (folder / "config.yaml").is_file():
            return folder
    names = ", ".join(folder.name for folder in known[-3:]) or f"none yet; type {FIRST}"
    raise ValueError(f"run={run!r} is no search in {root}; there are: {names}")
