"""From candidates to scores: what is known is looked up, the rest is run with paired noise and raced."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from search.evaluate.execute.jobs import Batch, Executor, Job, Outcome
from search.evaluate.execute.runner import Runner
from search.evaluate.execute.shortage import is_out_of_memory
from search.evaluate.fit.solver import RIDGE, Fitter
from search.evaluate.guard import Guard, ObjectiveFailed, SafeCost, objective_identity
from search.evaluate.memo import Memo
from search.evaluate.racing import Race, Rival
from search.models.base import Model, to_schedule
from search.objectives.base import Cost, Objective, Quality
from search.objectives.drift import Drift
from search.profile.costs import Costs
from search.schedule import Schedule
from search.schedule.apply.scheduler import LinearSolver

GATE = "computed "  # in the memo: at each step, the share of pictures for which this group was computed
DRIFT = Drift.key  # known of every candidate, whatever the objectives are: what races go by
SLACK = 2.0  # of the drift, where something else is scored than drift


@dataclass(frozen=True)
class Scored:
    """What became of a candidate: the schedule that was run, its values, and the row [M] that an engine is told.

    A candidate that lost its race has no values; what is told is an estimate from the `prompts` that it was run on.
    Of one that could not be scored `failed` says why, and the worst is told.
    """

    schedule: Schedule
    values: Mapping[str, list[float]]
    told: list[float]
    prompts: int
    failed: str = ""


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
        guard: Guard | None = None,
    ) -> None:
        self.model, self.prompts, self.seeds = model, list(prompts), list(seeds)
        self.objectives, self.costs, self.memo = dict(objectives), costs, memo
        self.guard = guard or Guard()
        self.failed: dict[str, str] = {}  # why a schedule has no scores, by its digest
        self._names = {name: _name(name, objective) for name, objective in self.objectives.items()}
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
        self.halved: dict[str, int] = {}  # schedules for which memory was short, and the batch that fitted
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
        recalled: set[tuple[str, bool]] = set()
        for i, job in enumerate(jobs):
            key, known = (job.schedule.digest, job.fit), self.fitted(job)
            if known is not None and (scored := self._score(known)) is not None:
                found[i] = scored
                if key not in recalled:  # jobs that are alike run once, and count once
                    recalled.add(key)
                    self._recall(job, known)
            else:
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
        fresh = [not number and runs[key].schedule is runs[key].job.schedule for key in keys]  # not fitted before
        jobs = [Job(runs[key].schedule, runs[key].job.fit and new) for key, new in zip(keys, fresh, strict=True)]

        def take(i: int, outcome: Outcome) -> None:
            run = runs[keys[i]]
            if jobs[i].prior is not None:
                self._remember_fit(jobs[i], outcome.schedule)
            if outcome.batch:
                least = self.halved.get(outcome.schedule.digest, outcome.batch)
                self.halved[outcome.schedule.digest] = min(least, outcome.batch)
            self._charge(jobs[i] if number else run.job, number, outcome.decided)
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
        drift = self._drift(latents)
        shares = {GATE + name: values for name, values in _mean(run.decided).items()}
        self.memo.put(self.context, schedule.digest, {DRIFT: drift} | shares)
        if race and self.decodes and race.beaten(drift, self._prices(schedule)):
            return self._lost(schedule, drift, race)
        scored = self._score(schedule)
        assert scored is not None
        return scored

    # Scores

    def trial(self) -> dict[str, float]:
        """Call every quality twice on the teacher's own results: how far those are apart that should be equal.

        ValueError where an objective fails even there: before anything is spent.
        """
        images = self.teacher_images if self.decodes else None
        apart = {}
        for name, objective in self.objectives.items():
            if not np.isfinite(worst := objective.worst(self.costs)):
                raise ValueError(f"objective {name} has {worst} as its worst value; let worst() return a finite number")
            if not isinstance(objective, Quality):
                continue
            own = self.teacher if objective.of == "latents" or images is None else images
            try:
                differs = self.guard.differs(name, objective, own, self.prompts, "the teacher")
            except ObjectiveFailed as error:
                raise ValueError(f"{error}, on the teacher's own {objective.of}; no schedule can be scored") from None
            if differs is not None:
                apart[name] = differs
        return apart

    def add(self, others: Mapping[str, Objective]) -> None:
        """Score more objectives from here on."""
        self.objectives |= others
        self._names |= {name: _name(name, objective) for name, objective in others.items()}

    def usable(self, others: Mapping[str, Objective]) -> tuple[dict[str, Objective], dict[str, str]]:
        """Of more objectives those that have values for the teacher's own results, and why the others have none."""
        own, left = Guard(self.guard.seconds), {}
        for name, objective in others.items():
            try:
                if isinstance(objective, Quality):
                    teacher = self.teacher if objective.of == "latents" else self.teacher_images
                    own.quality(name, objective, teacher, teacher, self.prompts, "the teacher")
            except ObjectiveFailed as error:
                left[name] = str(error)
        return {name: objective for name, objective in others.items() if name not in left}, left

    def _score(self, schedule: Schedule) -> Scored | None:
        """All scores of a schedule, where its latents or its scores are known; None where it has to run."""
        if not np.isfinite(self.memo.get(self.context, schedule.digest).get(DRIFT, [])).all():
            self.failed[schedule.digest] = "its latents are not finite"
        if schedule.digest in self.failed:
            return self._worst(schedule)
        try:
            values = self._known(schedule)
        except ObjectiveFailed as error:
            self.failed[schedule.digest] = str(error)
            return self._worst(schedule)
        return None if values is None else self._scored(schedule, values)

    def _worst(self, schedule: Schedule) -> Scored:
        """Of a schedule that could not be scored: it dominates nothing."""
        told = [objective.minimised(objective.worst(self.costs)) for objective in self.objectives.values()]
        return Scored(schedule, {}, told, len(self.prompts), self.failed[schedule.digest])

    def _known(self, schedule: Schedule) -> dict[str, list[float]] | None:
        """All values of a schedule, those of pictures decoded where its latents are known; None where it has to run."""
        known = self.memo.get(self.context, schedule.digest)
        if schedule.gates and self._decided(schedule) is None:
            return None
        missing = [
            name for name, o in self.objectives.items() if isinstance(o, Quality) and self._names[name] not in known
        ]
        if missing:
            if (latents := self.memo.latents(self.context, schedule.digest)) is None:
                return None
            for name, found in self._measure(latents, missing, schedule.digest):
                known[self._names[name]] = found
                self.memo.put(self.context, schedule.digest, {self._names[name]: found})
        costs, values = self.costs_of(schedule), {}
        for name, objective in self.objectives.items():
            if isinstance(objective, Cost):
                values[name] = [self.guard.cost(name, objective, schedule, costs)]
            else:
                values[name] = known[self._names[name]]
        return values

    def _measure(self, latents: Tensor, names: Sequence[str], digest: str = "") -> Iterator[tuple[str, list[float]]]:
        """Per-prompt values by name; Failed where an objective has none."""
        images: Tensor | None = None
        for name in names:
            quality = self.objectives[name]
            assert isinstance(quality, Quality)
            if quality.of == "latents":
                run, teacher = latents, self.teacher
            else:
                images = self.decode(latents) if images is None else images
                run, teacher = images, self.teacher_images
            yield name, self.guard.quality(name, quality, run, teacher, self.prompts, digest)

    def _drift(self, latents: Tensor) -> list[float]:
        """Drift [p] of latents of the first prompts."""
        return [float(value) for value in Drift()(latents, self.teacher[: len(latents)])]

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
        drift = self._drift(torch.cat(run.parts))
        if run.schedule.gates or not race.beaten(drift, self._prices(run.schedule)):
            return None
        return self._lost(run.schedule, drift, race)

    def _lost(self, schedule: Schedule, drift: Sequence[float], race: Race) -> Scored:
        """Told are costs as they are, drift as it would be on all prompts, and of what was not scored the worst."""
        if not np.isfinite(drift).all():
            self.failed[schedule.digest] = "its latents are not finite"
            return self._worst(schedule)
        told = []
        for name, objective in self.objectives.items():
            if isinstance(objective, Cost):
                value = SafeCost(name, objective, self.guard)(schedule, self.costs)
            elif isinstance(objective, Drift):
                value = race.whole(drift)
            else:
                value = objective.worst(self.costs)
            told.append(objective.minimised(value))
        return Scored(schedule, {}, told, len(drift))

    def _prices(self, schedule: Schedule) -> np.ndarray:
        costs, prices = self.costs_of(schedule), [(n, o) for n, o in self.objectives.items() if isinstance(o, Cost)]
        return np.array([o.minimised(SafeCost(name, o, self.guard)(schedule, costs)) for name, o in prices])

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
        for mark, macs in zip(job.marks(part), self.costs.macs_by_step(job.schedule), strict=True):
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
        try:
            return torch.cat([self.model.sample(conditions, noise).cpu() for conditions, noise in self.inputs])
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            size = len(self.batches[0])
            lower = f"prompts.batch={size // 2}" if size > 1 else "a smaller model.height and model.width"
            raise ValueError(f"there is no memory for {size} pictures at once; type {lower}") from None

    def _pipeline(self) -> list[str]:
        """Digests of the teacher's latents and of a picture: any other weights, prompts or noise give others."""
        made = self.teacher, self.model.decode(self.teacher[:1]).cpu()
        return [hashlib.sha256(tensor.contiguous().flatten().view(torch.uint8).numpy()).hexdigest() for tensor in made]


def _name(name: str, objective: Objective) -> str:
    """Of an objective's values in the memo: with its arguments, which another search may give others."""
    given = objective_identity(objective)
    return f"{name} {json.dumps(given, sort_keys=True, default=str)}" if given else name


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
