"""What an engine is: it proposes rows of integers and receives their scores. Lower is better."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from search.spaces.gene import Gene

if TYPE_CHECKING:
    from search.profile.tables import GeneTable


@dataclass(frozen=True)
class EngineInputs:
    """What an engine begins with.

    Attributes:
        genes: The decisions, G of them.
        objectives: The number of scores M of a row.
        rng: The source of all random numbers of the engine.
        seeds: Rows [S, G] to try first: presets, exact fronts.
        worst: Scores [M] beyond which a row is worthless; empty for no such bound.
        proposals: Functions that make rows [N, G], by method ("dp", "olss", "beam"), for `Engine.begin`. They raise
            ValueError with a reason where the space has none.
        table: Measures the additive table, for `Engine.begin`; raises ValueError with a reason where the space has
            none.
        prior: For rows [N, G] any numbers [N, K] that scores follow roughly, from calibration; plain data.

    Example:
        >>> import numpy as np
        >>> from search.engines.base import EngineInputs
        >>> from search.spaces.gene import Gene
        >>> start = EngineInputs([Gene("a", 2), Gene("b", 3)], objectives=2, rng=np.random.default_rng(0))
        >>> start.levels.tolist(), start.seeds.shape
        ([2, 3], (0, 2))
    """

    genes: Sequence[Gene]
    objectives: int
    rng: np.random.Generator
    seeds: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), dtype=np.int64))
    worst: np.ndarray = field(default_factory=lambda: np.zeros(0))
    proposals: Mapping[str, Callable[[], np.ndarray]] = field(default_factory=dict)
    table: "Callable[[], GeneTable] | None" = None
    prior: Callable[[np.ndarray], np.ndarray] | None = None

    def __post_init__(self) -> None:
        seeds, count = np.asarray(self.seeds), len(self.genes)
        if seeds.ndim != 2 or (len(seeds) and seeds.shape[1] != count):
            raise ValueError(f"seeds have shape {seeds.shape}; give rows [S, {count}], one column per gene")
        seeds = seeds.reshape(len(seeds), count)
        for row, column in np.argwhere((seeds < 0) | (seeds >= self.levels) | (seeds != np.floor(seeds))):
            gene = self.genes[column]
            raise ValueError(f"seed {row} has {seeds[row, column]} at gene {gene.name!r}; use 0 to {gene.levels - 1}")
        object.__setattr__(self, "seeds", seeds.astype(np.int64))

    def scores(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Scores y [N, M] of rows x [N, G] as floats; ValueError where they have another shape."""
        y = np.asarray(y, dtype=float)
        if y.shape != (len(x), self.objectives):
            raise ValueError(f"scores have shape {y.shape}; give [{len(x)}, {self.objectives}]")
        return y

    @property
    def levels(self) -> np.ndarray:
        """The number of levels of each gene [G]."""
        return np.array([gene.levels for gene in self.genes], dtype=np.int64)


class Engine(ABC):
    """A search algorithm that is asked for rows and receives their scores.

    A subclass takes an `EngineInputs` as its first argument. A new search calls `begin` once, before the first `ask`.
    After each generation it saves `state()`; a search that is resumed makes the engine anew, from the same arguments,
    genes and seeds, and calls `restore` instead of `begin`. The random generator of the inputs is saved and restored
    by the search.

    Example:
        >>> import numpy as np
        >>> from search.engines.base import EngineInputs
        >>> from search.engines.random import RandomEngine
        >>> from search.spaces.gene import Gene
        >>> engine = RandomEngine(EngineInputs([Gene("a", 2), Gene("b", 3)], 2, np.random.default_rng(0)))
        >>> rows = engine.ask(4)
        >>> rows.shape
        (4, 2)
        >>> engine.tell(rows, np.zeros((4, 2)))
        >>> sorted(engine.state())
        ['asked', 'waiting']
    """

    @property
    def report(self) -> Mapping[str, float]:
        """Numbers about the engine, by name, for the log of every generation."""
        return {}

    def begin(self) -> None:  # noqa: B027 - most engines measure nothing
        """Measure what the first rows need, with `table` and `proposals` of the inputs; not called on resuming."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """All that changes while the engine is asked and receives scores, as plain data.

        Returns:
            A dictionary with texts as keys; its values are numbers, texts, booleans, None, NumPy arrays of numbers, and
            lists and dictionaries of these. `search.engines.state` has types for a schema, and functions for rows.
        """

    @abstractmethod
    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` returned, so that the next rows are those that would have followed.

        Args:
            state: It comes from a file and may be wrong: check it, for example by a schema (`EngineState`).

        Raises:
            ValueError: An entry is missing or does not fit; names the entry.
        """

    @abstractmethod
    def ask(self, n: int) -> np.ndarray:
        """The rows to evaluate next.

        Args:
            n: How many rows at most.

        Returns:
            x [N, G] of int64 with 0 <= x < levels; fewer than n, or none, when no row is left to try.
        """

    def tell(self, x: np.ndarray, y: np.ndarray) -> None:  # noqa: B027 - random search has no use for scores
        """Receive scores.

        Args:
            x: Rows [N, G].
            y: Their scores [N, M], all to be minimised; a diverged row has NaN or infinity.
        """
