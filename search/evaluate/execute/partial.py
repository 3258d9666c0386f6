"""Runs step by step that can branch: schedules that begin alike share their first steps.

Denoising is deterministic, so two schedules that do the same up to a step have the same latents, stored values and
solver memory there.
"""

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from search.evaluate.execute.prefix import StepKey, step_keys, values_needed
from search.evaluate.fit.solver import FittedSolver
from search.models.base import Model
from search.profile.costs import Costs
from search.schedule import Schedule


@dataclass(frozen=True)
class RunState:
    """The state of a run before a step; any number of runs can continue from it.

    Attributes:
        step: The number of the next step.
        latents: Latents before it, [B, C, h, w].
        snapshot: All other values that later steps can read: stored values of nodes, the solver's memory.
        prefix: The keys of the steps so far.
        macs: What these steps cost for one picture.
        rows: The rows of the solver's table that were fitted so far.
    """

    step: int
    latents: Tensor
    snapshot: Mapping[str, Any]
    prefix: StepKey
    macs: float
    rows: tuple[tuple[float, ...], ...] = ()


class PartialRun:
    """Runs of a model on one batch: `extend` returns the next state and does not change the given one.

    Args:
        model: The model that runs.
        conditions: What `model.encode` returned.
        noise: Initial noise [B, C, h, w].
        costs: Its cost tables.
        keep: How many of its latest values each node keeps (see `values_needed`); None keeps all.

    Attributes:
        steps: Steps that were executed so far.
        block_executions: Their cost, as `Accounting` counts it.
    """

    def __init__(
        self, model: Model, conditions: Any, noise: Tensor, costs: Costs, keep: Mapping[str, int] | None = None
    ) -> None:
        self.model, self.conditions, self.noise, self.costs = model, conditions, noise, costs
        self.keep = dict.fromkeys((n.name for n in model.target.tree), model.target.steps) if keep is None else keep
        self.steps, self.block_executions = 0, 0.0

    def begin(self) -> RunState:
        """The state before step 0."""
        return RunState(0, self.noise, {}, (), 0.0)

    def extend(self, state: RunState, schedule: Schedule) -> RunState:
        """Execute step `state.step` under a schedule; ValueError where the state is of another schedule."""
        if state.step >= (schedule.steps or 0):
            raise ValueError(f"the run is over: {state.step} steps are done, the schedule has {schedule.steps}")
        with closing(self.follow(state, schedule)) as states:
            following: RunState = next(states)
            return following

    @torch.no_grad()  # a `with` would last while the generator waits
    def follow(self, state: RunState, schedule: Schedule, solver: FittedSolver | None = None) -> Iterator[RunState]:
        """Execute the remaining steps, one by one; the schedule stays applied until the generator is closed.

        `solver` runs and is fitted in the place of the schedule's solver.
        """
        keys = step_keys(schedule, (solver.state, solver.outputs) if solver else None)
        if keys[: state.step] != state.prefix:
            step = next((i for i, (a, b) in enumerate(zip(keys, state.prefix, strict=False)) if a != b), len(keys))
            raise ValueError(f"the schedule cannot continue from this state: its step {step} is another one")
        if missing := [n for n, count in values_needed([schedule]).items() if count > self.keep.get(n, 0)]:
            raise ValueError(f"the schedule reads more values of {missing[0]!r} than are kept; give them in keep")
        macs = self.costs.macs_by_step(schedule)
        cost = state.macs
        rows = list(state.rows)
        if solver:
            solver.resume(rows)
        with self.model.apply(schedule, keep=self.keep, solver=solver) as handle:
            latents, scheduler = self.model.begin(self.conditions, self.noise), self.model.pipe.scheduler
            if state.step:
                handle.restore(state.snapshot)
                latents = state.latents
            for step in range(state.step, len(keys)):
                _, latents = self.model.advance(self.conditions, latents, scheduler.timesteps[step])
                self.steps += 1
                self.block_executions += macs[step] / self.costs.block_macs * len(self.noise)
                cost += macs[step]
                if solver:
                    rows.append((solver.state[step], *solver.outputs[step]))
                yield RunState(step + 1, latents, handle.snapshot(), keys[: step + 1], cost, tuple(rows))
