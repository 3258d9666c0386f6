"""The entries of a result: a schedule with its scores, its pictures, and the record of the search that made it."""

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from search.evaluate.evaluator import Evaluator
from search.loop.finished import FinishedSearch
from search.loop.progress import OnProgress
from search.models.base import plain_arguments
from search.results.compare import held_out_gaps, summarise_scores
from search.results.result import Entry
from search.results.scores import Score
from search.schedule import Schedule
from search.validate.environment import search_environment

SHOWN = 8  # prompts whose pictures a result has
HIGHEST = 512  # pixels of a stored picture: there are SHOWN of them for every entry


@dataclass
class EntryBuilder:
    """Makes entries of schedules that were timed and scored on the held-out prompts.

    `times` are milliseconds per round by schedule, `total` is the number of entries, for `on_progress`.
    """

    finished: FinishedSearch
    held_out: Evaluator
    times: Mapping[Schedule, Sequence[float]]
    teacher: Schedule
    total: int
    on_progress: OnProgress
    _numbers: "itertools.count[int]" = field(default_factory=lambda: itertools.count(1))

    def entry(self, name: str, role: str, schedule: Schedule) -> Entry:
        """The entry of a schedule; an empty name is replaced by its speed-up and drift."""
        objectives, held_out = self.finished.objectives, self.held_out
        values = held_out.values(schedule)
        calibration = self.finished.state.archive.get(schedule.digest, {}).get("values")
        calibration = calibration or self.finished.evaluator.values(schedule)
        scores = summarise_scores(values, held_out.objectives)
        scores |= time_scores(self.times[schedule], self.times[self.teacher])
        self.on_progress("pictures", next(self._numbers), self.total)
        return Entry(
            name or f"{scores['speedup'].value:.1f}× · drift {scores['drift'].value:.3f}",
            role,
            _with_scores(self.finished, schedule, scores),
            summarise_scores(calibration, objectives),
            scores,
            as_pictures(held_out.scorer.decode(held_out.latents(schedule)[:SHOWN])),
            held_out_gaps(values, calibration, objectives),
            samples=values,
        )


def time_scores(milliseconds: Sequence[float], teacher: Sequence[float]) -> dict[str, Score]:
    """Latency and speed-up over the teacher, both measured in the same rounds: medians with their range."""
    ratios = [b / a for a, b in zip(milliseconds, teacher, strict=True)]
    return {
        "latency": Score(statistics.median(milliseconds), min(milliseconds), max(milliseconds)),
        "speedup": Score(statistics.median(ratios), min(ratios), max(ratios)),
    }


def make_names_unique(entries: Sequence[Entry]) -> None:
    """Number the second and later entries of the same name: `2.0× · drift 0.050 (2)`."""
    counts: dict[str, int] = {}
    for entry in entries:
        counts[entry.name] = counts.get(entry.name, 0) + 1
        if counts[entry.name] > 1:
            entry.name += f" ({counts[entry.name]})"


def _with_scores(finished: FinishedSearch, schedule: Schedule, scores: Mapping[str, Score]) -> Schedule:
    """The schedule with its scores and the record of the search, as its file has them."""

    def part(name: str, score: Score) -> dict[str, Any]:
        split = "device" if name in ("latency", "speedup") else "held_out"
        interval = {} if score.low is None or score.high is None else {"ci": [score.low, score.high]}
        return {"value": score.value, "split": split} | interval

    made = {
        "search": finished.folder.name,
        "model": finished.config.model["name"],
        "call": plain_arguments(finished.model.arguments),
        "prompts": {"calibration": len(finished.evaluator.prompts), "held_out": len(finished.held_out_prompts)},
        "seed": finished.config.seed,
        "block_executions": round(finished.state.block_executions),
        **search_environment(finished.model),
    }
    return schedule.with_scores({name: part(name, score) for name, score in scores.items()}).with_made(made)


def as_pictures(images: Tensor) -> list[np.ndarray]:
    """Pictures [B, 3, H, W] in 0..1 as bytes [H, W, 3], at most HIGHEST pixels high."""
    if (height := images.shape[-2]) > HIGHEST:
        size = HIGHEST, max(1, round(images.shape[-1] * HIGHEST / height))
        images = torch.nn.functional.interpolate(images.float(), size, mode="bilinear", antialias=True).clamp(0, 1)
    return list((images * 255).round().byte().permute(0, 2, 3, 1).numpy())
