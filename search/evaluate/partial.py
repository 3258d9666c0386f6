"""Runs taken step by step, that branch: schedules that begin alike share what they have in common.

Denoising is deterministic, so two schedules that do the same up to a step have the same latents, stored values and
solver memory there (a prefix tree; schedules are its paths).
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from search.calibration import Costs
from search.models.base import Model
from search.schedule import Schedule
from search.schedule.nodes import ROOT
from search.schedule.plan import OFF, OWN, history


@dataclass(frozen=True)
class State:
    """Where a run is before `step`: latents [B, C, h, w] and all that later steps may read.

    `prefix` is what was done so far, a key per step; `macs` what that cost, for one picture. Any number of runs
    may go on from it.
    """

    step: int
    latents: Tensor
    snapshot: Mapping[str, Any]
    prefix: tuple
    macs: float


class Partial:
    """Runs of a model on one batch: `extend` makes a state into the next one, and leaves it as it is.

    `keep` is how many of its latest values each node keeps (see `needs`); without it every node keeps all.
    `steps` and `block_executions` count the work so far, the latter as `Evaluator` does.
    """

    def __init__(
        self, model: Model, conditions: Any, noise: Tensor, costs: Costs, keep: Mapping[str, int] | None = None
    ) -> None:
        self.model, self.conditions, self.noise, self.costs = model, conditions, noise, costs
        self.keep = dict.fromkeys((n.name for n in model.target.tree), model.target.steps) if keep is None else keep
        self.steps, self.block_executions = 0, 0.0

    def begin(self) -> State:
        """The state before step 0."""
        return State(0, self.noise, {}, (), 0.0)

    def extend(self, state: State, schedule: Schedule) -> State:
        """Execute step `state.step` under a schedule; ValueError where it has done otherwise up to there."""
        if state.step >= (schedule.steps or 0):
            raise ValueError(f"the run is over: {state.step} steps are done, the schedule has {schedule.steps}")
        with closing(self.follow(state, schedule)) as states:
            return next(states)

    @torch.no_grad()
    def follow(self, state: State, schedule: Schedule) -> Iterator[State]:
        """Execute the steps that are left, one by one; the pipeline is the schedule's until this is closed."""
        keys = path(schedule)
        if keys[: state.step] != state.prefix:
            step = next((i for i, (a, b) in enumerate(zip(keys, state.prefix, strict=False)) if a != b), len(keys))
            raise ValueError(f"the schedule does not go on from this state: at step {step} it does something else")
        if missing := [n for n, count in needs([schedule]).items() if count > self.keep.get(n, 0)]:
            raise ValueError(f"the schedule reads more values of {missing[0]!r} than are kept; give them in keep")
        macs = step_macs(self.costs, schedule)
        cost = state.macs
        with self.model.apply(schedule, keep=self.keep) as handle:
            latents, scheduler = self.model.begin(self.conditions, self.noise), self.model.pipe.scheduler
            if state.step:
                handle.restore(state.snapshot)
                latents = state.latents
            for step in range(state.step, len(keys)):
                _, latents = self.model.advance(self.conditions, latents, scheduler.timesteps[step])
                self.steps += 1
                self.block_executions += macs[step] / self.costs.block_macs * len(self.noise)
                cost += macs[step]
                yield State(step + 1, latents, handle.snapshot(), keys[: step + 1], cost)


@dataclass(frozen=True)
class Swept:
    """What a sweep measured, in the order of the schedules; steps executed, and without sharing."""

    results: list[Any]
    executed: int
    unshared: int


def sweep(
    partial: Partial, schedules: Sequence[Schedule], measure: Callable[[Tensor], Any] = lambda latents: latents
) -> Swept:
    """`measure` of the final latents of every schedule, each distinct beginning executed once.

    Depth-first: no more states are held than a run has steps.
    """
    numbers: dict[Any, int] = {}  # of what a step may do
    paths = [tuple(numbers.setdefault(key, len(numbers)) for key in path(schedule)) for schedule in schedules]
    results: list[Any] = [None] * len(schedules)
    states, began = [partial.begin()], partial.steps
    before: tuple[int, ...] = ()
    last = 0  # the schedule that was run before
    for i in sorted(range(len(paths)), key=paths.__getitem__):
        if paths[i] == before:
            results[i] = results[last]
            continue
        shared = next((k for k, (a, b) in enumerate(zip(paths[i], before, strict=False)) if a != b), len(before))
        del states[shared + 1 :]
        with closing(partial.follow(states[-1], schedules[i])) as steps:
            states.extend(steps)
        results[i], before, last = measure(states[-1].latents), paths[i], i
    return Swept(results, partial.steps - began, sum(map(len, paths)))


