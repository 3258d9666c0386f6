"""Runs candidates on prompts with paired noise and compares them with the teacher."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from search.calibration import Costs
from search.evaluate.memo import Memo
from search.models.base import Model
from search.objectives.base import Cost, Objective, Quality
from search.schedule import Schedule

GATE = "computed "  # in the memo: at each step, the share of pictures for which this group was computed


class Evaluator:
    """One split: fixed prompts and seeds, the teacher's results for them, and the memo of all candidates.

    Every candidate starts from the same noise as the teacher, so differences between schedules are paired.
    `block_executions` counts the denoiser work done so far, in MACs of one block (both CFG halves) per picture.
    """

    def __init__(
        self,
        model: Model,
        prompts: Sequence[str],
        seeds: Sequence[int],
        objectives: Mapping[str, Objective],
        costs: Costs,
        memo: Memo,
        batch: int = 8,
    ) -> None:
        self.model, self.prompts, self.seeds = model, list(prompts), list(seeds)
        self.objectives, self.costs, self.memo = dict(objectives), costs, memo
        self.block_executions = 0.0
        self.runs = 0
        chunks = [slice(i, i + batch) for i in range(0, len(self.prompts), batch)]
        self.inputs = [(model.encode(self.prompts[chunk]), model.noise(self.seeds[chunk])) for chunk in chunks]
        self.teacher = self._sample(self.inputs)
        self._count(costs.teacher_macs)
        self._teacher_images: Tensor | None = None
        state = [model.name, model.target.model, dict(model.target.sampler), self.prompts, self.seeds]
        state += [dict(model.arguments), str(model.device), torch.__version__]
        self.context = hashlib.sha256(json.dumps(state, sort_keys=True, default=str).encode()).hexdigest()

    def run_teacher(self) -> Tensor:
        """Final latents of the bare pipeline, for measuring what a search does not need."""
        return self.model.sample(*self.inputs[0])

    @property
    def teacher_images(self) -> Tensor:
        """The teacher's pictures [P, 3, H, W], decoded on first use."""
        if self._teacher_images is None:
            self._teacher_images = self.decode(self.teacher)
        return self._teacher_images

    def decode(self, latents: Tensor) -> Tensor:
        return torch.cat([self.model.decode(part).cpu() for part in latents.split(8)])

    def latents(self, schedule: Schedule) -> Tensor:
        """Final latents [P, C, h, w] under a schedule; what its gates decided is remembered.

        Where a gate is asked it is asked picture by picture: in a batch all would wait for the slowest.
        """
        asked = any(not gate.is_static for gate in schedule.gates)
        with self.model.apply(schedule) as handle:
            latents = self._sample(self._singles if asked else self.inputs)
        if schedule.gates:
            decided = {GATE + gate["group"]: gate["computed"] for gate in handle.stats()["gates"]}
            self.memo.put(self.context, schedule.digest, decided)
        self._count(self.costs_of(schedule).macs(schedule))
        return latents

    def costs_of(self, schedule: Schedule) -> Costs:
        """The cost tables, with what the gates of this schedule decided on these prompts."""
        if not schedule.gates:
            return self.costs
        if (decided := self._decided(schedule)) is None:
            self.latents(schedule)
            decided = self._decided(schedule)
        return self.costs.measured(decided or {})

    def _decided(self, schedule: Schedule) -> dict[str, list[float]] | None:
        """For what share of the prompts each group was computed at each step; None where it was not run here."""
        known = self.memo.get(self.context, schedule.digest)
        found = {gate.name: known[GATE + gate.name] for gate in schedule.gates if GATE + gate.name in known}
        return found if len(found) == len(schedule.gates) else None

    def values(self, schedule: Schedule, latents: Tensor | None = None) -> dict[str, list[float]]:
        """Per-prompt values of every objective; costs have one value. Known values are not measured again.

        `latents` are the schedule's own from `latents()`, where the caller has them already.
        """
        if schedule.gates and self._decided(schedule) is None:
            latents = self.latents(schedule)
        known = self.memo.get(self.context, schedule.digest)
        missing = [name for name, o in self.objectives.items() if isinstance(o, Quality) and name not in known]
        if missing:
            found = self._measure(self.latents(schedule) if latents is None else latents, missing)
            self.memo.put(self.context, schedule.digest, found)
            known |= found
        costs = self.costs_of(schedule)
        for name, objective in self.objectives.items():
            if isinstance(objective, Cost):
                known[name] = [objective(schedule, costs)]
        return {name: known[name] for name in self.objectives}

    def minimised(self, values: Mapping[str, list[float]]) -> list[float]:
        """The row [M] that an engine is told: means over prompts, all to be minimised."""
        return [o.minimised(sum(values[n]) / len(values[n])) for n, o in self.objectives.items()]

    def _measure(self, latents: Tensor, names: Sequence[str]) -> dict[str, list[float]]:
        images: Tensor | None = None
        found: dict[str, list[float]] = {}
        for name in names:
            quality = self.objectives[name]
            assert isinstance(quality, Quality)
            if quality.of == "latents":
                values = quality(latents, self.teacher)
            else:
                images = self.decode(latents) if images is None else images
                values = quality(images, self.teacher_images)
            found[name] = [float(v) for v in values]
        return found

    def _sample(self, inputs: Sequence[tuple[Any, Tensor]]) -> Tensor:
        return torch.cat([self.model.sample(conditions, noise).cpu() for conditions, noise in inputs])

    @cached_property
    def _singles(self) -> list[tuple[Any, Tensor]]:
        pairs = zip(self.prompts, self.seeds, strict=True)
        return [(self.model.encode([prompt]), self.model.noise([seed])) for prompt, seed in pairs]

    def _count(self, macs: float) -> None:
        self.block_executions += macs / self.costs.block_macs * len(self.prompts)
        self.runs += len(self.prompts)


def to_schedule(model: Model, parts: Mapping[str, Any]) -> Schedule:
    """The complete schedule for parts that a space decoded; all off is the teacher itself."""
    return Schedule.from_dict(model.target.schedule(parts))
