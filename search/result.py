"""What a finished search is: entries with scores, and the run folder that holds them."""

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # reading a run folder, as export does, needs neither torch nor numpy
    import numpy as np

    from search.schedule import Schedule

FIRST = "python -m search +space=cache model=pixart"
TENSORS = ".safetensors"  # ending of the file beside a schedule that has corrections
COSTS = ("macs", "latency", "memory", "bops", "size")


def slug(name: str) -> str:
    """A name as part of a file name."""
    ascii_name = name.replace("×", "x").replace("α", "alpha").replace("δ", "delta")
    return re.sub(r"[^a-z0-9.]+", "-", ascii_name.lower()).strip("-")


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
    schedule: "Schedule"
    calibration: dict[str, Score]
    held_out: dict[str, Score]
    images: "list[np.ndarray] | None" = None

    @property
    def slug(self) -> str:
        return slug(self.name)


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

    @property
    def axes(self) -> tuple[str, str]:
        """Names on the x and y axis of charts: the first cost and the first quality among the objectives."""
        costs = [o for o in self.objectives if o in COSTS]
        qualities = [o for o in self.objectives if o not in COSTS]
        return (costs or ["macs"])[0], (qualities or ["drift"])[0]

    def file(self, entry: Entry) -> str:
        """Path of an entry's schedule inside of the run folder."""
        return f"schedules/{self.number(entry):02d}_{entry.slug}.json"

    def number(self, entry: Entry) -> int:
        """Place of an entry in the list; two schedules may be equal, so it is looked up by identity."""
        return next(i for i, other in enumerate(self.entries) if other is entry)

    def save(self) -> None:
        """Write schedules/*.json and front.json."""
        (self.folder / "schedules").mkdir(parents=True, exist_ok=True)
        for stale in (self.folder / "schedules").iterdir():
            if stale.suffix in (".json", TENSORS):
                stale.unlink()
        rows = []
        for entry in self.entries:
            entry.schedule.save(self.folder / self.file(entry))
            scores = {split: {k: asdict(s) for k, s in getattr(entry, split).items()} for split in SPLITS}
            rows.append({"name": entry.name, "role": entry.role, "file": self.file(entry)} | scores)
        data = {name: getattr(self, name) for name in KEPT} | {"entries": rows}
        beside = self.folder / "front.json.new"
        beside.write_text(json.dumps(data, indent=1, ensure_ascii=False), encoding="utf-8")
        beside.replace(self.folder / "front.json")

    @classmethod
    def load(cls, folder: Path) -> "Result":
        """The result of a run folder, without pictures; ValueError where the search has not finished."""
        from search.schedule import Schedule

        data = read_front(folder)
        entries = []
        for row in data["entries"]:
            calibration, held_out = ({k: Score(**s) for k, s in row[split].items()} for split in SPLITS)
            schedule = Schedule.load(folder / row["file"])
            entries.append(Entry(row["name"], row["role"], schedule, calibration, held_out))
        return cls(folder=folder, entries=entries, shown=[], **{name: data[name] for name in KEPT})


SPLITS = ("calibration", "held_out")
KEPT = tuple(f.name for f in fields(Result) if f.name not in ("folder", "entries", "shown"))  # as they are in JSON


def read_front(folder: Path) -> dict[str, Any]:
    """The content of front.json; ValueError says what to type where there is none."""
    try:
        return json.loads((folder / "front.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"the search in {folder} has no front yet; finish it with: python -m search resume={folder.name}"
        ) from None
    except ValueError as error:
        raise ValueError(
            f"{folder / 'front.json'} is no complete JSON file ({error}); "
            f"write it again with: python -m search resume={folder.name}"
        ) from None


def applied_to(others: Iterable[str]) -> str:
    """What stands in `schedule.apply(…)`: the pipeline, and those of the other denoisers that a schedule names."""
    brought = ", ".join(f'"{letter}": pipe_{letter}' for letter in others)
    return f"pipe, models={{{brought}}}" if brought else "pipe"


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
