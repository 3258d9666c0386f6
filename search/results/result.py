"""The result of a search: entries with scores, stored in a run folder."""

import base64
import html
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.files import read_regular_file, write_atomically
from search.pareto.certificates import MissCount
from search.results.folder import MAX_PICTURE_BYTES, TENSORS, picture_row, read_row, slug
from search.results.front import FILE, REMEDY, load_schedule, read_front, resume_command
from search.results.scores import Score

if TYPE_CHECKING:
    import numpy as np

    from search.schedule import Schedule


FITTED = ", fitted"  # ends the name of a published rule that was run again with its solver fitted


@dataclass
class WorstRun:
    """The held-out run of a schedule that is worst by the criterion of certificates, or by PSNR.

    Attributes:
        name: Of the score that it is worst by.
        value: Its score.
        prompt: Its prompt.
        seed: Of its noise.
        images: The teacher's picture and the schedule's, uint8 [H, W, 3].
        picture: Path of both in one row, inside the run folder; None before they are written.
    """

    name: str
    value: float
    prompt: str
    seed: int
    images: "list[np.ndarray] | None" = field(default=None, compare=False)
    picture: str | None = None


@dataclass
class Entry:
    """One schedule with its scores.

    Every search has the scores drift, psnr (dB), ssim, macs (share of the teacher's), latency (ms), memory (MiB) and
    speedup, and those of its own objectives.

    Attributes:
        name: Unique within a result.
        role: front, preset or teacher.
        schedule: The schedule, with its scores.
        calibration: Scores on the calibration prompts.
        held_out: Scores on the held-out prompts.
        images: uint8 [H, W, 3], one for each prompt that the result shows, at most 512 pixels high.
        gap: Held-out minus calibration scores, of the objectives that were searched.
        change: Of rewards: minus the teacher's, prompt by prompt.
        behind: Name of the schedule on the front that surely dominates this one on held-out prompts, or empty.
        samples: Held-out values [P], only while the search runs.
        file: Path of the schedule inside the run folder, once it is written.
        picture: Path of the pictures, all in one row, inside the run folder, once they are written.
        tested: The held-out runs that decided on its certificate; None where it was not tested.
        worst: Its worst held-out run; None for the teacher, and in searches of earlier versions.
    """

    name: str
    role: str
    schedule: "Schedule"
    calibration: dict[str, Score]
    held_out: dict[str, Score]
    images: "list[np.ndarray] | None" = None
    gap: dict[str, Score] = field(default_factory=dict)
    change: dict[str, Score] = field(default_factory=dict)
    behind: str = ""
    samples: dict[str, list[float]] = field(default_factory=dict)
    file: str = ""
    picture: str = ""
    tested: MissCount | None = None
    worst: WorstRun | None = None

    @property
    def is_fitted_preset(self) -> bool:
        """Whether it is a published rule whose solver was fitted as those of the searched schedules are."""
        return self.role == "preset" and self.name.endswith(FITTED)

    @property
    def slug(self) -> str:
        """The name as part of a file name."""
        return slug(self.name)


