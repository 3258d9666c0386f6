"""Plans of reuse and forecast with the least expected error, by exact programs on measured tables."""

from search.exact.rows import MOST_OF_A_FRONT, spread_indices
from search.exact.segments import forecast_front, merge_fronts, reuse_front
from search.profile.plans import component_names, mask_to_tokens
from search.profile.tables import Tables
from search.schedule.model.nodes import ROOT


def least_error_plans(tables: Tables) -> list[dict[str, list[str]]]:
    """The exact fronts of the additive surrogate over all budgets, as one action per step of each name [T].

    Reuse and forecast of the whole denoiser by segmentation; of component kinds by one program each, merged on their
    convex hulls. The errors of a kind are scaled by one measured run that reuses this kind at every second step.
    """
    names, target, weights = component_names(tables.target), tables.target, tables.weights
    reuse = tables.reuse_errors([ROOT])
    plans = [{ROOT: mask_to_tokens(mask)} for _, mask in reuse_front(reuse, weights)]
    forecast = tables.forecast_errors([ROOT])
    plans += [{ROOT: mask_to_tokens(mask, forecast=True)} for _, mask in forecast_front(reuse, forecast, weights)]
    fronts, prices = {}, {}
    for kind in target.kinds:
        fronts[kind] = reuse_front(tables.reuse_errors(names[kind]), tables.scales[kind] * weights)
        prices[kind] = float(sum(tables.costs.component_macs[name] for name in names[kind]))
    merged = merge_fronts(fronts, prices)
    return plans + [
        {kind: mask_to_tokens(mask) for kind, mask in merged[i][2].items()}
        for i in spread_indices(len(merged), MOST_OF_A_FRONT)
    ]
