"""What a finished search is: entries with scores, and the run folder that holds them."""

import base64
import html
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # reading a run folder, as export does, needs neither torch nor numpy
    import numpy as np

    from search.schedule import Schedule

FIRST = "python -m search +space=cache model=pixart"
TENSORS = ".safetensors"  # ending of the file beside a schedule that has corrections


class Speedup:
    """The one score that no objective defines: the teacher's measured time over the schedule's. Described like one."""

    key, unit, better, kind, label, share = "speedup", "×", "higher", "cost", "", False


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
    speedup. `images` are uint8 [H, W, 3], one for each prompt that the result shows; searches keep them at most 512
    pixels high.
    """

    name: str
    role: str
    schedule: "Schedule"
    calibration: dict[str, Score]
    held_out: dict[str, Score]
    images: "list[np.ndarray] | None" = None
    gap: dict[str, Score] = field(default_factory=dict)  # held-out minus calibration, of what was searched
    change: dict[str, Score] = field(default_factory=dict)  # of rewards: minus the teacher's, prompt by prompt
    behind: str = ""  # the schedule on the front that surely dominates it on held-out prompts
    samples: dict[str, list[float]] = field(default_factory=dict)  # held-out values [P], only while the search runs

    @property
    def slug(self) -> str:
        return slug(self.name)


@dataclass
class Result:
    """Everything that tracking, figures and export need. Entries: front by cost, then presets, the teacher last.

    `units`, `better` (lower or higher), `kinds` (cost or quality) and `labels` (for charts) are by name of a score, as
    its objective states them; `shares` are the names of those that are shares of the teacher's.
    """

    search_id: str
    folder: Path
    model: str
    space: str
    objectives: list[str]
    units: dict[str, str]
    better: dict[str, str]
    kinds: dict[str, str]
    labels: dict[str, str]
    shares: list[str]
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
    guard: list[str] = field(default_factory=list)  # objectives that are reported and were not searched
    notes: list[str] = field(default_factory=list)  # what a reader should know before believing the scores

    def of(self, role: str) -> list[Entry]:
        return [entry for entry in self.entries if entry.role == role]

    @property
    def best(self) -> Entry:
        """The recommended entry; the teacher where the front is empty."""
        return next((e for e in self.entries if e.name == self.recommended), self.entries[-1])

    @property
    def axes(self) -> tuple[str, str]:
        """Names on the x and y axis of charts: the first cost and the first quality among the objectives."""
        return first_of_each_kind(self.objectives, self.kinds)

    def file(self, entry: Entry) -> str:
        """Path of an entry's schedule inside of the run folder."""
        return f"schedules/{self.number(entry):02d}_{entry.slug}.json"

    def picture(self, entry: Entry) -> str:
        """Path of an entry's pictures, all in one row, inside of the run folder."""
        return f"pictures/{self.number(entry):02d}.png"

    def number(self, entry: Entry) -> int:
        """Place of an entry in the list; two schedules may be equal, so it is looked up by identity."""
        return next(i for i, other in enumerate(self.entries) if other is entry)

    def save(self) -> None:
        """Write schedules/*.json, pictures/*.png and front.json."""
        for name, kinds in (("schedules", (".json", TENSORS)), ("pictures", (".png",))):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
            for stale in (self.folder / name).iterdir():
                if stale.suffix in kinds:
                    stale.unlink()
        rows = []
        for entry in self.entries:
            entry.schedule.save(self.folder / self.file(entry))
            if entry.images:
                _write_row(self.folder / self.picture(entry), entry.images)
            scores = {part: {k: asdict(s) for k, s in getattr(entry, part).items()} for part in SCORED}
            row = {"name": entry.name, "role": entry.role, "file": self.file(entry), "behind": entry.behind}
            rows.append(row | scores)
        data = {name: getattr(self, name) for name in KEPT} | {"entries": rows}
        beside = self.folder / "front.json.new"
        beside.write_text(json.dumps(data, indent=1, ensure_ascii=False), encoding="utf-8")
        beside.replace(self.folder / "front.json")

    @classmethod
    def load(cls, folder: Path, pictures: bool = True) -> "Result":
        """The result of a run folder, with the pictures that it keeps; ValueError where the search has not finished."""
        from search.schedule import Schedule

        data = {"shown": [], "guard": [], "notes": []} | read_front(folder)  # which earlier versions did not keep
        entries = []
        for row in data["entries"]:
            scores = {part: {k: Score(**s) for k, s in row.get(part, {}).items()} for part in SCORED}
            schedule = Schedule.load(folder / row["file"])
            parts = scores["calibration"], scores["held_out"], None, scores["gap"], scores["change"]
            entries.append(Entry(row["name"], row["role"], schedule, *parts, row.get("behind", "")))
        result = cls(folder=folder, entries=entries, **{name: data[name] for name in KEPT})
        for entry in entries if pictures else ():
            if (file := folder / result.picture(entry)).exists():
                entry.images = _read_row(file, len(result.shown))
        return result

    def _repr_html_(self) -> str:
        """What a notebook shows: the front's picture, where the search has drawn it, and all schedules."""
        drawn = self.folder / "figures" / "pareto.png"
        picture = base64.b64encode(drawn.read_bytes()).decode() if drawn.exists() else ""
        names = list(dict.fromkeys(name for entry in self.entries for name in entry.held_out))
        heads = [
            "schedule",
            "role",
            *(f"{name} ({unit})" if (unit := self.units.get(name)) else name for name in names),
        ]
        rows = [
            [e.name, e.role, *(f"{e.held_out[n].value:.4g}" if n in e.held_out else "" for n in names)]
            for e in self.entries
        ]
        return (
            (f'<img alt="front and presets" src="data:image/png;base64,{picture}">' if picture else "")
            + f"<table><thead>{_cells('th', heads)}</thead><tbody>{''.join(_cells('td', row) for row in rows)}"
            + "</tbody></table>"
        )


