"""What a search records of each generation."""

from collections.abc import Mapping, Sequence

import numpy as np

from search.loop.state import SearchState
from search.objectives.base import Objective
from search.pareto.domination import hypervolume, non_dominated
from search.profile.costs import Costs


def archive_scores(state: SearchState, objectives: Mapping[str, Objective]) -> np.ndarray:
    """Scores [N, M] of the archive, all to be minimised, in the order of evaluation."""
    return np.array([entry["scores"] for entry in state.archive.values()]).reshape(-1, len(objectives))


def scaled_hypervolume(
    scores: Sequence[Sequence[float]] | np.ndarray, objectives: Mapping[str, Objective], costs: Costs
) -> float:
    """Hypervolume in 0..1 of scores [N, M], each objective scaled so that its worst useful value is 1."""
    if not len(scores):
        return 0.0
    worst = np.array([o.minimised(o.worst(costs)) for o in objectives.values()])
    best = np.array([0.0 if o.better == "lower" else -o.ceiling for o in objectives.values()])
    scaled = (np.array(scores) - best) / (worst - best)
    return hypervolume(scaled, np.ones(len(worst)))


def generation_record(state: SearchState, objectives: Mapping[str, Objective], halved: int) -> dict[str, float]:
    """The row of `history` for the generation that ends; `halved` counts candidates run in smaller batches."""
    scores = archive_scores(state, objectives)
    return {
        "generation": state.generation,
        "evaluations": state.asked,
        "distinct": len(state.archive),
        "lost": state.lost,
        "failed": state.failed,
        "halved": halved,
        "block_executions": round(state.block_executions),
        "unshared": round(state.unshared),
        "hypervolume": scaled_hypervolume(scores, objectives, state.costs),
        "front": int(non_dominated(scores).sum()),
        "seconds": round(state.seconds, 1),
        **state.engine.report,
    }
