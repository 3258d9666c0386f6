"""What a finished search is: entries with scores, and the run folder that holds them."""

import base64
import html
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.results.disk import write_atomically
from search.results.folder import TENSORS, read_front, read_row, slug, write_row
from search.results.scores import Score

if TYPE_CHECKING:
    import numpy as np

    from search.schedule import Schedule


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
                write_row(self.folder / self.picture(entry), entry.images)
            scores = {part: {k: asdict(s) for k, s in getattr(entry, part).items()} for part in SCORED}
            row = {"name": entry.name, "role": entry.role, "file": self.file(entry), "behind": entry.behind}
            rows.append(row | scores)
        data = {name: getattr(self, name) for name in KEPT} | {"entries": rows}
        write_atomically(self.folder / "front.json", json.dumps(data, indent=1, ensure_ascii=False))

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
                entry.images = read_row(file, len(result.shown))
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


def _cells(tag: str, texts: Iterable[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(text)}</{tag}>" for text in texts) + "</tr>"