@dataclass
class Result:
    """Everything that tracking, figures and export need of a finished search.

    Attributes:
        search_id: Name of the run folder.
        folder: The run folder.
        model: Name of the model's option.
        space: Names of the spaces, joined by +.
        objectives: Names of the objectives that were searched.
        units: Unit of each score, by name, as its objective states it; so are the next four.
        better: `lower` or `higher`.
        kinds: `cost` or `quality`.
        labels: Texts for axes of charts.
        shares: Names of the scores that are shares of the teacher's.
        entries: The front by cost, then the presets, the teacher last.
        history: A record of each generation.
        points: Mean calibration scores, generation and digest of every candidate.
        prompts: Texts of the splits `calibration` and `held_out`.
        shown: The held-out prompts of which entries have pictures.
        recommended: Name of the recommended entry.
        certify: What certificates promise: `criterion`, `share`, `confidence`, `runs` at most; and `new_runs`, which
            they took beside the held-out prompts, with their `block_executions`. None where none were asked for.
        attribution: Of the recommended schedule `drift`, `macs` and `parts`: of each part its `name`, the `drift` and
            `macs` without it, and the `difference` in drift with its paired 95 % interval, `low` and `high`; and the
            `block_executions` that this took. None where the schedule has no parts, and in earlier versions.
        config: The configuration.
        environment: Versions and device.
        stopped: Why the search ended early, or empty.
        guard: Objectives that are reported and were not searched.
        notes: What a reader should know before believing the scores.
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
    config: dict[str, Any]
    environment: dict[str, str]
    certify: dict[str, Any] | None = None
    attribution: dict[str, Any] | None = None
    stopped: str = ""
    guard: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def of(self, role: str) -> list[Entry]:
        """The entries of a role: front, preset or teacher."""
        return [entry for entry in self.entries if entry.role == role]

    @property
    def best(self) -> Entry:
        """The recommended entry; the teacher if the front is empty."""
        return next((e for e in self.entries if e.name == self.recommended), self.entries[-1])

    @property
    def axes(self) -> tuple[str, str]:
        """Names on the x and y axis of charts: the first cost and the first quality among the objectives."""
        return first_of_each_kind(self.objectives, self.kinds)

    def number(self, entry: Entry) -> int:
        """Index of an entry; it is looked up by identity, because two entries can be equal."""
        return next(i for i, candidate in enumerate(self.entries) if candidate is entry)

    def save(self) -> None:
        """Write schedules/*.json, pictures/*.png and front.json.

        The files of a result that was written before are replaced last, when no front.json names them any more: a
        process that is killed here leaves the old result or the new one.
        """
        for name in WRITTEN:
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        rows = []
        for number, entry in enumerate(self.entries):
            entry.file = self._unused_name("schedules", f"{number:02d}_{entry.slug}", ".json")
            entry.picture = self._unused_name("pictures", f"{number:02d}", ".png") if entry.images else ""
            entry.schedule.save(self.folder / entry.file)
            if entry.images:
                write_atomically(self.folder / entry.picture, picture_row(entry.images))
            if entry.worst and entry.worst.images:
                entry.worst.picture = self._unused_name("pictures", f"{number:02d}_worst", ".png")
                write_atomically(self.folder / entry.worst.picture, picture_row(entry.worst.images))
            scores = {part: {k: asdict(s) for k, s in getattr(entry, part).items()} for part in SCORED}
            row: dict[str, Any] = {"name": entry.name, "role": entry.role, "file": entry.file, "behind": entry.behind}
            row |= {"picture": entry.picture} if entry.picture else {}
            row |= {"tested": asdict(entry.tested)} if entry.tested else {}
            row |= {"worst": {k: v for k, v in vars(entry.worst).items() if k != "images"}} if entry.worst else {}
            rows.append(row | scores)
        data = {name: getattr(self, name) for name in STORED} | {"entries": rows}
        write_atomically(self.folder / FILE, json.dumps(data, indent=1, ensure_ascii=False))
        self._remove_stale_files()

    def _unused_name(self, folder: str, stem: str, ending: str) -> str:
        """`<folder>/<stem><ending>`, or with a number where an earlier result has a file of that name."""
        for count in itertools.count(1):
            path = f"{folder}/{stem}{'' if count == 1 else f'_{count}'}{ending}"
            if not (self.folder / path).exists():
                return path
        raise AssertionError("there is always another number")

    def _remove_stale_files(self) -> None:
        """Remove the schedules and pictures that no entry names: those of an earlier result, or half written."""
        kept = {path for entry in self.entries for path in (entry.file, entry.picture) if path}
        kept |= {entry.worst.picture for entry in self.entries if entry.worst and entry.worst.picture}
        kept |= {str(Path(path).with_suffix(TENSORS)) for path in kept}
        for name in WRITTEN:
            for stale in (self.folder / name).iterdir():
                ours = stale.suffix in (".json", TENSORS, ".png", ".new") or stale.name.startswith(".")
                if ours and f"{name}/{stale.name}" not in kept and stale.is_file():
                    stale.unlink()

    @classmethod
    def load(cls, folder: Path, pictures: bool = True) -> "Result":
        """Read the result of a run folder, with its pictures unless `pictures` is False.

        Raises:
            ValueError: The search has not finished, or a file is damaged; the message says what to type.
        """
        data = read_front(folder)
        entries = []
        for number, row in enumerate(data["entries"]):
            scores = {part: {k: Score(**s) for k, s in row[part].items()} for part in SCORED}
            parts = scores["calibration"], scores["held_out"], None, scores["gap"], scores["change"]
            entry = Entry(row["name"], row["role"], load_schedule(folder, row), *parts, row["behind"], file=row["file"])
            entry.picture = row["picture"] or f"pictures/{number:02d}.png"  # the first versions did not write it
            entry.tested = MissCount(**row["tested"]) if row["tested"] else None
            entry.worst = WorstRun(**row["worst"]) if row["worst"] else None
            worst = entry.worst.picture if entry.worst else None
            if pictures and entry.worst and worst and (folder / worst).is_file():
                entry.worst.images = read_row(folder / worst, 2, folder)
            if pictures and (folder / entry.picture).exists():
                entry.images = read_row(folder / entry.picture, len(data["shown"]), folder)
            entries.append(entry)
        shown = [*(e.images for e in entries), *(e.worst.images for e in entries if e.worst)]
        if len(sizes := {images[0].shape for images in shown if images}) > 1:
            raise ValueError(
                f"{folder / 'pictures'} has pictures of {len(sizes)} sizes; {REMEDY}{resume_command(folder)}"
            )
        return cls(folder=folder, entries=entries, **{name: data[name] for name in STORED})

    def _repr_html_(self) -> str:
        """For notebooks: the picture of the front, if there is one, and a table of all schedules."""
        chart = self.folder / "figures" / "pareto.png"
        picture = ""
        if chart.exists():
            picture = base64.b64encode(read_regular_file(chart, MAX_PICTURE_BYTES, inside=self.folder)).decode()
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


WRITTEN = ("schedules", "pictures")  # folders whose files are all written by `Result.save`
SCORED = ("calibration", "held_out", "gap", "change")
STORED = tuple(f.name for f in fields(Result) if f.name not in ("folder", "entries"))  # written as they are


def first_of_each_kind(objectives: Sequence[str], kinds: Mapping[str, str]) -> tuple[str, str]:
    """The first cost and the first quality among the searched objectives; macs or drift if there is none."""
    costs = [name for name in objectives if kinds.get(name) == "cost"]
    qualities = [name for name in objectives if kinds.get(name) != "cost"]
    return (costs or ["macs"])[0], (qualities or ["drift"])[0]


def _cells(tag: str, texts: Iterable[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(text)}</{tag}>" for text in texts) + "</tr>"
