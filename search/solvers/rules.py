"""The schedulers of diffusers as rules."""

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from search.schedule.schedulers import ORDERED, scheduler_of_part
from search.solvers.multistep import sampler_text
from search.solvers.table import MAX_ORDER, SolverRule
from search.solvers.trace import check_linear


def sampler_rules(sampler: Mapping[str, Any]) -> tuple[SolverRule, ...]:
    """The rules by which diffusers' own scheduler runs.

    Args:
        sampler: The sampler part of a schedule file.

    Returns:
        One rule for each of the T steps.

    Raises:
        ValueError: Rules cannot express the class with this config; says what to use.

    Example:
        >>> from search.solvers.rules import sampler_rules
        >>> sampler = {"class": "DPMSolverMultistepScheduler", "config": {}, "timesteps": [900.0, 600.0, 300.0]}
        >>> [(rule.order, rule.stencil) for rule in sampler_rules(sampler)]
        [(1, 'midpoint'), (2, 'midpoint'), (1, 'midpoint')]
    """
    return _cached_rules(sampler_text(sampler), sampler.get("coefficients") is not None)


@lru_cache(maxsize=256)
def _cached_rules(text: str, table: bool) -> tuple[SolverRule, ...]:
    sampler = json.loads(text)
    scheduler, name = scheduler_of_part(sampler), sampler["class"]
    check_linear(scheduler)
    if table:
        raise ValueError("the sampler part is a table already; leave out its coefficients")
    if sampler.get("timesteps") is None:
        raise ValueError("the sampler part has no timesteps; rules are one for each step")
    config, count = scheduler.config, len(sampler["timesteps"])
    if config.get("prediction_type") == "flow_prediction" and not config.get("use_flow_sigmas", True):
        raise ValueError(f"{name} predicts a flow on other than flow sigmas; set its use_flow_sigmas true")
    if name == "PNDMScheduler" and not config.skip_prk_steps:
        raise ValueError(
            "PNDMScheduler begins with Runge-Kutta steps, which rules cannot express; set its skip_prk_steps true"
        )
    if name in ("DDIMScheduler", "PNDMScheduler"):
        return (SolverRule(1 if name == "DDIMScheduler" else 4, "noise", "even"),) * count
    if name in ("EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler"):
        return (SolverRule(),) * count
    if name not in ORDERED:
        raise ValueError(f"{name} has no rules; trace it, or use DPMSolverMultistepScheduler")
    if config.get("solver_p") is not None:
        raise ValueError(f"{name} takes its predictor from solver_p, which rules cannot express; set its solver_p null")
    orders = [int(k) for k in sampler["order"]] if sampler.get("order") else orders_of(name, config, count)
    if name == "DEISMultistepScheduler":
        return tuple(SolverRule(k, "noise", "exact") for k in orders)
    if name == "UniPCMultistepScheduler":
        form = "data" if config.predict_x0 else "noise"
        return tuple(
            SolverRule(k, form, config.solver_type, i not in config.disable_corrector) for i, k in enumerate(orders)
        )
    form = "data" if config.algorithm_type == "dpmsolver++" else "noise"
    second = "exact" if config.solver_type == "heun" else "midpoint"
    return tuple(SolverRule(k, form, second if k == 2 else "midpoint") for k in orders)


def orders_of(name: str, config: Any, count: int) -> list[int]:
    """The order of every step [T], as diffusers lowers it at both ends of a run.

    Args:
        name: The class of scheduler.
        config: Its configuration.
        count: The number of steps T.
    """
    highest = min(config.solver_order, MAX_ORDER if name == "UniPCMultistepScheduler" else 3)
    orders = [min(highest, i + 1) for i in range(count)]
    if name == "UniPCMultistepScheduler":
        return [min(k, count - i) if config.lower_order_final else k for i, k in enumerate(orders)]
    short = config.lower_order_final and count < 15
    to_zero = name == "DPMSolverMultistepScheduler" and (config.euler_at_final or config.final_sigmas_type == "zero")
    if short and count > 1:
        orders[-2] = min(orders[-2], 2)
    if short or to_zero:
        orders[-1] = 1
    return orders
