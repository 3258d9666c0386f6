"""Test the front of a finished search on held-out runs, and give certificates to the schedules that pass."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch

from search.config.load import HELD_OUT_SEED
from search.config.prompts import read_prompts
from search.config.settings import Config
from search.evaluate.evaluator import Evaluator
from search.evaluate.execute.jobs import Job
from search.evaluate.scoring import DRIFT
from search.loop.entries import as_pictures
from search.loop.finished import FinishedSearch
from search.loop.progress import OnProgress
from search.models.base import to_schedule
from search.objectives.base import Objective
from search.pareto.certificates import MissCount, certify_in_order
from search.results.compare import recommended_name
from search.results.result import Entry, WorstRun
from search.schedule import Schedule
from search.validate.certificate import certificate_part
from search.validate.criteria import measured_qualities
from search.validate.monitor import RecordedRuns
from search.validate.run_criterion import RunCriterion, run_criterion

BLOCK = 32  # runs that are made at once at most
WORST_BY = "psnr>=30"  # what the worst picture is chosen by where nothing is certified


@dataclass
class Certification:
    """The runs of a finished search: the held-out prompts first, then the rest of their file, then other noise.

    Attributes:
        finished: The search.
        held_out: The evaluator of the held-out prompts, whose runs come first.
        entries: Every schedule that is reported; those of the front are tested.
        new_runs: How many runs were made beside those of the held-out prompts, the teacher's included.
        block_executions: What these cost.
        problem: Why nothing can be certified although it was asked for; empty by default.
    """

    finished: FinishedSearch
    held_out: Evaluator
    entries: Sequence[Entry]
    new_runs: int = 0
    block_executions: float = 0.0
    problem: str = ""
    evaluators: dict[range, Evaluator] = field(default_factory=dict)

    def certify(self, on_progress: OnProgress) -> dict[str, Any] | None:
        """Fill in `tested`, `worst` and the certificates; returns what a result says of them, None if off."""
        settings = self.finished.config.certify
        try:
            criterion = self.criterion
        except ValueError as error:  # an objective that failed on the held-out prompts, and was given up
            self.problem = f"nothing is certified: {error}" if settings.criterion else ""
            return None
        for entry in self.entries:
            if entry.role != "teacher":
                self._look_for_worst(entry, self._first_runs, self._values(entry.schedule, self._first_runs))
        if settings.criterion is None:
            return None
        front = self.front_in_order()
        rule = settings.rule(len(self._first_runs))

        def measure(number: int, runs: range) -> list[bool]:
            values = self._measure(front[number], runs)
            on_progress("certificates", number + 1, len(front))
            return criterion.missed(values)

        first = self._first_runs.stop
        later = (end for end in (*range(BLOCK, rule.looks[-1], BLOCK), *rule.looks) if end > first)
        blocks = [range(a, b) for a, b in itertools.pairwise(sorted({0, first, *later}))]
        for entry, tested in zip(front, certify_in_order(len(front), measure, rule, blocks), strict=True):
            entry.tested = tested
            if tested and tested.certified:
                entry.schedule = entry.schedule.with_certificate(self._certificate(tested))
        recommended = recommended_name(self.entries)
        for entry in front:
            if entry.name == recommended and entry.schedule.certificate:
                self._record_monitor(entry)
        cost = {"new_runs": self.new_runs, "block_executions": round(self.block_executions)}
        return settings.model_dump() | {"criterion": criterion.text, "runs": rule.looks[-1]} | cost

    @cached_property
    def criterion(self) -> RunCriterion:
        """What every run is held to; without certificates what the worst run is chosen by."""
        return run_criterion(self.finished.config.certify.criterion or WORST_BY, self.held_out.objectives)

    @cached_property
    def prompts(self) -> list[str]:
        """The held-out prompts, and those of their file that the search did not use."""
        first, calibration = list(self.finished.held_out_prompts), set(self.finished.evaluator.prompts)
        rest = read_prompts(self.finished.config.prompts.held_out)[len(first) :]
        return first + [prompt for prompt in rest if prompt not in calibration]

    def front_in_order(self) -> list[Entry]:
        """The front by its drift on the calibration prompts, the least first: an order that no held-out run chose."""
        front = [entry for entry in self.entries if entry.role == "front"]
        return sorted(front, key=lambda entry: self._calibration_drift(entry.schedule))

    def _calibration_drift(self, schedule: Schedule) -> float:
        """The mean drift on calibration prompts, which the memo has of every schedule that ran on all of them."""
        evaluator = self.finished.evaluator
        if DRIFT not in evaluator.scorer.remembered(schedule):
            evaluator.latents(schedule)
        return float(np.mean(evaluator.scorer.remembered(schedule)[DRIFT]))

    @property
    def _first_runs(self) -> range:
        return range(len(self.held_out.prompts))

    def _measure(self, entry: Entry, runs: range) -> list[float]:
        """The values of these runs, which are made where they are new; the worst run is updated."""
        if runs == self._first_runs:
            return self._values(entry.schedule, runs)
        schedules = [entry.schedule]
        if runs not in self.evaluators:
            self.evaluators[runs] = self._new_evaluator(runs)
            schedules += [self._teacher] if self.criterion.is_drop else []
        evaluator = self.evaluators[runs]
        before = evaluator.block_executions
        evaluator.evaluate([Job(schedule) for schedule in schedules])
        self.new_runs += len(runs) * len(schedules)
        self.block_executions += evaluator.block_executions - before
        values = self._values(entry.schedule, runs)
        self._look_for_worst(entry, runs, values)
        return values

    def _values(self, schedule: Schedule, runs: range) -> list[float]:
        """The values of a schedule that was run; not a number where it could not be scored."""
        evaluator = self.evaluators.get(runs, self.held_out)

        def measured(which: Schedule) -> Sequence[float]:
            missing = [float("nan")] * len(evaluator.prompts)
            return evaluator.values(which).get(self.criterion.objective, missing)

        teacher = measured(self._teacher) if self.criterion.is_drop else None
        return self.criterion.values(measured(schedule), teacher)

    def _new_evaluator(self, runs: range) -> Evaluator:
        config, held_out = self.finished.config, self.held_out
        prompts = [self.prompts[number % len(self.prompts)] for number in runs]
        seeds = [HELD_OUT_SEED + config.prompts.seed + number for number in runs]
        objectives = {self.criterion.objective: self.criterion.quality}
        evaluator = Evaluator(
            held_out.model, prompts, seeds, objectives, held_out.costs, held_out.memo, config.prompts.batch,
            held_out.runner, held_out.guard,
        )  # fmt: skip
        self.new_runs += len(runs)
        self.block_executions += evaluator.block_executions
        return evaluator

    def _look_for_worst(self, entry: Entry, runs: range, values: Sequence[float]) -> None:
        """Remember the worst of these runs with its pictures, if it is worse than the worst so far."""
        badness = [self.criterion.badness(value) if np.isfinite(value) else -np.inf for value in values]
        index = int(np.argmax(badness))
        if not np.isfinite(badness[index]):
            return
        if entry.worst and badness[index] <= self.criterion.badness(entry.worst.value):
            return
        evaluator = self.evaluators.get(runs, self.held_out)
        latents = evaluator.latents(entry.schedule)[index : index + 1]
        prompt, seed = evaluator.prompts[index], evaluator.seeds[index]
        image = evaluator.model.decode(latents, [prompt], [seed]).cpu()
        pair = torch.cat([evaluator.scorer.teacher_images[index : index + 1].cpu(), image])
        entry.worst = WorstRun(self.criterion.limit.name, values[index], prompt, seed, as_pictures(pair))

    def _certificate(self, tested: MissCount, monitor: Mapping[str, Any] | None = None) -> dict[str, Any]:
        prompts = [self.prompts[number % len(self.prompts)] for number in range(tested.runs)]
        settings, model = self.finished.config.certify, self.held_out.model
        return certificate_part(self.criterion.text, settings, tested, prompts, model, monitor=monitor)

    def _record_monitor(self, entry: Entry) -> None:
        """Run a certified schedule once more on runs that met the criterion, and record how its outputs change."""
        assert entry.tested is not None
        schedule, model = entry.schedule, self.held_out.model
        evaluators = {self._first_runs: self.held_out} | self.evaluators
        met: list[tuple[str, int]] = []
        for runs, evaluator in evaluators.items():
            if runs.stop <= max(entry.tested.runs, self._first_runs.stop):
                missed = self.criterion.missed(self._values(schedule, runs))
                pairs = zip(evaluator.prompts, evaluator.seeds, strict=True)
                met += [pair for pair, miss in zip(pairs, missed, strict=True) if not miss]
        met = met[:BLOCK]
        recorded, batch = RecordedRuns(), self.finished.config.prompts.batch
        for first in range(0, len(met), batch):
            prompts, seeds = zip(*met[first : first + batch], strict=True)
            recorded.sample(model, schedule, list(prompts), list(seeds))
        costs = self.held_out.costs
        self.block_executions += len(met) * costs.macs(schedule) / costs.block_macs
        part = recorded.monitor_part([False] * len(met), schedule.steps)
        entry.schedule = schedule.with_certificate(self._certificate(entry.tested, part))

    @cached_property
    def _teacher(self) -> Schedule:
        return to_schedule(self.finished.model, {})


def check_criterion(config: Config, objectives: Mapping[str, Objective]) -> None:
    """ValueError where the criterion of certificates is not about a value that held-out runs will have.

    `objectives` are those that the search names; drift, psnr and ssim are measured besides.
    """
    if config.certify.criterion is not None:
        run_criterion(config.certify.criterion, {**{kind.key: kind() for kind in measured_qualities()}, **objectives})
