"""A Pareto beam along the denoising steps: really executed partial trajectories, extended option by option.

Its cost is counted in steps: one for every extension, whatever it leads to.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from search.evaluate.evaluator import Evaluator
from search.evaluate.execute.partial import PartialRun, RunState
from search.evaluate.execute.prefix import step_keys, values_needed
from search.models.base import to_schedule
from search.objectives.drift import Drift
from search.pareto.domination import non_dominated
from search.profile.costs import Costs
from search.profile.target import Target
from search.spaces.base import START, Space

Options = list[list[np.ndarray]]  # per step: values of that step's genes


@dataclass(frozen=True)
class Candidate:
    """A row [G] whose genes of later steps are off, and how far it was run."""

    row: np.ndarray
    state: RunState


def beam_rows(
    space: Space,
    target: Target,
    probe: Evaluator,
    seeds: np.ndarray,
    costs: Costs,
    width: int = 32,
    options: int = 8,
    on_step: Callable[[int, int], None] = lambda done, executed: None,
) -> np.ndarray:
    """Rows of a beam search along the steps: up to `width` trajectories are run, extended step by step.

    At every step the genes of that step take the commonest values that they have in `seeds`, and all-off. Trajectories
    compete by MACs so far and drift so far; of equal fronts the ones that lie apart in cost survive.

    Args:
        space: What the search decides.
        target: The model as the space sees it.
        probe: Gives the model and its first batch of prompts, and counts the work.
        seeds: Rows [S, G] that the options are taken from.
        costs: Cost tables of the model.
        width: How many trajectories survive a step, at least 2.
        options: How many values of a step's genes are tried, with all-off.
        on_step: Called after every step with the number of finished steps and of executed model steps.

    Returns:
        Rows [P, G] of the survivors, the best front first.

    Raises:
        ValueError: The width is below 2, or the space has no genes of steps, moves them, or has gates.
    """
    if width < 2:
        raise ValueError(f"width {width} is too narrow for a front; use at least 2")
    columns = _columns(space, target, seeds)
    choices = _options(seeds, columns, options)
    model, zero = probe.model, np.zeros(seeds.shape[1], dtype=np.int64)
    alone = [_with(zero, columns[t], option) for t in range(target.steps) for option in choices[t]]
    keep = values_needed([to_schedule(model, space.decode(row, target)) for row in alone])
    run = PartialRun(model, *probe.inputs[0], costs, keep)
    off = to_schedule(model, space.decode(zero, target))
    teacher: list[Tensor] = []
    run.follow(run.begin(), off, on_state=lambda state: teacher.append(state.latents))
    beam = [Candidate(zero, run.begin())]
    for step in range(target.steps):
        grown: dict[Any, Candidate] = {}
        for candidate in beam:
            for option in choices[step]:
                row = _with(candidate.row, columns[step], option)
                schedule = to_schedule(model, space.decode(row, target))
                if (done := step_keys(schedule)[: step + 1]) not in grown:
                    grown[done] = Candidate(row, run.extend(candidate.state, schedule))
        beam = list(grown.values())
        scores = [_score(candidate.state, teacher[step]) for candidate in beam]
        beam = [beam[i] for i in beam_survivors(np.array(scores), width)]
        on_step(step + 1, run.steps)
    probe.accounting.block_executions += run.block_executions
    return np.array([candidate.row for candidate in beam])


def beam_survivors(scores: np.ndarray, width: int) -> list[int]:
    """Indices of up to `width` rows of scores [N, 2]: whole fronts, and of the last one what lies apart in cost.

    Rows with a NaN do not survive; the cheapest and the best row of the first front do.
    """
    survivors: list[int] = []
    left = np.arange(len(scores))
    while len(left) and len(survivors) < width:
        mask = non_dominated(scores[left])
        if not mask.any():
            break  # the rest has diverged
        front = left[mask]
        front = front[scores[front, 0].argsort()]
        survivors += _spread(scores[front, 0], width - len(survivors), front)
        left = left[~mask]
    return survivors


def _spread(cost: np.ndarray, count: int, names: np.ndarray) -> list[int]:
    """Up to `count` names of rising costs, without the ones that lie closest to their neighbours."""
    at = list(range(len(cost)))
    while len(at) > max(count, 2):
        gaps = [cost[b] - cost[a] for a, b in zip(at[:-2], at[2:], strict=True)]
        at.pop(1 + int(np.argmin(gaps)))
    return [int(names[i]) for i in at[:count]]


def _score(state: RunState, teacher: Tensor) -> tuple[float, float]:
    return state.macs, float(Drift()(state.latents, teacher).mean())


def _columns(space: Space, target: Target, seeds: np.ndarray) -> list[np.ndarray]:
    """Indices of the genes of every step; ValueError where there are others, or the steps are not the teacher's."""
    genes = space.genes(target)
    columns: list[list[int]] = [[] for _ in range(target.steps)]
    for index, gene in enumerate(genes):
        if gene.step is not None:
            columns[gene.step].append(index)
    highest = [gene.levels - 1 for gene in genes]
    decoded = [space.decode(row, target) for row in (*seeds, highest)]
    if any("gates" in parts for parts in decoded):
        raise ValueError(
            f"the beam extends trajectories that share their beginnings, and space {space.key} has gates, which depend "
            "on the prompts; use engine=nsga2"
        )
    if any({"sampler", "steps"} & set(parts) for parts in decoded):
        raise ValueError(
            f"the beam extends trajectories on the teacher's steps, and space {space.key} moves the steps or changes "
            "the solver; use engine=olss"
        )
    if any(gene.step is None and gene.group != START for gene in genes):  # how a run starts is left off
        raise ValueError(
            f"the beam extends trajectories step by step, and space {space.key} has no genes of steps; use engine=milp"
        )
    return [np.array(column, dtype=np.int64) for column in columns]


def _options(seeds: np.ndarray, columns: Sequence[np.ndarray], count: int) -> Options:
    """All-off, and the commonest other values of every step's genes."""
    options = []
    for column in columns:
        off = np.zeros(len(column), dtype=np.int64)
        values, times = np.unique(seeds[:, column], axis=0, return_counts=True)
        used = [values[i] for i in np.argsort(-times, kind="stable") if values[i].any()]
        options.append([off, *used[: count - 1]])
    return options


def _with(row: np.ndarray, column: np.ndarray, values: np.ndarray) -> np.ndarray:
    changed = row.copy()
    changed[column] = values
    return changed
