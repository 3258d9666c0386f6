"""Rows that a method computes once from calibration, evaluated and nothing more: engine=dp, olss, beam."""

from dataclasses import replace

import numpy as np

from search.engines.base import Engine, EngineInputs
from search.engines.row_queue import RowQueue


class ProposalEngine(Engine):
    """The zero row, the rows of the method `of` in its own order, then the seeds; scores change nothing.

    The rows are computed when the engine is made. Any number of objectives.

    Args:
        start: Has the methods (`EngineInputs.proposals`) and the first rows.
        of: Name of a method: `dp` exact fronts, `olss` paths of timesteps with a fitted solver, `beam`, `presets`.

    Raises:
        ValueError: There is no such method, it has no rows on this space, or they do not match the genes.
    """

    def __init__(self, start: EngineInputs, of: str) -> None:
        if of not in start.proposals:
            there = ", ".join(start.proposals) or "none"
            raise ValueError(f"this search has no {of!r} rows; there are: {there}. Use engine=nsga2")
        proposed = start.proposals[of]()
        try:
            proposed = replace(start, seeds=proposed).seeds
        except ValueError as error:
            raise ValueError(f"the {of!r} rows do not fit the genes: {error}") from error
        zero = np.zeros_like(start.levels)
        self.rows = RowQueue(len(zero), [zero, *proposed, *start.seeds])

    def ask(self, n: int) -> np.ndarray:
        """The next rows of the list; none when all were handed out."""
        return self.rows.take(n)
