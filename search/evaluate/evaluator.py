"""From candidates to scores: results in the memo are looked up, all others are run with paired noise and raced."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from search.evaluate.accounting import Accounting
from search.evaluate.execute.jobs import Batch, Executor, Job, Outcome, mean_shares
from search.evaluate.execute.runner import Runner
from search.evaluate.execute.shortage import is_out_of_memory
from search.evaluate.fit.remembered import FittedSchedules
from search.evaluate.fit.solver import Fitter
from search.evaluate.guard import Guard
from search.evaluate.memo import Memo
from search.evaluate.not_finite import step_not_finite
from search.evaluate.racing import Race, Rival
from search.evaluate.scoring import DRIFT, GATE, NOT_FINITE, Scored, Scorer
from search.models.base import Model, to_schedule
from search.objectives.base import Objective, Quality
from search.objectives.drift import Drift
from search.profile.costs import Costs
from search.schedule import Schedule

SLACK = 2.0  # a rival has to have so many times less drift, where something else is scored than drift


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

    Args:
        model: The model that runs.
        prompts: The texts of the split [P].
        seeds: Seeds of the noise [P], one for each text.
        objectives: By name.
        costs: Cost tables of the model.
        memo: Remembers latents and values over searches.
        batch: How many pictures are denoised at once.
        runner: Runs jobs on one device or many; by default on the model's.
        guard: Calls the objectives; by default without limits.

    Attributes:
        accounting: The work of the candidates so far, see `Accounting`. `runner.executed` counts what was really
            executed: less where results were known, more where a beginning was run again.
        scorer: Scores results, see `Scorer`.
        runs: How many prompts were denoised to the end.
        halved: Schedules for which memory was short, and the batch that fitted into it.
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
        self.costs, self.memo = costs, memo
        self.guard = guard or Guard()
        self.accounting, self.runs = Accounting(costs), 0
        self.runner = runner or Runner(model, costs)
        self.local = self.runner if isinstance(self.runner, Runner) else Runner(model, costs)
        self.batches = [
            Batch(tuple(self.prompts[i : i + batch]), tuple(self.seeds[i : i + batch]))
            for i in range(0, len(self.prompts), batch)
        ]
        self.inputs = [(part.prompts, part.seeds) for part in self.batches]
        self.halved: dict[str, int] = {}
        self._step_not_finite = partial(step_not_finite, model, self.prompts, self.seeds)
        self.teacher = self._sample()
        self.accounting.add_macs(costs.teacher_macs * len(self.prompts))
        self.runs += len(self.prompts)
        state = [model.name, model.target.model, dict(model.target.sampler), self.prompts, self.seeds, batch]
        state += [dict(model.arguments), str(model.device), torch.__version__, self._pipeline()]
        self.context = hashlib.sha256(json.dumps(state, sort_keys=True, default=str).encode()).hexdigest()
        self.fitted = FittedSchedules(memo, self.context)
        self.scorer = Scorer(
            model, objectives, costs, memo, self.guard, self.prompts, self.seeds, self.teacher, self.context
        )

    @property
    def objectives(self) -> dict[str, Objective]:
        """What is scored, by name."""
        return self.scorer.objectives

    @property
    def block_executions(self) -> float:
        """The work of the candidates so far, with every distinct beginning of a run counted once."""
        return self.accounting.block_executions

    @property
    def unshared(self) -> float:
        """The work of the candidates so far if no run shared its beginning with another one."""
        return self.accounting.unshared

    def run_teacher(self) -> Tensor:
        """Final latents of the bare pipeline on the first batch, run again: for measurements on the way."""
        return self.model.sample(*self.inputs[0])

    def latents(self, schedule: Schedule) -> Tensor:
        """Final latents [P, C, h, w] under a schedule; what its gates decided is remembered."""
        if (latents := self.scorer.remembered_latents(schedule)) is not None:
            self._count_again(Job(schedule), schedule)
            return latents
        return self._run_alone(schedule)

    def values(self, schedule: Schedule) -> dict[str, list[float]]:
        """Per-prompt values of every objective; costs have one value. Remembered values are not measured again."""
        return dict(self.evaluate([Job(schedule)])[0].values)

    def evaluate(
        self, jobs: Sequence[Job], rivals: Sequence[Schedule] = (), on_done: Callable[[int], None] = lambda count: None
    ) -> list[Scored]:
        """Results of a population: remembered ones are not run again, and runs share the steps they begin with.

        Args:
            jobs: The candidates.
            rivals: Schedules that were evaluated before. A candidate that is surely worse than one of them is not
                run on further prompts.
            on_done: Called with the number of candidates that are finished.

        Returns:
            One result for each job, in their order.
        """
        results: dict[int, Scored] = {}
        runs: dict[tuple[str, bool], _Run] = {}
        same: dict[tuple[str, bool], list[int]] = {}
        counted_again: set[tuple[str, bool]] = set()
        for i, job in enumerate(jobs):
            key, final = (job.schedule.digest, job.fit), self.fitted.final_schedule(job)
            if final is not None and (scored := self.scorer.score(final)) is not None:
                results[i] = scored
                if key not in counted_again:  # jobs that are alike run once, and count once
                    counted_again.add(key)
                    self._count_again(job, final)
            else:
                runs.setdefault(key, _Run(job, final or job.schedule))
                same.setdefault(key, []).append(i)
        on_done(len(results))

        def finish(key: tuple[str, bool], scored: Scored) -> None:
            results.update(dict.fromkeys(same[key], scored))
            runs.pop(key)
            on_done(len(results))

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
        return [results[i] for i in range(len(jobs))]

    def fit(self, schedule: Schedule) -> Schedule:
        """The schedule with its solver fitted on the first batch; itself where there is nothing to fit."""
        job = Job(schedule, fit=True)
        if (final := self.fitted.final_schedule(job)) is None:
            outcomes: list[Outcome] = []
            self.runner.run(self.batches[0], [job], lambda _, outcome: outcomes.append(outcome))
            final = outcomes[0].schedule
            self.fitted.remember(job, final)
        return final

    def why_no_solver_fit(self) -> str:
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
        if (decided := self.scorer.decided(schedule)) is None:
            self._run_alone(schedule)
            decided = self.scorer.decided(schedule)
        return self.costs.measured(decided or {})

    # Running

    def _run(
        self,
        number: int,
        runs: Mapping[tuple[str, bool], _Run],
        finish: Callable[[tuple[str, bool], Scored], None] | None,
        race: Race | None,
    ) -> None:
        """Run one batch of all candidates that are left; with `finish`, score each as soon as it is through."""
        keys = list(runs)
        fresh = [not number and runs[key].schedule is runs[key].job.schedule for key in keys]  # not fitted before
        jobs = [Job(runs[key].schedule, runs[key].job.fit and new) for key, new in zip(keys, fresh, strict=True)]

        def take(i: int, outcome: Outcome) -> None:
            run = runs[keys[i]]
            if jobs[i].prior is not None:
                self.fitted.remember(jobs[i], outcome.schedule)
            if outcome.batch:
                least = self.halved.get(outcome.schedule.digest, outcome.batch)
                self.halved[outcome.schedule.digest] = min(least, outcome.batch)
            self.accounting.add_job(jobs[i] if number else run.job, self.batches[number], outcome.decided)
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
        self.memo.put_latents(self.context, schedule.digest, latents)
        drift = self.scorer.drift(latents)
        more = {} if np.isfinite(drift).all() else {NOT_FINITE: [self._step_not_finite(schedule, drift)] * len(drift)}
        shares = {GATE + name: values for name, values in mean_shares(run.decided).items()}
        self.memo.put(self.context, schedule.digest, {DRIFT: drift} | shares | more)
        if not more and race and self.scorer.decodes and race.beaten(drift, self._prices(schedule)):
            return self.scorer.estimate(schedule, drift, race.expected(drift))
        scored = self.scorer.score(schedule)
        assert scored is not None
        return scored

    def _race(self, rivals: Sequence[Schedule]) -> Race:
        drifts = [(rival, self.scorer.remembered(rival).get(DRIFT)) for rival in rivals]
        known = [Rival(np.array(values), self._prices(rival)) for rival, values in drifts if values]
        over = [o.over for o in self.objectives.values() if isinstance(o, Drift)] or ["mean"]
        follows = all(isinstance(o, Drift) for o in self.objectives.values() if isinstance(o, Quality))
        return Race(known, slack=1.0 if follows else SLACK, over=over[0])

    def _beaten(self, run: _Run, race: Race) -> Scored | None:
        drift = self.scorer.drift(torch.cat(run.parts))
        if not np.isfinite(drift).all():
            return self.scorer.not_finite(run.schedule, self._step_not_finite(run.schedule, drift))
        if run.schedule.gates or not race.beaten(drift, self._prices(run.schedule)):
            return None
        return self.scorer.estimate(run.schedule, drift, race.expected(drift))

    def _prices(self, schedule: Schedule) -> np.ndarray:
        return self.scorer.prices(schedule, self.costs_of(schedule))

    def _count_again(self, job: Job, final: Schedule) -> None:
        """Count a job whose result is remembered as if it had been run: a resumed search counts the same."""
        decided = self.scorer.decided(final) or {}
        for number, batch in enumerate(self.batches):
            self.accounting.add_job(job if number == 0 else Job(final), batch, decided)

    def _sample(self) -> Tensor:
        try:
            return torch.cat([self.model.sample(prompts, seeds).cpu() for prompts, seeds in self.inputs])
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            size = len(self.batches[0])
            lower = f"prompts.batch={size // 2}" if size > 1 else "a smaller model.height and model.width"
            raise ValueError(f"there is no memory for {size} pictures at once; type {lower}") from None

    def _pipeline(self) -> list[str]:
        """Digests of the teacher's latents and of a picture: any other weights, prompts or noise give others."""
        results = self.teacher, self.model.decode(self.teacher[:1], self.prompts[:1], self.seeds[:1]).cpu()
        return [hashlib.sha256(each.contiguous().flatten().view(torch.uint8).numpy()).hexdigest() for each in results]