SCORED = ("calibration", "held_out", "gap", "change")
KEPT = tuple(f.name for f in fields(Result) if f.name not in ("folder", "entries"))  # as they are in JSON


def first_of_each_kind(objectives: Sequence[str], kinds: Mapping[str, str]) -> tuple[str, str]:
    """The first cost and the first quality among the searched objectives; macs and drift where there is none."""
    costs = [name for name in objectives if kinds.get(name) == "cost"]
    qualities = [name for name in objectives if kinds.get(name) != "cost"]
    return (costs or ["macs"])[0], (qualities or ["drift"])[0]


def read_front(folder: Path) -> dict[str, Any]:
    """The content of front.json; ValueError says what to type where there is none."""
    try:
        return _with_descriptions(json.loads((folder / "front.json").read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ValueError(
            f"the search in {folder} has no front yet; finish it with: python -m search resume={folder.name}"
        ) from None
    except ValueError as error:
        raise ValueError(
            f"{folder / 'front.json'} is no complete JSON file ({error}); "
            f"write it again with: python -m search resume={folder.name}"
        ) from None


def _with_descriptions(front: dict[str, Any]) -> dict[str, Any]:
    """The content of a front.json with `kinds`, `labels` and `shares`, also where it was written without them.

    Files of 0.1.0 before these fields existed: only there are names of objectives known, and only those of that time.
    """
    if "kinds" in front:
        return front
    names = {name for row in front["entries"] for name in row["held_out"]} | set(front["objectives"])
    costs = ("macs", "latency", "memory", "bops", "size", Speedup.key)
    kinds = {name: "cost" if name in costs else "quality" for name in sorted(names)}
    return front | {"kinds": kinds, "labels": {}, "shares": [name for name in ("macs", "bops") if name in names]}


def _write_row(file: Path, images: "Sequence[np.ndarray]") -> None:
    """Pictures [H, W, 3] beside each other, as one lossless file."""
    import numpy as np
    from PIL import Image

    Image.fromarray(np.concatenate(images, axis=1)).save(file)


def _read_row(file: Path, count: int) -> "list[np.ndarray]":
    import numpy as np
    from PIL import Image

    try:
        return np.split(np.asarray(Image.open(file).convert("RGB")), count, axis=1)
    except (OSError, ValueError, ZeroDivisionError) as error:
        raise ValueError(
            f"{file} is no row of {count} pictures of equal size ({error}); "
            f"write it again with: python -m search resume={file.parent.parent.name}"
        ) from None


def _cells(tag: str, texts: Iterable[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(text)}</{tag}>" for text in texts) + "</tr>"


def applied_to(others: Iterable[str]) -> str:
    """What stands in `schedule.apply(…)`: the pipeline, and those of the other denoisers that a schedule names."""
    brought = ", ".join(f'"{letter}": pipe_{letter}' for letter in others)
    return f"pipe, models={{{brought}}}" if brought else "pipe"


def how_to_apply(file: str, others: Mapping[str, Mapping[str, Any]] | None = None) -> list[str]:
    """Lines of Python that run a pipeline by a schedule file; `others` is `models.names` of the schedule."""
    loaded = []
    for letter, part in (others or {}).items():
        name = " ".join((part.get("name") or part["class"]).split())  # somebody's text: on one line it stays a comment
        loaded.append(f"pipe_{letter} = DiffusionPipeline.from_pretrained(...)  # {name}")
    return [
        "from diffusers import DiffusionPipeline",
        "from search import Schedule",
        "pipe = DiffusionPipeline.from_pretrained(...)",
        *loaded,
        f"schedule = Schedule.load({json.dumps(file, ensure_ascii=False)})",
        f"handle = schedule.apply({applied_to(others or {})})",
        'image = pipe("a prompt", **schedule.made["call"]).images[0]',
    ]


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
