"""Levels from the additive table of single genes: solved, not searched, for one budget or several."""

import itertools
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from search.engines.base import EngineInputs
from search.engines.computed_rows import ComputedRowsEngine
from search.exact.knapsack import DAMPINGS, Point, gram_search, knapsack_front

if TYPE_CHECKING:
    from search.profile.tables import GeneTable

SECONDS = 20.0  # at most for one program; 250 genes x 6 levels under one budget take 0.1 s


class MilpEngine(ComputedRowsEngine):
    """The zero row, the seeds, then the best rows under many budgets if errors add; scores change nothing.

    Errors of genes are taken as orthogonal: their squares add. Budgets are spread evenly over each cost alone (one
    knapsack solves them all) and, where there are several costs, over combinations of them (integer programs). No such
    model is best everywhere, so their rows take turns. Each begins with its cheapest and its most expensive row and
    continues with the middle, the quarters and so on: a search that ends early has seen the whole range. Any number of
    objectives.

    Args:
        start: Has the table of single genes, which is measured now, and the first rows.
        budgets: The number of budgets of each cost, at least 2.
        gram: Whether these rows are also improved on the norm of the summed error vectors (`gram_search`), where the
            table has vectors.

    Raises:
        ValueError: The space has no additive table, the table does not match the genes, or there are too few budgets.
    """

    def __init__(self, start: EngineInputs, budgets: int = 24, gram: bool = True) -> None:
        if budgets < 2:
            raise ValueError(f"budgets {budgets} is too small; use engine.budgets=24, at least 2")
        super().__init__(start)
        self.budgets, self.gram = budgets, gram

    def compute_rows(self) -> Iterable[np.ndarray]:
        """The solutions of all models, measured and solved here; ValueError where the space has no additive table."""
        start = self.start
        if start.table is None:
            raise ValueError("this space has no additive table; use engine=nsga2")
        table = start.table()
        _check(table, start.levels)
        fronts = [knapsack_front(_squares(table), cost) for cost in table.costs]
        ranges = [np.linspace(front[0][0], front[-1][0], self.budgets) for front in fronts]
        found = [_under(front, limits) for front, limits in zip(fronts, ranges, strict=True)]
        if len(table.costs) > 1:
            found.append(milp_rows(table, _joint(ranges)))
        if self.gram and len(table.vectors):
            known = np.concatenate(found)
            found += [gram_search(table.vectors, table.costs, known, damping) for damping in DAMPINGS]
        in_turn = itertools.zip_longest(*(_by_halves(rows) for rows in found))
        solved = (row for turn in in_turn for row in turn if row is not None)
        return [np.zeros_like(start.levels), *start.seeds, *solved]


def milp_rows(table: "GeneTable", budgets: np.ndarray) -> np.ndarray:
    """The row with the least sum of squared errors under each budget, by integer programs.

    Exact (HiGHS, no gap), unless a program takes longer than 20 s: then its best row so far.

    Args:
        table: Errors and costs of each level of each gene.
        budgets: Upper bounds [N, C] on the total of each cost; infinity for no bound.

    Returns:
        Rows x [<=N, G] in the order of their budgets; a budget that no row is within gives none.

    Raises:
        ValueError: The budgets have another shape.

    Example:
        >>> import numpy as np
        >>> from search.engines.milp import milp_rows
        >>> from search.profile.tables import GeneTable
        >>> table = GeneTable([np.array([0, 1.0]), np.array([0, 3.0])], [[np.array([0, -2.0]), np.array([0, -4.0])]])
        >>> milp_rows(table, np.array([[0.0], [-1.0], [-3.0]])).tolist()
        [[0, 0], [1, 0], [0, 1]]
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    budgets = np.asarray(budgets, dtype=float)
    if budgets.ndim != 2 or budgets.shape[1] != len(table.costs):
        raise ValueError(f"budgets have shape {budgets.shape}; give [N, {len(table.costs)}], a column for each cost")
    counts = [len(error) for error in table.errors]
    if not counts:
        return np.zeros((0, 0), dtype=np.int64)
    gene, total = np.repeat(np.arange(len(counts)), counts), sum(counts)
    error = np.concatenate(_squares(table))
    usable = np.isfinite(error)
    error = np.where(usable, error, 0.0)
    one_each = LinearConstraint(csr_array((np.ones(total), (gene, np.arange(total)))), 1, 1)
    costs = np.array([np.concatenate(list(cost)) for cost in table.costs], dtype=float).reshape(-1, total)
    # HiGHS has absolute tolerances: it needs numbers of order 1.
    scale = np.abs(costs).max(axis=1, initial=0.0)
    scale[scale == 0] = 1.0
    rows = []
    for budget in budgets:
        bounded = np.isfinite(budget)
        limits = LinearConstraint(costs[bounded] / scale[bounded, None], -np.inf, (budget / scale)[bounded])
        solved = milp(
            error / (error.max() or 1.0),
            integrality=np.ones(total),
            bounds=Bounds(0, usable.astype(float)),
            constraints=[one_each, limits] if bounded.any() else [one_each],
            options={"mip_rel_gap": 0.0, "time_limit": SECONDS},
        )
        if solved.x is not None:
            rows.append([int(part.argmax()) for part in np.split(solved.x, np.cumsum(counts)[:-1])])
    return np.array(rows, dtype=np.int64).reshape(len(rows), len(counts))


def _check(table: "GeneTable", levels: np.ndarray) -> None:
    """Every part of the table has one number (or vector) per level."""
    parts: dict[str, Sequence[np.ndarray]] = {"errors": table.errors}
    parts |= {f"costs[{c}]": cost for c, cost in enumerate(table.costs)}
    if len(table.vectors):
        parts["vectors"] = table.vectors
    for name, part in parts.items():
        if [len(p) for p in part] != levels.tolist():
            raise ValueError(f"{name} of the table has {[len(p) for p in part]} levels; give {levels.tolist()}")


def _squares(table: "GeneTable") -> list[np.ndarray]:
    """Squared norms add where errors are orthogonal; a level that was measured as NaN is never chosen."""
    return [np.where(np.isfinite(error), np.square(error), np.inf) for error in table.errors]


def _under(front: list[Point], limits: np.ndarray) -> np.ndarray:
    """The best point of a front within each limit: x [N, G]."""
    # The first limit is the cheapest cost itself: rounding must not put it below.
    places = np.searchsorted([cost for cost, _, _ in front], limits, side="right") - 1
    return np.array([front[place][2] for place in np.maximum(places, 0)])


def _joint(ranges: Sequence[np.ndarray]) -> np.ndarray:
    """Combinations [N, C] of budgets, about as many as budgets of one cost, without the ends of the ranges."""
    each = max(2, round(len(ranges[0]) ** (1 / len(ranges))))
    inner = [np.linspace(r[0], r[-1], each + 2)[1:-1] for r in ranges]
    return np.array(list(itertools.product(*inner)))


def _by_halves(rows: np.ndarray) -> np.ndarray:
    """The same rows: the first, the last, the middle, the quarters, and so on."""
    order = list(dict.fromkeys([0, len(rows) - 1]))
    step = len(rows)
    while step > 1:
        step = (step + 1) // 2
        order += range(0, len(rows), step)
    return rows[list(dict.fromkeys(order))] if len(rows) else rows
