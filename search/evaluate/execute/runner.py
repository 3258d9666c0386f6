"""Executes schedules on one device, and the steps that runs of a population share only once."""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import torch

from search.evaluate.execute.jobs import Batch, Job, OnDone, Outcome
from search.evaluate.execute.partial import PartialRun, RunState
from search.evaluate.execute.prefix import values_needed
from search.evaluate.execute.shortage import free_memory, is_out_of_memory, join_outcomes, split_batch
from search.evaluate.execute.states import StateCache
from search.evaluate.fit.solver import FittedSolver, Fitter
from search.models.base import Model
from search.profile.costs import Costs
from search.schedule import Schedule

log = logging.getLogger("search")


class Runner:
    """Executes jobs on a loaded model; jobs that begin alike share their first steps, depth first.

    Args:
        model: The loaded model.
        costs: Its cost tables.
        memory: Holds the states that other jobs can continue from, also states of earlier calls.

    Attributes:
        executed: Block executions so far, including those that were repeated after a state was dropped.
        steps: Steps that were executed so far, without those of jobs that run alone.
    """

    def __init__(self, model: Model, costs: Costs, memory: StateCache | None = None) -> None:
        self.model, self.costs = model, costs
        self.memory = StateCache() if memory is None else memory
        self.executed, self.steps = 0.0, 0
        self.keep: dict[str, int] = {}
        self._fitters: dict[Batch, Fitter] = {}

    def fitter(self, batch: Batch) -> Fitter:
        """The fitter of solvers on a batch; ValueError where the scheduler does not run tables."""
        if batch not in self._fitters:
            self._fitters[batch] = Fitter(self.model, batch.prompts, batch.seeds)
            self.executed += self.costs.teacher_macs / self.costs.block_macs * len(batch)
        return self._fitters[batch]

    def run(self, batch: Batch, jobs: Sequence[Job], on_done: OnDone) -> None:
        """Execute all jobs, see `Executor`."""
        for i, outcome in self.outcomes(batch, jobs):
            on_done(i, outcome)

    def outcomes(self, batch: Batch, jobs: Sequence[Job]) -> Iterator[tuple[int, Outcome]]:
        """Execute the jobs that can share steps, in the order of their prefix tree, then the rest.

        Yields the number of each job and its outcome.
        """
        yield from self._tree(batch, {i: job for i, job in enumerate(jobs) if not job.alone})
        for i, job in enumerate(jobs):
            if job.alone:
                yield i, self._within_memory(batch, job, partial(self._run_alone, batch, job))

    def _tree(self, batch: Batch, jobs: Mapping[int, Job]) -> Iterator[tuple[int, Outcome]]:
        self._widen([job.schedule for job in jobs.values()])
        paths = {i: job.prefix_ids(batch) for i, job in jobs.items()}
        times = Counter(prefix for path in paths.values() for prefix in set(path))
        forks = {prefix for prefix, count in times.items() if count > 1}
        line: dict[int, RunState] = {}  # states of the run before that others continue from; never dropped
        last: tuple[int, Outcome] | None = None
        for i in sorted(jobs, key=paths.__getitem__):
            path = paths[i]
            if last is None or last[0] != path[-1]:
                line = {prefix: line[prefix] for prefix in path if prefix in line}
                follow = partial(self._follow, batch, jobs[i], path, line, forks)
                last = path[-1], self._within_memory(batch, jobs[i], follow, line)
            yield i, last[1]

    def _follow(
        self, batch: Batch, job: Job, path: Sequence[int], line: dict[int, RunState], forks: set[int]
    ) -> Outcome:
        """Run a job from its latest state that is held; its states that are forks are added to the line."""
        partial = PartialRun(self.model, batch.prompts, batch.seeds, self.costs, self.keep)
        state = partial.begin()
        for prefix in reversed(path[:-1]):
            if prefix in line or prefix in self.memory:
                state = line.get(prefix) or self.memory.get(prefix) or state
                break
        solver = self._solver(batch, job)

        def remember(state: RunState) -> None:
            prefix = path[state.step - 1]
            if prefix in forks:
                line[prefix] = state
            if state.step < len(path):
                self.memory.put(prefix, state)

        state = partial.follow(state, job.schedule, solver, remember)
        self.executed += partial.block_executions
        self.steps += partial.steps
        for prefix in reversed(path[:-1]):  # states that more runs continue from are dropped later
            if prefix in self.memory:
                self.memory.touch(prefix)
        schedule = job.schedule if solver is None else Fitter.fitted(job.schedule, solver)
        return Outcome(state.latents.cpu(), schedule)

    def _within_memory(
        self, batch: Batch, job: Job, execute: Callable[[], Outcome], line: dict[int, RunState] | None = None
    ) -> Outcome:
        """The outcome of `execute`; where memory is short it is repeated without any held states, then in halves.

        Latents of halves equal those of the whole batch up to rounding. A solver is fitted on the first half, and
        its table is run for the second. ValueError where there is no memory for one picture.
        """
        for _ in range(2):
            try:
                return execute()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                reason = (str(error) or type(error).__name__).splitlines()[0][:200]
            if line is not None:
                line.clear()
            self.memory = StateCache(
                *self.memory.limits
            )  # outside of `except`, which would keep the tensors of its frames
            free_memory(self.model.device)
        if len(batch) == 1:
            raise ValueError(
                f"there is no memory for one picture under schedule {job.schedule.digest} ({reason}); type "
                "compute.states=0, or a smaller model.height and model.width"
            )
        first, second = split_batch(batch)
        log.warning("memory is short for %d pictures under %s, run in halves", len(batch), job.schedule.digest)
        outcome = self._one(first, job)
        return join_outcomes([len(first), len(second)], [outcome, self._one(second, Job(outcome.schedule))])

    def _one(self, batch: Batch, job: Job) -> Outcome:
        return next(outcome for _, outcome in self.outcomes(batch, [job]))

    def _solver(self, batch: Batch, job: Job) -> FittedSolver | None:
        return None if job.prior is None else self.fitter(batch).solver(job.schedule)

    def _run_alone(self, batch: Batch, job: Job) -> Outcome:
        schedule, latents = job.schedule, None
        if job.prior is not None:
            schedule = self.fitter(batch).fit(job.schedule)
            latents = self.fitter(batch).latents.get(schedule.digest)
        decided: dict[str, list[float]] = {}
        if latents is None or schedule.gates:
            asked = any(not gate.is_static for gate in schedule.gates)
            with self.model.apply(schedule) as handle:
                parts = _singles(batch) if asked else [batch]  # in a batch all would compute what one of them needs
                latents = torch.cat([self.model.sample(part.prompts, part.seeds).cpu() for part in parts])
            decided = {gate["group"]: gate["computed"] for gate in handle.stats()["gates"]}
        self.executed += self.costs.measured(decided).macs(schedule) / self.costs.block_macs * len(batch)
        return Outcome(latents, schedule, decided)

    def _widen(self, schedules: Sequence[Schedule]) -> None:
        """Keep as many values of each node as any schedule so far reads; states with fewer are dropped."""
        needed = values_needed(schedules)
        if any(count > self.keep.get(name, 0) for name, count in needed.items()):
            self.keep = {name: max(needed.get(name, 0), self.keep.get(name, 0)) for name in {*needed, *self.keep}}
            self.memory = StateCache(*self.memory.limits)


def _singles(batch: Batch) -> list[Batch]:
    return [Batch((prompt,), (seed,)) for prompt, seed in zip(batch.prompts, batch.seeds, strict=True)]
