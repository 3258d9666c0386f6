"""From final latents to scores: every objective on the results of a schedule, next to the teacher's."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from search.evaluate.guard import Guard, ObjectiveFailed, SafeCost, objective_identity
from search.evaluate.memo import Memo
from search.models.base import Model
from search.models.prompts import text_of
from search.objectives.base import Cost, Objective, Quality
from search.objectives.drift import Drift
from search.profile.costs import Costs
from search.schedule import Schedule

GATE = "computed "  # in the memo: at each step, the share of pictures for which this group was computed
NOT_FINITE = "not finite after step"  # in the memo: the step, from 1, for each prompt; 0 where it is not known
DRIFT = Drift.key  # measured of every candidate, whatever the objectives are: races compare by it


@dataclass(frozen=True)
class Scored:
    """The result of a candidate.

    Attributes:
        schedule: The schedule that was run, its solver fitted where that was asked for.
        values: Per-prompt values by objective, costs with one value. Empty where the candidate lost its race or
            could not be scored.
        minimised: The row [M] of scores for an engine, all to be minimised. An estimate where the candidate lost its
            race, the worst values where it could not be scored.
        prompts: How many prompts it was run on.
        failed: Why it could not be scored; empty where it was.
    """

    schedule: Schedule
    values: Mapping[str, list[float]]
    minimised: list[float]
    prompts: int
    failed: str = ""


class Scorer:
    """Scores schedules whose latents are known, and remembers the values in the memo.

    Args:
        model: Decodes latents to pictures.
        objectives: By name.
        costs: Cost tables of the model.
        memo: Where latents and values are remembered, under `context`.
        guard: Calls the objectives.
        prompts: The texts of the split [P].
        teacher: The teacher's final latents [P, C, h, w].
        context: What identifies model, prompts and seeds in the memo.
    """

    def __init__(
        self,
        model: Model,
        objectives: Mapping[str, Objective],
        costs: Costs,
        memo: Memo,
        guard: Guard,
        prompts: Sequence[str],
        seeds: Sequence[int],
        teacher: Tensor,
        context: str,
    ) -> None:
        self.model, self.objectives, self.costs = model, dict(objectives), costs
        self.memo, self.guard, self.prompts, self.seeds = memo, guard, list(prompts), list(seeds)
        self.texts = [text_of(prompt) for prompt in prompts]
        self.teacher, self.context = teacher, context
        self.failed: dict[str, str] = {}  # why a schedule has no scores, by its digest
        self._memo_names = {name: _memo_name(name, objective) for name, objective in self.objectives.items()}
        self._teacher_images: Tensor | None = None

    @property
    def decodes(self) -> bool:
        """Whether a score needs pictures."""
        return any(isinstance(o, Quality) and o.of == "images" for o in self.objectives.values())

    @property
    def teacher_images(self) -> Tensor:
        """The teacher's pictures [P, 3, H, W], decoded on first use."""
        if self._teacher_images is None:
            self._teacher_images = self.decode(self.teacher)
        return self._teacher_images

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures [N, 3, H, W] of latents [N, ...] of the first N prompts, eight at a time."""
        parts = []
        for first in range(0, len(latents), 8):
            part = slice(first, first + 8)
            parts.append(self.model.decode(latents[part], self.prompts[part], self.seeds[part]).cpu())
        return torch.cat(parts)

    def try_objectives(self) -> dict[str, float]:
        """Call every quality twice on the teacher's own results.

        Returns:
            By name of each objective that is not deterministic: how far its two values are apart.

        Raises:
            ValueError: An objective fails even there, so that no schedule can be scored.
        """
        images = self.teacher_images if self.decodes else None
        differences = {}
        for name, objective in self.objectives.items():
            if not np.isfinite(worst := objective.worst(self.costs)):
                raise ValueError(f"objective {name} has {worst} as its worst value; let worst() return a finite number")
            if not isinstance(objective, Quality):
                continue
            result = self.teacher if objective.of == "latents" or images is None else images
            try:
                difference = self.guard.differs(name, objective, result, self.texts, "the teacher")
            except ObjectiveFailed as error:
                raise ValueError(f"{error}, on the teacher's own {objective.of}; no schedule can be scored") from None
            if difference is not None:
                differences[name] = difference
        return differences

    def add(self, objectives: Mapping[str, Objective]) -> None:
        """Score more objectives from here on."""
        self.objectives |= objectives
        self._memo_names |= {name: _memo_name(name, objective) for name, objective in objectives.items()}

    def usable(self, objectives: Mapping[str, Objective]) -> tuple[dict[str, Objective], dict[str, str]]:
        """The objectives that have values for the teacher's own results, and why each of the rest has none."""
        guard, reasons = Guard(self.guard.seconds), {}
        for name, objective in objectives.items():
            try:
                if isinstance(objective, Quality):
                    teacher = self.teacher if objective.of == "latents" else self.teacher_images
                    guard.quality(name, objective, teacher, teacher, self.texts, "the teacher")
            except ObjectiveFailed as error:
                reasons[name] = str(error)
        return {name: objective for name, objective in objectives.items() if name not in reasons}, reasons

    def minimised(self, values: Mapping[str, list[float]]) -> list[float]:
        """The row [M] of scores for an engine: one number over all prompts each, all to be minimised."""
        return [
            o.aggregate(values[name]) if isinstance(o, Quality) else o.minimised(values[name][0])
            for name, o in self.objectives.items()
        ]

    def score(self, schedule: Schedule) -> Scored | None:
        """All scores of a schedule, where its latents or its scores are known; None where it has to run."""
        remembered = self.remembered(schedule)
        if not np.isfinite(remembered.get(DRIFT, [])).all():
            return self.not_finite(schedule, max(remembered.get(NOT_FINITE, [0])))
        if schedule.digest in self.failed:
            return self.worst(schedule)
        try:
            values = self._values(schedule)
        except ObjectiveFailed as error:
            self.failed[schedule.digest] = str(error)
            return self.worst(schedule)
        return None if values is None else Scored(schedule, values, self.minimised(values), len(self.prompts))

    def worst(self, schedule: Schedule) -> Scored:
        """The result of a schedule that could not be scored: it dominates nothing."""
        minimised = [objective.minimised(objective.worst(self.costs)) for objective in self.objectives.values()]
        return Scored(schedule, {}, minimised, len(self.prompts), self.failed[schedule.digest])

    def not_finite(self, schedule: Schedule, step: float) -> Scored:
        """The result of a schedule whose latents are not finite after this step, from 1; 0 where it is not known."""
        at = f" after step {step:g} of {schedule.steps}" if step else ""
        self.failed[schedule.digest] = f"its latents are not finite{at}"
        return self.worst(schedule)

    def estimate(self, schedule: Schedule, drift: Sequence[float], expected_drift: float) -> Scored:
        """The result of a schedule that lost its race after some prompts.

        Args:
            schedule: What was run.
            drift: Its drift on the prompts so far [p].
            expected_drift: Its drift as it would be over all prompts.

        Returns:
            Its exact costs, the expected drift, and the worst values of all other qualities.
        """
        minimised = []
        for name, objective in self.objectives.items():
            if isinstance(objective, Cost):
                value = SafeCost(name, objective, self.guard)(schedule, self.costs)
            elif isinstance(objective, Drift):
                value = expected_drift
            else:
                value = objective.worst(self.costs)
            minimised.append(objective.minimised(value))
        return Scored(schedule, {}, minimised, len(drift))

    def drift(self, latents: Tensor) -> list[float]:
        """Drift [p] of latents of the first p prompts."""
        return [float(value) for value in Drift()(latents, self.teacher[: len(latents)])]

    def prices(self, schedule: Schedule, costs: Costs) -> np.ndarray:
        """The costs of a schedule that are objectives [C], to be minimised."""
        searched = [(name, o) for name, o in self.objectives.items() if isinstance(o, Cost)]
        return np.array([o.minimised(SafeCost(name, o, self.guard)(schedule, costs)) for name, o in searched])

    def remembered(self, schedule: Schedule) -> dict[str, list[float]]:
        """What the memo has of a schedule: a value for each prompt, of gates for each step; others are left out."""
        values = self.memo.get(self.context, schedule.digest)
        counts = {name: schedule.steps if name.startswith(GATE) else len(self.prompts) for name in values}
        return {name: numbers for name, numbers in values.items() if len(numbers) == counts[name]}

    def remembered_latents(self, schedule: Schedule) -> Tensor | None:
        """Final latents [P, C, h, w] from the memo; None where it has none of this shape and type."""
        latents = self.memo.latents(self.context, schedule.digest)
        fits = latents is not None and latents.shape == self.teacher.shape and latents.dtype == self.teacher.dtype
        return latents if fits else None

    def decided(self, schedule: Schedule) -> dict[str, list[float]] | None:
        """The share of the prompts for which each group was computed at each step; None where it was not run here."""
        values = self.remembered(schedule)
        shares = {gate.name: values[GATE + gate.name] for gate in schedule.gates if GATE + gate.name in values}
        return shares if len(shares) == len(schedule.gates) else None

    def _values(self, schedule: Schedule) -> dict[str, list[float]] | None:
        """All values of a schedule, measured where its latents are known; None where it has to run."""
        remembered = self.remembered(schedule)
        decided = self.decided(schedule)
        if decided is None:
            return None
        missing = [
            name
            for name, objective in self.objectives.items()
            if isinstance(objective, Quality) and self._memo_names[name] not in remembered
        ]
        if missing:
            if (latents := self.remembered_latents(schedule)) is None:
                return None
            for name, measured in self._measure(latents, missing, schedule.digest):
                remembered[self._memo_names[name]] = measured
                self.memo.put(self.context, schedule.digest, {self._memo_names[name]: measured})
        costs, values = self.costs.measured(decided) if schedule.gates else self.costs, {}
        for name, objective in self.objectives.items():
            if isinstance(objective, Cost):
                values[name] = [self.guard.cost(name, objective, schedule, costs)]
            else:
                values[name] = remembered[self._memo_names[name]]
        return values

    def _measure(self, latents: Tensor, names: Sequence[str], digest: str) -> Iterator[tuple[str, list[float]]]:
        """Per-prompt values [P] by name; ObjectiveFailed where an objective has none."""
        images: Tensor | None = None
        for name in names:
            quality = self.objectives[name]
            assert isinstance(quality, Quality)
            if quality.of == "latents":
                result, teacher = latents, self.teacher
            else:
                images = self.decode(latents) if images is None else images
                result, teacher = images, self.teacher_images
            yield name, self.guard.quality(name, quality, result, teacher, self.texts, digest)


def _memo_name(name: str, objective: Objective) -> str:
    """The name of an objective's values in the memo: with its arguments, which another search may give others."""
    identity = objective_identity(objective)
    return f"{name} {json.dumps(identity, sort_keys=True, default=str)}" if identity else name
