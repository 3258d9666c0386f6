"""Rows that a method computes once from calibration, evaluated and nothing more: engine=dp, olss, beam."""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from search.engines.base import EngineInputs
from search.engines.computed_rows import ComputedRowsEngine


class ProposalEngine(ComputedRowsEngine):
    """The zero row, the rows of the method `of` in its own order, then the seeds; scores change nothing.

    Any number of objectives.

    Args:
        start: Has the methods (`EngineInputs.proposals`) and the first rows.
        of: Name of a method: `dp` exact fronts, `olss` paths of timesteps with a fitted solver, `beam`, `presets`.

    `begin` raises ValueError where there is no such method, it has no rows on this space, or they do not match the
    genes.
    """

    def __init__(self, start: EngineInputs, of: str) -> None:
        super().__init__(start)
        self.of = of

    def compute_rows(self) -> Iterable[np.ndarray]:
        """The rows of the method; ValueError where it is unknown, or has none on this space."""
        start, of = self.start, self.of
        if of not in start.proposals:
            there = ", ".join(start.proposals) or "none"
            raise ValueError(f"this search has no {of!r} rows; there are: {there}. Use engine=nsga2")
        proposed = start.proposals[of]()
        try:
            proposed = replace(start, seeds=proposed).seeds
        except ValueError as error:
            raise ValueError(f"the {of!r} rows do not fit the genes: {error}") from error
        return [np.zeros_like(start.levels), *proposed, *start.seeds]
