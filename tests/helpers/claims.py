"""Schedules whose files claim scores, and what they score by hand."""

import numpy as np

from search import Schedule
from search.objectives.drift import Drift
from search.pareto.intervals import bootstrap_interval
from tests.helpers.trained_lora import PROMPTS


def made(model, actions="CCRCRC", node="denoiser", **scores) -> Schedule:
    schedule = Schedule.from_dict(model.target.schedule({"plan": {"rules": [[node, actions]]}}))
    found = {k: {"value": v, "ci": ci} for k, (v, ci) in scores.items()}
    return schedule.with_scores(found).with_made({"model": "pixart", "call": dict(model.arguments)})


def by_hand(model, schedule, count=8) -> list[float]:
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(count)]
    given = prompts, [10_000 + i for i in range(count)]
    teacher = model.sample(*given)
    with model.apply(schedule):
        return Drift()(model.sample(*given), teacher).tolist()


def claiming(model, actions="CCRCRC", node="denoiser", factor=1.0) -> Schedule:
    """A schedule whose file says what it does here, times a factor."""
    plain = made(model, actions, node)
    values = np.array(by_hand(model, plain))
    low, high = bootstrap_interval(values, np.random.default_rng(0))
    return made(model, actions, node, drift=(factor * values.mean(), [factor * low, factor * high]))
