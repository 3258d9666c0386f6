"""NSGA-III (Deb and Jain 2014, doi:10.1109/TEVC.2013.2281535), for three objectives and more."""

import math
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from search.engines.base import EngineInputs
from search.engines.nsga2 import Nsga2Engine, Nsga2State, survivors
from search.engines.state import Floats


class Nsga3State(Nsga2State):
    """State of an `Nsga3Engine`: also the least scores so far, and directions of the parents."""

    together = (("x", "y", "excess", "rank", "niche", "distance"),)
    ideal: Floats
    niche: Floats
    distance: Floats


class Nsga3Engine(Nsga2Engine):
    """NSGA-II with another survival: reference directions share out the places, not crowding.

    Parents are picked at random; with `unified` two of the same direction are compared by rank, then by distance
    to it (U-NSGA-III: Seada and Deb 2016, doi:10.1109/TEVC.2015.2459718). Bounds are as in NSGA-II.

    Survival is pymoo's on scores scaled to the range of all rows at hand: pymoo treats ranges below 1e-6 as 0, and
    drift may be that small.

    Args:
        start: The genes, the generator and the first rows.
        population: The number of parents, at least as many as there are objectives.
        unified: See above.

    Raises:
        ValueError: The population is too small.
    """

    def __init__(self, start: EngineInputs, population: int = 24, unified: bool = False) -> None:
        if population < max(2, start.objectives):
            least = max(2, start.objectives)
            raise ValueError(
                f"population {population} is too small for {start.objectives} objectives; "
                f"use engine.population=24, at least {least}"
            )
        self.unified = unified
        self.directions = directions(start.objectives, population)  # [D, M]
        self.ideal = np.full(start.objectives, np.inf)  # the least of each score so far
        self.niche, self.distance = np.zeros(0), np.zeros(0)  # [P] each
        super().__init__(start, population)

    def state(self) -> dict[str, Any]:
        """The rows that wait, the parents with their directions, and the least scores so far."""
        return super().state() | {"ideal": self.ideal, "niche": self.niche, "distance": self.distance}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` returned."""
        saved = Nsga3State.read(state, self.start)
        if len(saved.ideal) != self.start.objectives:
            raise ValueError(f"ideal: has {len(saved.ideal)} scores; give {self.start.objectives}")
        self._take_over(saved)
        self.ideal, self.niche, self.distance = saved.ideal, saved.niche, saved.distance

    def _survive(self, y: np.ndarray, over: np.ndarray) -> np.ndarray:
        """Indices [P] of the rows that stay, and for the tournaments rank, direction and distance to it."""
        from pymoo.algorithms.moo.nsga3 import ReferenceDirectionSurvival

        within = y[over == 0] if (over == 0).any() else np.zeros((1, y.shape[1]))
        if (over == 0).any():
            self.ideal = np.minimum(self.ideal, within.min(axis=0))
        low, high = np.minimum(self.ideal, within.min(axis=0)), within.max(axis=0)
        scaled = (y - low) / np.where(high > low, high - low, 1.0)
        survival = ReferenceDirectionSurvival(self.directions)
        survival.norm.ideal_point = np.zeros(y.shape[1])
        with warnings.catch_warnings():  # pymoo switches all warnings off for good
            names = ("rank", "niche", "dist_to_niche")
            kept, self.rank, self.niche, self.distance = survivors(self, survival, scaled, over, *names)
        return kept.astype(int)

    def _better(self, a: int, b: int) -> bool:
        if self.unified and self.niche[a] == self.niche[b]:
            return bool((self.rank[a], self.distance[a]) <= (self.rank[b], self.distance[b]))
        return bool(self.start.rng.random() < 0.5)


def directions(objectives: int, count: int) -> np.ndarray:
    """At most `count` reference directions [D, M] on the simplex, evenly spread.

    The finest Das-Dennis lattice of at most `count` points. Where all of its points lie on the boundary, `count`
    directions of least Riesz energy instead (Blank et al. 2021, doi:10.1109/TEVC.2020.2992387).

    Example:
        >>> from search.engines.nsga3 import directions
        >>> directions(2, 4).round(2).tolist()
        [[0.0, 1.0], [0.33, 0.67], [0.67, 0.33], [1.0, 0.0]]
    """
    from pymoo.util.ref_dirs import get_reference_directions

    parts = 1
    while math.comb(objectives + parts, objectives - 1) <= count and objectives > 1:
        parts += 1
    directions: np.ndarray
    if parts >= objectives:
        directions = get_reference_directions("das-dennis", objectives, n_partitions=parts)
    else:
        directions = get_reference_directions("energy", objectives, count, seed=1)
    return directions
