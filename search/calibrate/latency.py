"""Fit milliseconds per call and per component to a few measured schedules."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from search.calibrate.timing import time_schedules
from search.models.base import Model
from search.profile.costs import Costs
from search.profile.plans import plan_schedule
from search.schedule import Schedule
from search.schedule.model.nodes import ROOT
from search.schedule.plan.tokens import OFF


def fit_latency(
    rows: Sequence[Sequence[float]], milliseconds: Sequence[float], kinds: Iterable[str]
) -> dict[str, float]:
    """Non-negative least squares of relative errors.

    Args:
        rows: Features [N, 2+K] of N schedules, see `Costs.features`.
        milliseconds: Their measured times [N].
        kinds: Names of the last K features, see `Costs.timed`.

    Returns:
        Milliseconds of `run`, `denoiser` and each of the kinds.

    Example:
        >>> from search.calibrate.latency import fit_latency
        >>> table = fit_latency([[1, 4, 8], [1, 2, 8], [1, 2, 4]], [23, 19, 15], ["attn1"])
        >>> {name: round(value, 3) for name, value in table.items()}
        {'run': 7.0, 'denoiser': 2.0, 'attn1': 1.0}
    """
    from scipy.optimize import nnls

    matrix, times = np.array(rows, dtype=float), np.array(milliseconds)
    scale = matrix.max(axis=0)
    solution, _ = nnls(matrix / scale / times[:, None], np.ones(len(times)))  # relative errors
    return dict(zip(["run", "denoiser", *kinds], (solution / scale).tolist(), strict=True))


def calibrate_latency(model: Model, schedules: Sequence[Schedule], costs: Costs, repeats: int = 3) -> dict[str, float]:
    """The latency table: times of a few unlike schedules, fitted on what they compute.

    Each of the other denoisers is timed as well, at all steps of a run.

    Args:
        model: The model that runs.
        schedules: As many as there are unknown times, or more, which compute unlike shares of the kinds.
        costs: Cost tables of the model, without `milliseconds`.
        repeats: Timed rounds, of which the median counts.

    Returns:
        Milliseconds by name, as `Costs.milliseconds` has them.
    """
    target = model.target
    alone = [target.stitched(letter * target.steps) for letter in costs.others]
    schedules = [*schedules, *(Schedule.from_dict(target.schedule(parts)) for parts in alone)]
    times = time_schedules(model, schedules, repeats)
    rows = [costs.features(schedule) for schedule in schedules]
    return fit_latency(rows, [statistics.median(t) for t in times], costs.timed)


def add_latency(model: Model, costs: Costs) -> Costs:
    """The cost tables with a latency table, from times of a few unlike schedules.

    They compute everything, every second step, the first step alone, or reuse one component kind after the first step.

    Args:
        model: The model that runs.
        costs: Its cost tables.

    Returns:
        The same tables with `milliseconds`.
    """
    target = model.target
    alternating = [OFF if t % 2 == 0 else "R" for t in range(target.steps)]
    rare = [OFF if t == 0 else "R" for t in range(target.steps)]
    plans = [{}, {ROOT: alternating}, {ROOT: rare}, *({kind: rare} for kind in target.kinds)]
    schedules = [plan_schedule(target, plan) for plan in plans]
    table = calibrate_latency(model, schedules, costs)
    return replace(costs, milliseconds=table)
