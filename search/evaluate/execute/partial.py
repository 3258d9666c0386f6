"""Runs step by step that can branch: schedules that begin alike share their first steps.

Denoising is deterministic, so two schedules that do the same up to a step have the same latents, stored values and
solver memory there.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from search.evaluate.execute.prefix import StepKey, step_keys, values_needed
from search.evaluate.fit.solver import FittedSolver
from search.models.base import Model, rows_of
from search.models.watch import RunStep
from search.profile.costs import Costs
from search.schedule import Schedule


@dataclass(frozen=True)
class RunState:
    """The state of a run before a step; any number of runs can continue from it.

    Attributes:
        step: The number of the next step.
        latents: Latents before it [B, ...]; empty before step 0.
        snapshot: What the denoiser returned so far, and all values of nodes that later steps can read.
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
        prompts: B prompts.
        seeds: Of their noise.
        costs: Its cost tables.
        keep: How many of its latest values each node keeps (see `values_needed`); None keeps all.

    Attributes:
        steps: Steps that were executed so far.
        block_executions: Their cost, as `Accounting` counts it.
    """

    def __init__(
        self,
        model: Model,
        prompts: Sequence[str],
        seeds: Sequence[int],
        costs: Costs,
        keep: Mapping[str, int] | None = None,
    ) -> None:
        self.model, self.prompts, self.seeds, self.costs = model, prompts, seeds, costs
        self.keep = dict.fromkeys((n.name for n in model.target.tree), model.target.steps) if keep is None else keep
        self.steps, self.block_executions = 0, 0.0

    def begin(self) -> RunState:
        """The state before step 0."""
        return RunState(0, torch.empty(0), {}, (), 0.0)

    def extend(self, state: RunState, schedule: Schedule) -> RunState:
        """Execute step `state.step` under a schedule; ValueError where the state is of another schedule."""
        if state.step >= (schedule.steps or 0):
            raise ValueError(f"the run is over: {state.step} steps are done, the schedule has {schedule.steps}")
        return self.follow(state, schedule, until=state.step + 1)

    def follow(
        self,
        state: RunState,
        schedule: Schedule,
        solver: FittedSolver | None = None,
        on_state: Callable[[RunState], None] = lambda state: None,
        until: int | None = None,
    ) -> RunState:
        """Execute the remaining steps: the pipeline is called, and its denoiser answered up to the state's step.

        Args:
            state: Where the run goes on.
            schedule: What runs; its steps up to there are those of the state.
            solver: Runs and is fitted in the place of the schedule's solver.
            on_state: Called with the state after each step that was executed.
            until: The number of steps after which the run is left; None for all.

        Returns:
            The last state.

        Raises:
            ValueError: The state is of another schedule, or keeps fewer values than the schedule reads.
        """
        keys = step_keys(schedule, (solver.state, solver.outputs) if solver else None)
        if keys[: state.step] != state.prefix:
            step = next((i for i, (a, b) in enumerate(zip(keys, state.prefix, strict=False)) if a != b), len(keys))
            raise ValueError(f"the schedule cannot continue from this state: its step {step} is another one")
        if missing := [n for n, count in values_needed([schedule]).items() if count > self.keep.get(n, 0)]:
            raise ValueError(f"the schedule reads more values of {missing[0]!r} than are kept; give them in keep")
        macs = self.costs.macs_by_step(schedule)
        if solver:
            solver.resume(state.rows)
        last = state

        def advance(step: RunStep) -> None:
            nonlocal last
            if step.number < state.step:
                return
            at, count = step.number, len(self.seeds)
            self.steps += 1
            self.block_executions += macs[at] / self.costs.block_macs * count
            rows = (*last.rows, (solver.state[at], *solver.outputs[at])) if solver else ()
            latents, snapshot = rows_of(step.latents, count), handle.snapshot()
            last = RunState(at + 1, latents, snapshot, keys[: at + 1], last.macs + macs[at], rows)
            on_state(last)

        with self.model.apply(schedule, keep=self.keep, solver=solver) as handle:
            handle.continue_from(state.snapshot if state.step else None)
            self.model.sample(self.prompts, self.seeds, advance, until)
        return last
