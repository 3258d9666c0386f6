"""Keys of what a schedule does at each step: runs of two schedules are equal as long as their keys are."""

import hashlib
import json
from collections.abc import Hashable, Sequence
from typing import Any

from search.schedule import Schedule
from search.schedule.model.nodes import ROOT
from search.schedule.plan.tokens import OFF, values_read

StepKey = tuple[Hashable, ...]
SolverRow = tuple[Sequence[float], Sequence[Sequence[float]]]  # of a solver: state [T], outputs [T][1, 2, ..., T]


def step_keys(schedule: Schedule, prior: SolverRow | None = None) -> StepKey:
    """What a schedule does at each of its steps, as keys [T]: equal first keys mean equal states, bit for bit.

    Args:
        schedule: With a number of steps.
        prior: The table that a fit of the solver begins with, where the run fits it: a fitted row depends only on the
            steps before. Tables give equal states on grids of any length that begin alike; diffusers' schedulers
            may look at the whole grid.

    Returns:
        One hashable key per step.

    Raises:
        ValueError: There is no number of steps, or a gate, which depends on the prompts.
    """
    if schedule.steps is None:
        raise ValueError("the schedule has no number of steps; give it steps")
    if schedule.gates:
        raise ValueError(
            f"{schedule.gates[0].name} is a group whose gate depends on the prompts, so runs cannot share their first "
            "steps; evaluate such schedules as a whole"
        )
    data = {
        k: v
        for k, v in schedule.to_dict().items()
        if k not in ("digest", "plan", "models", "scores", "certificate", "made")
    }
    sampler, guidance = dict(data.pop("sampler", {})), dict(data.pop("guidance", {}))
    whole_run = [sampler.get("timesteps") if sampler.get("class") == "DDIMScheduler" else None]  # its gaps
    grid = [sampler.pop(name, None) for name in ("timesteps", "sigmas")]
    order, table = sampler.pop("order", None), sampler.pop("coefficients", None)
    scale, branch = guidance.pop("scale", None), guidance.pop("branch", None)
    weights = schedule.guidance.approximation(schedule.steps) if schedule.guidance else None
    whole_run += [max(order) if order else None, [values is None for values in (*grid, table)], sampler]
    table = table and (table["state"], table["outputs"])
    if table or prior:
        data.pop("steps", None)
    digest = hashlib.sha256(json.dumps([data, whole_run], sort_keys=True).encode()).hexdigest()
    axis, plan = schedule.document.plan.axis if schedule.document.plan else "index", schedule.plan
    names = {k: part.model_dump_json() for k, part in schedule.models.names.items()} if schedule.models else {}
    keys = []
    for step, tokens in enumerate(zip(*plan.tokens.values(), strict=True)):
        places = [tuple(values[step : step + 2]) if values else () for values in grid]
        row = tuple((kind, given[0][step], *given[1][step]) for kind, given in (("", table), ("fit", prior)) if given)
        guided = _guided(guidance.get("call"), scale[step] if scale else None, branch[step] if branch else OFF)
        if weights and branch and branch[step] == "A":
            low, high = weights.low[step], weights.high[step]
            guided += (low, high, weights.radius if low != high else None)
        forecast = axis if any(token[0] == "F" for token in tokens) else ""
        network = names.get(plan.at[step], "") if plan.at else ""
        keys.append((digest, tokens, forecast, *places, order[step] if order else "", row, guided, network))
    return tuple(keys)


def prefix_ids(keys: StepKey, batch: str = "") -> list[int]:
    """A number for the run up to and with each step [T], the same in every process; `batch` identifies the inputs."""
    ids, seen = [], hashlib.blake2b(batch.encode(), digest_size=8)
    for key in keys:
        seen.update(repr(key).encode())
        ids.append(int.from_bytes(seen.digest(), "big"))
    return ids


def values_needed(schedules: Sequence[Schedule]) -> dict[str, int]:
    """How many of its latest values each node has to keep for any of these schedules."""
    needed: dict[str, int] = {}
    for schedule in schedules:
        for name, tokens in schedule.plan.tokens.items():
            if count := max(map(values_read, set(tokens)), default=0):
                needed[name] = max(needed.get(name, 0), count)
        if schedule.guidance and set("RA") & set(schedule.guidance.branch or ""):
            needed[ROOT] = max(needed.get(ROOT, 0), 1)
    return needed


def _guided(call: float | None, scale: float | None, branch: str) -> tuple[Any, ...]:
    """() where a step is guided as the pipeline does it; without guidance (O) the scale has no effect."""
    scale = call if scale is None else scale
    return () if branch == OFF and scale == call else (branch, call, None if branch == "O" else scale)
