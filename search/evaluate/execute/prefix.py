"""What a schedule does at each of its steps, as keys: where they are equal up to a step, runs are equal up to there."""

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
    """What a schedule does at each of its steps, as keys [T]: equal beginnings mean equal states, bit for bit.

    `prior` is the table that a fit of the solver begins with, where the run fits it: a fitted row follows from what
    was done before. A table runs alike on grids of any length that begin alike; diffusers' schedulers need not.
    """
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
    table = table and (table["state"], table["outputs"])
    if table or prior:
        data.pop("steps", None)
    throughout = hashlib.sha256(json.dumps([data, own], sort_keys=True).encode()).hexdigest()
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
        keys.append((throughout, tokens, forecast, *places, order[step] if order else "", row, guided, network))
    return tuple(keys)


def prefix_ids(keys: StepKey, batch: str = "") -> list[int]:
    """A number for the beginning up to and with each step, the same in every process; `batch` is what is denoised."""
    found, seen = [], hashlib.blake2b(batch.encode(), digest_size=8)
    for key in keys:
        seen.update(repr(key).encode())
        found.append(int.from_bytes(seen.digest(), "big"))
    return found


def values_needed(schedules: Sequence[Schedule]) -> dict[str, int]:
    """How many of its latest values each node has to keep for any of these schedules."""
    found: dict[str, int] = {}
    for schedule in schedules:
        for name, tokens in schedule.plan.tokens.items():
            if count := max(map(values_read, set(tokens)), default=0):
                found[name] = max(found.get(name, 0), count)
        if schedule.guidance and set("RA") & set(schedule.guidance.branch or ""):
            found[ROOT] = max(found.get(ROOT, 0), 1)
    return found


def _guided(call: float | None, scale: float | None, branch: str) -> tuple[Any, ...]:
    """() where a step is guided as the pipeline does it; without guidance (O) the scale says nothing."""
    scale = call if scale is None else scale
    return () if branch == OFF and scale == call else (branch, call, None if branch == "O" else scale)
