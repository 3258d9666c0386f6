"""Levels from the additive table of single genes, solved instead of searched, for one budget or several."""

import itertools
from dataclasses import replace

import numpy as np

from search.engines.base import Engine, Start, Table
from search.engines.knapsack import gram_search, knapsack_front
from search.engines.proposals import Rows

SECONDS = 20.0  # per integer program; 250 genes x 6 levels under one budget take 0.1 s
DAMPINGS = (0.5, 1.0)  # which is better depends on how large the errors are: both are evaluated


class MilpEngine(Engine):
    """The zero row, the seeds, then what is best for each budget if errors add; scores change nothing.

    Errors of genes are taken as orthogonal: their squares add. `budgets` counts the budgets, evenly spread, per
    cost; of two and more costs as many combinations are solved together (at least two of each). With `gram` the
    rows are also improved on the norms of their summed error vectors, where the table has vectors. No surrogate
    wins everywhere, so all their rows are evaluated in turn, each one's ends and middle first: a search that
    stops early has seen the whole range. Any number of objectives.
    """

    def __init__(self, start: Start, budgets: int = 24, gram: bool = True) -> None:
        if budgets < 2:
            raise ValueError(f"budgets {budgets} is too small; use engine.budgets=24, at least 2")
        if start.table is None:
            raise ValueError("this space has no additive table; use engine=nsga2")
        table = _checked(start.table(), start.levels)
        fronts = [knapsack_front(table.errors, cost) for cost in table.costs]
        fronts = [front for front in fronts if len(front) > 1]  # what always costs the same has no budgets
        rows = [np.array([front[i][2] for i in _spread(len(front), budgets)]) for front in fronts]
        rows.append(milp_rows(table, _budgets(table, budgets)))
        if gram and len(table.vectors):
            known = np.unique(np.concatenate(rows), axis=0)
            rows += [gram_search(table.vectors, table.costs, known, damping) for damping in DAMPINGS]
        # cheapest to dearest, ends and middles first, one of each source at a time
        turns = itertools.zip_longest(*(source[_spread(len(source), len(source))] for source in rows))
        solved = [row for turn in turns for row in turn if row is not None]
        zero = np.zeros_like(start.levels)
        self.rows = Rows([zero, *start.seeds, *solved], len(zero))

    def ask(self, n: int) -> np.ndarray:
        """The next rows of the list; none when all were handed out."""
        return self.rows.take(n)