def path(schedule: Schedule) -> tuple:
    """What a schedule does at each of its steps, as keys [T]: equal beginnings mean equal states, bit for bit."""
    if schedule.steps is None:
        raise ValueError("a schedule without a number of steps has no path; give it steps")
    if schedule.gates:
        raise ValueError(
            f"{schedule.gates[0].name} is a group, whose gate decides by what is denoised, so runs cannot share their "
            "beginnings; evaluate such schedules as a whole"
        )
    data = {k: v for k, v in schedule.to_dict().items() if k not in ("digest", "plan", "models", "scores", "made")}
    sampler, guidance = dict(data.pop("sampler", {})), dict(data.pop("guidance", {}))
    own = [sampler.get("timesteps") if sampler.get("class") == "DDIMScheduler" else None]  # steps by its own gaps
    grid = [sampler.pop(name, None) for name in ("timesteps", "sigmas")]
    order, table = sampler.pop("order", None), sampler.pop("coefficients", None)
    scale, branch = guidance.pop("scale", None), guidance.pop("branch", None)
    weights = schedule.guidance.approximation(schedule.steps) if schedule.guidance else None
    own += [max(order) if order else None, [values is None for values in (*grid, table)], sampler]
    throughout = json.dumps([data, own], sort_keys=True)
    axis, plan = schedule._document.plan.axis if schedule._document.plan else "index", schedule.plan
    names = {k: part.model_dump_json() for k, part in schedule.models.names.items()} if schedule.models else {}
    keys = []
    for step, tokens in enumerate(zip(*plan.tokens.values(), strict=True)):
        places = [tuple(values[step : step + 2]) if values else () for values in grid]
        row = (table["state"][step], tuple(table["outputs"][step])) if table else ()
        guided = _guided(guidance.get("call"), scale[step] if scale else None, branch[step] if branch else OFF)
        if weights and branch and branch[step] == "A":
            low, high = weights.low[step], weights.high[step]
            guided += (low, high, weights.radius if low != high else None)
        forecast = axis if any(token[0] == "F" for token in tokens) else ""
        network = names.get(plan.at[step], "") if plan.at else ""
        keys.append((throughout, tokens, forecast, *places, order[step] if order else "", row, guided, network))
    return tuple(keys)


def needs(schedules: Sequence[Schedule]) -> dict[str, int]:
    """How many of its latest values each node has to keep for any of these schedules."""
    found: dict[str, int] = {}
    for schedule in schedules:
        for name, tokens in schedule.plan.tokens.items():
            if count := max(map(history, set(tokens)), default=0):
                found[name] = max(found.get(name, 0), count)
        if schedule.guidance and set("RA") & set(schedule.guidance.branch or ""):
            found[ROOT] = max(found.get(ROOT, 0), 1)
    return found


def _guided(call: float | None, scale: float | None, branch: str) -> tuple:
    """() where a step is guided as the pipeline does it; without guidance (O) the scale says nothing."""
    scale = call if scale is None else scale
    return () if branch == OFF and scale == call else (branch, call, None if branch == "O" else scale)


def step_macs(costs: Costs, schedule: Schedule) -> list[float]:
    """`Costs.macs` of each step [T]."""
    tokens, shares, at = schedule.plan.tokens, costs.share(schedule), schedule.plan.at
    macs = [(tokens[ROOT], costs.floor_macs), *((tokens[name], m) for name, m in costs.component_macs.items())]
    others = {letter: [(tokens[ROOT], costs.others[letter].call_macs)] for letter in costs.stitched(schedule)}
    ran = [others.get(at[t] if at else OWN, macs) for t in range(len(shares))]
    return [share * sum(m for actions, m in ran[t] if actions[t] == OFF) for t, share in enumerate(shares)]
