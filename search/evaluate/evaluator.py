"""From candidates to scores: what is known is looked up, the rest is run with paired noise and raced."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from search.calibration import Costs
from search.evaluate.fit import RIDGE, Fitter
from search.evaluate.memo import Memo
from search.evaluate.racing import Race, Rival
from search.evaluate.runner import Batch, Executor, Job, Outcome, Runner
from search.evaluate.steps import step_macs
from search.models.base import Model
from search.objectives.base import Cost, Objective, Quality
from search.objectives.drift import Drift
from search.schedule import Schedule
from search.schedule.sampler import LinearSolver

GATE = "computed "  # in the memo: at each step, the share of pictures for which this group was computed
DRIFT = Drift.key  # known of every candidate, whatever the objectives are: what races go by
SLACK = 2.0  # of the drift, where something else is scored than drift


@dataclass(frozen=True)
class Scored:
    """What became of a candidate: the schedule that was run, its values, and the row [M] that an engine is told.

    A candidate that lost its race has no values; what is told is an estimate from the `prompts` that it was run on.
    """

    schedule: Schedule
    values: Mapping[str, list[float]]
    told: list[float]
    prompts: int


@dataclass
class _Run:
    """A candidate on its way through the batches."""

    job: Job
    schedule: Schedule
    parts: list[Tensor] = field(default_factory=list)  # latents of each batch so far
    decided: list[tuple[int, Mapping[str, list[float]]]] = field(default_factory=list)


class Evaluator:
    """One split: fixed prompts and seeds, the teacher's results for them, and the memo of all candidates.

    Every candidate starts from the same noise as the teacher, so differences between schedules are paired.
    `block_executions` counts the work of the candidates so far, every distinct beginning of their runs once, in MACs of
    one block (both CFG halves) per picture; `unshared` what it would be without that. `runner.executed` counts what was
    really executed: less where results were known, more where a beginning was run again.
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
        runner: Executor | None = None,
    ) -> None:
        self.model, self.prompts, self.seeds = model, list(prompts), list(seeds)
        self.objectives, self.costs, self.memo = dict(objectives), costs, memo
        self.block_executions = self.unshared = 0.0
        self.runs = 0
        self.runner = runner or Runner(model, costs)
        self.local = self.runner if isinstance(self.runner, Runner) else Runner(model, costs)
        self.batches = [
            Batch(tuple(self.prompts[i : i + batch]), tuple(self.seeds[i : i + batch]))
            for i in range(0, len(self.prompts), batch)
        ]
        self.inputs = [self.local.inputs(part) for part in self.batches]
        self.counted: set[int] = set()  # beginnings of runs that `block_executions` has
        self.teacher = self._sample()
        self._count(costs.teacher_macs * len(self.prompts))
        self.runs += len(self.prompts)
        self._teacher_images: Tensor | None = None
        state = [model.name, model.target.model, dict(model.target.sampler), self.prompts, self.seeds, batch]
        state += [dict(model.arguments), str(model.device), torch.__version__, self._pipeline()]
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
        if (known := self.memo.latents(self.context, schedule.digest)) is not None:
            self._recall(Job(schedule), schedule)
            return known
        return self._run_alone(schedule)

    def values(self, schedule: Schedule) -> dict[str, list[float]]:
        """Per-prompt values of every objective; costs have one value. Known values are not measured again."""
        return dict(self.evaluate([Job(schedule)])[0].values)

    def evaluate(
        self, jobs: Sequence[Job], rivals: Sequence[Schedule] = (), done: Callable[[int], None] = lambda count: None
    ) -> list[Scored]:
        """A population: results in its order, whatever is known not run again, runs sharing what they begin with alike.

        Against the `rivals`, which were evaluated before, candidates race: those surely behind are left where they are.
        `done` is told how many candidates are over.
        """
        found: dict[int, Scored] = {}
        runs: dict[tuple[str, bool], _Run] = {}
        same: dict[tuple[str, bool], list[int]] = {}
        for i, job in enumerate(jobs):
            known = self.fitted(job)
            if known is not None and (values := self._known(known)) is not None:
                found[i] = self._scored(known, values)
                self._recall(job, known)
            else:
                key = job.schedule.digest, job.fit
                runs.setdefault(key, _Run(job, known or job.schedule))
                same.setdefault(key, []).append(i)
        done(len(found))

        def finish(key: tuple[str, bool], scored: Scored) -> None:
            found.update(dict.fromkeys(same[key], scored))
            runs.pop(key)
            done(len(found))

        race = self._race(rivals) if rivals else None
        first = 0
        while runs:
            last = min(max(2 * first, 1), len(self.batches))  # of batches: 1, 2, 4, ...
            for number in range(first, last):
                self._run(number, runs, finish if number + 1 == len(self.batches) else None, race)
            if last == len(self.batches):
                break
            for key, run in list(runs.items()):
                if race and (scored := self._beaten(run, race)):
                    finish(key, scored)
            first = last
        return [found[i] for i in range(len(jobs))]

    def fitted(self, job: Job) -> Schedule | None:
        """The schedule that a job runs in the end, if that is known: the job's own, or the one that was fitted."""
        if job.prior is None:
            return job.schedule
        kept = self.memo.get(self._fits, job.schedule.digest)
        if not kept:
            return None
        return Fitter.fitted(job.schedule, LinearSolver(kept["state"], _triangle(kept["outputs"])))

    def fit(self, schedule: Schedule) -> Schedule:
        """The schedule with its solver fitted on the first batch; itself where there is nothing to fit."""
        job = Job(schedule, fit=True)
        if (known := self.fitted(job)) is None:
            outcomes: list[Outcome] = []
            self.runner.run(self.batches[0], [job], lambda _, outcome: outcomes.append(outcome))
            known = outcomes[0].schedule
            self._remember_fit(job, known)
        return known

    def fits(self) -> str:
        """Why solvers cannot be fitted here; empty where they can."""
        try:
            self.local.fitter(self.batches[0])
            Fitter.prior(to_schedule(self.model, {}))
        except ValueError as error:
            return str(error)
        return ""

    def costs_of(self, schedule: Schedule) -> Costs:
        """The cost tables, with what the gates of this schedule decided on these prompts."""
        if not schedule.gates:
            return self.costs
        if (decided := self._decided(schedule)) is None:
            self._run_alone(schedule)
            decided = self._decided(schedule)
        return self.costs.measured(decided or {})

    def minimised(self, values: Mapping[str, list[float]]) -> list[float]:
        """The row [M] that an engine is told: means over prompts, all to be minimised."""
        return [o.minimised(sum(values[n]) / len(values[n])) for n, o in self.objectives.items()]

    # Running

    def _run(
        self, number: int, runs: Mapping[tuple[str, bool], _Run], finish: Callable | None, race: Race | None
    ) -> None:
        """One batch of all that are still running; a candidate whose last batch it is is scored at once."""
        keys = list(runs)
        jobs = [Job(runs[key].schedule, runs[key].job.fit and not number) for key in keys]

        def take(i: int, outcome: Outcome) -> None:
            run = runs[keys[i]]
            if jobs[i].prior is not None:
                self._remember_fit(jobs[i], outcome.schedule)
            self._charge(jobs[i], number, outcome.decided)
            run.schedule = outcome.schedule
            run.parts.append(outcome.latents)
            run.decided.append((len(self.batches[number]), outcome.decided))
            if finish:
                finish(keys[i], self._complete(run, race))

        self.runner.run(self.batches[number], jobs, take)

    def _run_alone(self, schedule: Schedule) -> Tensor:
        run = _Run(Job(schedule), schedule)
        for number in range(len(self.batches)):
            self._run(number, {("", False): run}, None, None)
        self._complete(run, None)
        return torch.cat(run.parts)

    def _complete(self, run: _Run, race: Race | None) -> Scored:
        """Score a candidate that ran on all prompts, and remember it."""
        schedule, latents = run.schedule, torch.cat(run.parts)
        self.runs += len(self.prompts)
        self.memo.keep(self.context, schedule.digest, latents)
        drift = self._measure(latents, [DRIFT])
        shares = {GATE + name: values for name, values in _mean(run.decided).items()}
        self.memo.put(self.context, schedule.digest, drift | shares)
        if race and self.decodes and race.beaten(drift[DRIFT], self._prices(schedule)):
            return self._lost(schedule, drift[DRIFT], race)
        values = self._known(schedule)
        assert values is not None
        return self._scored(schedule, values)

    # Scores

    def _known(self, schedule: Schedule) -> dict[str, list[float]] | None:
        """All values of a schedule, those of pictures decoded where its latents are known; None where it has to run."""
        known = self.memo.get(self.context, schedule.digest)
        if schedule.gates and self._decided(schedule) is None:
            return None
        missing = [
            name for name, o in self.objectives.items() if isinstance(o, Quality) and self._name(name) not in known
        ]
        if missing:
            if (latents := self.memo.latents(self.context, schedule.digest)) is None:
                return None
            found = {self._name(name): values for name, values in self._measure(latents, missing).items()}
            self.memo.put(self.context, schedule.digest, found)
            known |= found
        costs, values = self.costs_of(schedule), {}
        for name, objective in self.objectives.items():
            if isinstance(objective, Cost):
                values[name] = [objective(schedule, costs)]
            else:
                values[name] = known[self._name(name)]
        return values

    def _name(self, objective: str) -> str:
        """Of an objective's values in the memo: with its arguments, which another search may give others."""
        given = {k: v for k, v in vars(self.objectives[objective]).items() if not k.startswith("_")}
        return f"{objective} {json.dumps(given, sort_keys=True, default=str)}" if given else objective

    def _measure(self, latents: Tensor, names: Sequence[str]) -> dict[str, list[float]]:
        images: Tensor | None = None
        found: dict[str, list[float]] = {}
        for name in names:
            quality = self.objectives.get(name, Drift())
            assert isinstance(quality, Quality)
            if quality.of == "latents":
                values = quality(latents, self.teacher[: len(latents)])
            else:
                images = self.decode(latents) if images is None else images
                values = quality(images, self.teacher_images[: len(images)])
            found[name] = [float(v) for v in values]
        return found

    def _scored(self, schedule: Schedule, values: Mapping[str, list[float]]) -> Scored:
        return Scored(schedule, values, self.minimised(values), len(self.prompts))

    def _decided(self, schedule: Schedule) -> dict[str, list[float]] | None:
        """For what share of the prompts each group was computed at each step; None where it was not run here."""
        known = self.memo.get(self.context, schedule.digest)
        found = {gate.name: known[GATE + gate.name] for gate in schedule.gates if GATE + gate.name in known}
        return found if len(found) == len(schedule.gates) else None

    # Races

    @property
    def decodes(self) -> bool:
        """Whether a score needs pictures."""
        return any(isinstance(o, Quality) and o.of == "images" for o in self.objectives.values())

    def _race(self, rivals: Sequence[Schedule]) -> Race:
        known = [(rival, self.memo.get(self.context, rival.digest).get(DRIFT)) for rival in rivals]
        qualities = [o for o in self.objectives.values() if isinstance(o, Quality)]
        slack = 1.0 if all(isinstance(o, Drift) for o in qualities) else SLACK
        return Race([Rival(np.array(d), self._prices(rival)) for rival, d in known if d], slack=slack)

    def _beaten(self, run: _Run, race: Race) -> Scored | None:
        latents = torch.cat(run.parts)
        drift = self._measure(latents, [DRIFT])[DRIFT]
        if run.schedule.gates or not race.beaten(drift, self._prices(run.schedule)):
            return None
        return self._lost(run.schedule, drift, race)

    def _lost(self, schedule: Schedule, drift: Sequence[float], race: Race) -> Scored:
        """Told are costs as they are, drift as it would be on all prompts, and of what was not scored the worst."""
        told = []
        for objective in self.objectives.values():
            if isinstance(objective, Cost):
                value = objective(schedule, self.costs)
            elif isinstance(objective, Drift):
                value = race.whole(drift)
            else:
                value = objective.worst(self.costs)
            told.append(objective.minimised(value))
        return Scored(schedule, {}, told, len(drift))

    def _prices(self, schedule: Schedule) -> np.ndarray:
        costs, objectives = self.costs_of(schedule), self.objectives.values()
        return np.array([o.minimised(o(schedule, costs)) for o in objectives if isinstance(o, Cost)])

    # Counting

    def _recall(self, job: Job, known: Schedule) -> None:
        """Count a job whose result is known as if it had been run: a resumed search counts the same."""
        for number in range(len(self.batches)):
            self._charge(job if number == 0 else Job(known), number, self._decided(known))

    def _charge(self, job: Job, number: int, decided: Mapping[str, list[float]] | None = None) -> None:
        """Count a job on one batch: of its run what no other one had begun with."""
        part = self.batches[number]
        if job.alone:
            self._count(self.costs.measured(decided or {}).macs(job.schedule) * len(part))
            return
        for mark, macs in zip(job.marks(part), step_macs(self.costs, job.schedule), strict=True):
            blocks = macs / self.costs.block_macs * len(part)
            self.unshared += blocks
            if mark not in self.counted:
                self.counted.add(mark)
                self.block_executions += blocks

    def _count(self, macs: float) -> None:
        self.block_executions += macs / self.costs.block_macs
        self.unshared += macs / self.costs.block_macs

    # What a split is made of

    @cached_property
    def _fits(self) -> str:
        """The memo's context of fitted tables."""
        return f"fit {RIDGE} {self.context}"

    def _remember_fit(self, job: Job, fitted: Schedule) -> None:
        table = (fitted.sampler or {})["coefficients"]
        flat = [value for row in table["outputs"] for value in row]
        self.memo.put(self._fits, job.schedule.digest, {"state": table["state"], "outputs": flat})

    def _sample(self) -> Tensor:
        return torch.cat([self.model.sample(conditions, noise).cpu() for conditions, noise in self.inputs])

    def _pipeline(self) -> list[str]:
        """Digests of the teacher's latents and of a picture: any other weights, prompts or noise give others."""
        made = self.teacher, self.model.decode(self.teacher[:1]).cpu()
        return [hashlib.sha256(tensor.contiguous().flatten().view(torch.uint8).numpy()).hexdigest() for tensor in made]


def to_schedule(model: Model, parts: Mapping[str, Any]) -> Schedule:
    """The complete schedule for parts that a space decoded; all off is the teacher itself."""
    return Schedule.from_dict(model.target.schedule(parts))


def _mean(decided: Sequence[tuple[int, Mapping[str, list[float]]]]) -> dict[str, list[float]]:
    """Shares [T] of each group over batches of so many pictures each."""
    total = sum(count for count, _ in decided)
    names = decided[0][1] if decided else {}
    return {
        name: [
            sum(count * share for (count, _), share in zip(decided, shares, strict=True)) / total
            for shares in zip(*(part[name] for _, part in decided), strict=True)
        ]
        for name in names
    }


def _triangle(flat: Sequence[float]) -> list[list[float]]:
    """Rows of 1, 2, 3, ... values."""
    rows: list[list[float]] = []
    left = list(flat)
    while left:
        size = len(rows) + 1
        rows.append(left[:size])
        left = left[size:]
    return rows
