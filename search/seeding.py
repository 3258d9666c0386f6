"""What a search begins with: published rules, and the exact DP front of the calibration tables."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from search.calibration import Costs, Drifts, threshold_mask
from search.engines.dp import forecast_front, merge, reuse_front
from search.schedule import Schedule
from search.schedule.nodes import ROOT
from search.schedule.plan import OFF
from search.spaces.base import Space
from search.target import Target

THRESHOLDS = (0.05, 0.1, 0.2)
MOST_MERGED = 24

Measure = Callable[[Schedule], float]
Tokens = dict[str, list[str]]


def preset_rows(space: Space, target: Target, drifts: Drifts) -> dict[str, np.ndarray]:
    """The space's own presets, and SmoothCache's rule on the measured errors."""
    rows = space.presets(target)
    names = _names(target)
    for threshold in THRESHOLDS:
        tokens = {kind: threshold_mask(drifts.reuse(names[kind]), threshold) for kind in target.kinds}
        x = space.encode(tokens, target)
        if x is not None and x.any():
            rows[f"SmoothCache α={threshold:g}"] = x
    return rows


def propagation(target: Target, drifts: Drifts, measure: Measure) -> np.ndarray:
    """Weights [T]: terminal drift per unit of relative error in the denoiser's output at a step.

    One rollout a step: the step reuses the output of the step before, all else is computed.
    """
    local = drifts.reuse([ROOT])
    weights = np.zeros(target.steps)
    for t in range(1, target.steps):
        tokens = [OFF] * target.steps
        tokens[t] = "R"
        weights[t] = measure(_schedule(target, {ROOT: tokens})) / max(local[t - 1, t], 1e-12)
    return weights


def dp_rows(
    space: Space,
    target: Target,
    drifts: Drifts,
    costs: Costs,
    weights: np.ndarray,
    measure: Measure,
) -> list[np.ndarray]:
    """The exact fronts of the surrogate over all budgets, in the space's genes.

    Whole-denoiser reuse and forecast by segmentation DP; component kinds by one DP each, merged on their
    convex hulls. A kind's errors are scaled by one measured rollout that reuses this kind at every second step.
    """
    found: list[Tokens] = []
    names = _names(target)
    local = drifts.reuse([ROOT])
    found += [{ROOT: _tokens(mask)} for _, mask in reuse_front(local, weights)]
    forecast = drifts.forecast([ROOT])
    found += [{ROOT: _tokens(mask, forecast=True)} for _, mask in forecast_front(local, forecast, weights)]

    every_second = [OFF if t % 2 == 0 else "R" for t in range(target.steps)]
    fronts, prices = {}, {}
    for kind in target.kinds:
        errors = drifts.reuse(names[kind])
        predicted = sum(weights[t] * errors[t - 1, t] for t in range(1, target.steps, 2))
        scale = measure(_schedule(target, {kind: every_second})) / max(predicted, 1e-12)
        fronts[kind] = reuse_front(errors, scale * weights)
        prices[kind] = float(sum(costs.component_macs[name] for name in names[kind]))
    merged = merge(fronts, prices)
    chosen = np.unique(np.linspace(0, len(merged) - 1, min(MOST_MERGED, len(merged))).round().astype(int))
    found += [{kind: _tokens(mask) for kind, mask in merged[i][2].items()} for i in chosen]

    rows = [space.encode(tokens, target) for tokens in found]
    unique = {row.tobytes(): row for row in rows if row is not None and row.any()}
    return list(unique.values())


def shorter_runs(
    target: Target, shorter: Callable[[int], Mapping[str, object]], counts: Sequence[int]
) -> dict[str, Schedule]:
    """What people do without a schedule: the same sampler with fewer steps."""
    return {
        f"{n} steps": Schedule.from_dict(target.schedule({}) | {"steps": n, "sampler": dict(shorter(n))})
        for n in counts
        if n < target.steps
    }


def _names(target: Target) -> dict[str, list[str]]:
    return {kind: [node.name for node in target.tree if node.component == kind] for kind in target.kinds}


def _tokens(mask: np.ndarray, forecast: bool = False) -> list[str]:
    tokens: list[str] = []
    for computes in mask:
        enough = tokens.count(OFF) > 1
        tokens.append(OFF if computes else "F1" if forecast and enough else "R")
    return tokens


def _schedule(target: Target, tokens: Mapping[str, Sequence[str]]) -> Schedule:
    stacks = [stack.name for stack in target.tree.contract]
    rules = []
    for name, actions in tokens.items():
        selectors = [ROOT] if name == ROOT else [f"{stack}.*:{name}" for stack in stacks]
        rules += [[selector, "".join(actions)] for selector in selectors]
    return Schedule.from_dict(target.schedule({"plan": {"rules": rules}}))
