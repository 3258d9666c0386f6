"""What executes schedules: on one device, every distinct beginning of a population's runs once."""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import Any

import torch
from torch import Tensor

from search.evaluate.execute.jobs import Batch, Done, Job, Outcome
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
    """Executes jobs on a model that is loaded, sharing beginnings depth first.

    `memory` holds the states that other jobs may go on from, those of earlier calls too. `steps` counts those that
    were executed so far, of all that were run singly.
    """

    def __init__(self, model: Model, costs: Costs, memory: StateCache | None = None) -> None:
        self.model, self.costs = model, costs
        self.memory = StateCache() if memory is None else memory
        self.executed, self.steps = 0.0, 0
        self.keep: dict[str, int] = {}
        self._known: dict[Batch, tuple[Any, Tensor]] = {}
        self._fitters: dict[Batch, Fitter] = {}

    def inputs(self, batch: Batch) -> tuple[Any, Tensor]:
        """Conditions and noise of a batch."""
        if batch not in self._known:
            self._known[batch] = self.model.encode(batch.prompts), self.model.noise(batch.seeds)
        return self._known[batch]

    def fitter(self, batch: Batch) -> Fitter:
        """What fits solvers on a batch; ValueError where the scheduler runs no tables."""
        if batch not in self._fitters:
            self._fitters[batch] = Fitter(self.model, *self.inputs(batch))
            self.executed += self.costs.teacher_macs / self.costs.block_macs * len(batch)
        return self._fitters[batch]

    def run(self, batch: Batch, jobs: Sequence[Job], done: Done) -> None:
        """Execute them all, see `Executor`."""
        for i, outcome in self.outcomes(batch, jobs):
            done(i, outcome)

    def outcomes(self, batch: Batch, jobs: Sequence[Job]) -> Iterator[tuple[int, Outcome]]:
        """All that can share beginnings in the order of the tree, then the others; each with its number."""
        yield from self._tree(batch, {i: job for i, job in enumerate(jobs) if not job.alone})
        for i, job in enumerate(jobs):
            if job.alone:
                yield i, self._affordable(batch, job, partial(self._whole, batch, job))

    def _tree(self, batch: Batch, jobs: Mapping[int, Job]) -> Iterator[tuple[int, Outcome]]:
        self._widen([job.schedule for job in jobs.values()])
        numbers = {i: job.prefix_ids(batch) for i, job in jobs.items()}
        times = Counter(number for own in numbers.values() for number in set(own))
        forks = {number for number, count in times.items() if count > 1}
        line: dict[int, RunState] = {}  # of the run before: what others go on from, whatever is dropped
        last: tuple[int, Outcome] | None = None
        for i in sorted(jobs, key=numbers.__getitem__):
            own = numbers[i]
            if last is None or last[0] != own[-1]:
                line = {number: line[number] for number in own if number in line}
                follow = partial(self._follow, batch, jobs[i], own, line, forks)
                last = own[-1], self._affordable(batch, jobs[i], follow, line)
            yield i, last[1]

    def _follow(
        self, batch: Batch, job: Job, numbers: Sequence[int], line: dict[int, RunState], forks: set[int]
    ) -> Outcome:
        """Run a job from its deepest known state on; its states that are forks are added to the line."""
        partial = PartialRun(self.model, *self.inputs(batch), self.costs, self.keep)
        state = partial.begin()
        for number in reversed(numbers[:-1]):
            if number in line or number in self.memory:
                state = line.get(number) or self.memory.get(number) or state
                break
        solver = self._solver(batch, job)
        with closing(partial.follow(state, job.schedule, solver)) as states:
            for state in states:
                number = numbers[state.step - 1]
                if number in forks:
                    line[number] = state
                if state.step < len(numbers):
                    self.memory.put(number, state)
        self.executed += partial.block_executions
        self.steps += partial.steps
        for number in reversed(numbers[:-1]):  # what begins more runs is dropped later
            if number in self.memory:
                self.memory.touch(number)
        schedule = job.schedule if solver is None else Fitter.fitted(job.schedule, solver)
        return Outcome(state.latents.cpu(), schedule)

    def _affordable(
        self, batch: Batch, job: Job, execute: Callable[[], Outcome], line: dict[int, RunState] | None = None
    ) -> Outcome:
        """What `execute` gives; where memory is short, without any states held, and then in halves.

        Halves give the latents of the whole up to rounding. A solver is fitted on the first half, and that table is
        run for the second. ValueError where there is no memory for one picture.
        """
        for _ in range(2):
            try:
                return execute()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                said = (str(error) or type(error).__name__).splitlines()[0][:200]
            if line is not None:
                line.clear()
            self.memory = StateCache(
                *self.memory.limits
            )  # outside of `except`, which would keep the tensors of its frames
            free_memory(self.model.device)
        if len(batch) == 1:
            raise ValueError(
                f"there is no memory for one picture under schedule {job.schedule.digest} ({said}); type "
                "compute.states=0, or a smaller model.height and model.width"
            )
        first, second = split_batch(batch)
        log.warning("memory is short for %d pictures under %s, run in halves", len(batch), job.schedule.digest)
        begun = self._alone(first, job)
        return join_outcomes([len(first), len(second)], [begun, self._alone(second, Job(begun.schedule))])

    def _alone(self, batch: Batch, job: Job) -> Outcome:
        return next(outcome for _, outcome in self.outcomes(batch, [job]))

    def _solver(self, batch: Batch, job: Job) -> FittedSolver | None:
        return None if job.prior is None else self.fitter(batch).solver(job.schedule)

    def _whole(self, batch: Batch, job: Job) -> Outcome:
        schedule, ended = job.schedule, None
        if job.prior is not None:
            schedule = self.fitter(batch).fit(job.schedule)
            ended = self.fitter(batch).latents.get(schedule.digest)
        decided: dict[str, list[float]] = {}
        if ended is None or schedule.gates:
            asked = any(not gate.is_static for gate in schedule.gates)
            with self.model.apply(schedule) as handle:
                parts = _singles(batch) if asked else [batch]  # in a batch all would wait for the slowest
                ended = torch.cat([self.model.sample(*self.inputs(part)).cpu() for part in parts])
            decided = {gate["group"]: gate["computed"] for gate in handle.stats()["gates"]}
        self.executed += self.costs.measured(decided).macs(schedule) / self.costs.block_macs * len(batch)
        return Outcome(ended, schedule, decided)

    def _widen(self, schedules: Sequence[Schedule]) -> None:
        """Keep as many values of each node as any schedule so far reads; states that have fewer are of no use."""
        wanted = values_needed(schedules)
        if any(count > self.keep.get(name, 0) for name, count in wanted.items()):
            self.keep = {name: max(wanted.get(name, 0), self.keep.get(name, 0)) for name in {*wanted, *self.keep}}
            self.memory = StateCache(*self.memory.limits)


def _singles(batch: Batch) -> list[Batch]:
    return [Batch((prompt,), (seed,)) for prompt, seed in zip(batch.prompts, batch.seeds, strict=True)]
