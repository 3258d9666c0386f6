"""What each part of the recommended schedule contributes: the schedule without it, on the held-out prompts."""

from functools import partial
from typing import Any

import numpy as np

from search.evaluate.evaluator import Evaluator
from search.loop.finished import FinishedSearch
from search.loop.progress import OnProgress
from search.results.result import Entry
from search.schedule import Schedule
from search.validate.ablation import measure_effects


def attribution_of(
    entry: Entry, finished: FinishedSearch, held_out: Evaluator, on_progress: OnProgress
) -> dict[str, Any] | None:
    """What a result says of the parts of a schedule on its front; None for other entries, and without parts.

    The other parts stay: solvers are fitted anew on the calibration prompts, as the search fits them. Parts without
    which the schedule cannot be run, or is not finite, are left out.
    """
    if entry.role != "front":
        return None
    calibration, costs = finished.evaluator, held_out.costs
    fitted_macs: list[float] = []

    def fit(schedule: Schedule) -> Schedule:
        fitted_macs.append(costs.macs(schedule) * len(calibration.batches[0]))
        return calibration.fit(schedule)

    before = held_out.block_executions
    on_done = partial(on_progress, "attribution")
    explanation = measure_effects(entry.schedule, held_out, ["part"], entry.name, on_done, fit, alone=False)
    parts = [
        {
            "name": effect.name,
            "drift": explanation.drift - effect.added,
            "difference": -effect.added,
            "low": -effect.high,
            "high": -effect.low,
            "macs": explanation.macs + effect.saved,
        }
        for effect in explanation.effects
        if np.isfinite([effect.added, effect.low, effect.high]).all()
    ]
    blocks = held_out.block_executions - before + sum(fitted_macs) / costs.block_macs
    head = {"drift": explanation.drift, "macs": explanation.macs, "block_executions": round(blocks)}
    return head | {"parts": parts} if parts else None
