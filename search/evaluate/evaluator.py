"""Runs candidates on prompts with paired noise and compares them with the teacher."""

import hashlib
import json
from collections.abc import Mapping, Sequence
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
        self.teacher = self._sample()
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
        """Final latents [P, C, h, w] under a schedule; what its gates decided is remembered."""
        with self.model.apply(schedule) as handle:
            latents = self._sample()
        if schedule.gates:
            decided = {GATE + gate["group"]: gate["computed"] for gate in handle.stats()["gates"]}
            self.memo.put(self.context, schedule.digest, decided)
        self._count(self.costs_of(schedule).macs(schedule))
        return latents

    def costs_of(self, schedule: Schedule) -> Costs:
        """The cost tables, with what the gates of this schedule decided on these prompts.

        A gate decides for a whole batch of prompts, so it may compute more here than picture by picture.
        """
        if not schedule.gates:
            return self.costs
        names = [GATE + gate.name for gate in schedule.gates]
        if not set(names) <= set(known := self.memo.get(self.context, schedule.digest)):
            self.latents(schedule)
            known = self.memo.get(self.context, schedule.digest)
        return self.costs.measured({name.removeprefix(GATE): known[name] for name in names})

    def values(self, schedule: Schedule, latents: Tensor | None = None) -> dict[str, list[float]]:
        """Per-prompt values of every objective; costs have one value. Known values are not measured again.

        `latents` are the schedule's own from `latents()`, where the caller has them already.
        """
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

    def _sample(self) -> Tensor:
        return torch.cat([self.model.sample(conditions, noise).cpu() for conditions, noise in self.inputs])

    def _count(self, macs: float) -> None:
        self.block_executions += macs / self.costs.block_macs * len(self.prompts)
        self.runs += len(self.prompts)


def to_schedule(model: Model, parts: Mapping[str, Any]) -> Schedule:
    """The complete schedule for parts that a space decoded; all off is the teacher itself."""
    return Schedule.from_dict(model.target.schedule(parts))
