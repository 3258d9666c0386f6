"""What an engine is: it proposes rows of integers and is told their scores. Lower is better."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from search.profile.tables import GeneTable
from search.spaces.base import Gene


@dataclass(frozen=True)
class EngineInputs:
    """What an engine begins with.

    `seeds` [S, G] are rows that deserve to be tried first: presets, DP front. `worst` [M] are scores beyond
    which a row is worth nothing (empty: no such bound). `proposals` make rows by a named method ("dp", "olss",
    "beam") when called, `table` measures the additive table when called; both raise ValueError with a reason
    where the space has none. `prior` says of rows x [N, G] what calibration expects, any numbers [N, K] that scores
    follow roughly; it is plain data.
    """

    genes: Sequence[Gene]
    objectives: int
    rng: np.random.Generator
    seeds: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), dtype=np.int64))
    worst: np.ndarray = field(default_factory=lambda: np.zeros(0))
    proposals: Mapping[str, Callable[[], np.ndarray]] = field(default_factory=dict)
    table: Callable[[], GeneTable] | None = None
    prior: Callable[[np.ndarray], np.ndarray] | None = None

    def __getstate__(self) -> dict[str, object]:
        """Without what measures: rows are proposed when the engine is made, and a pickled engine has them."""
        return self.__dict__ | {"proposals": {}, "table": None}

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
        """Scores y [N, M] of rows x [N, G] as floats; ValueError where their shape is another."""
        y = np.asarray(y, dtype=float)
        if y.shape != (len(x), self.objectives):
            raise ValueError(f"scores have shape {y.shape}; give [{len(x)}, {self.objectives}]")
        return y

    @property
    def levels(self) -> np.ndarray:
        return np.array([gene.levels for gene in self.genes], dtype=np.int64)


class Engine(ABC):
    """Ask and tell. State is plain data and must survive pickle: that is how a search resumes."""

    @property
    def report(self) -> Mapping[str, float]:
        """Numbers about the engine itself, for the log of every generation."""
        return {}

    @abstractmethod
    def ask(self, n: int) -> np.ndarray:
        """Up to n rows x [N, G] of int64 with 0 <= x < levels; fewer, or none, when nothing is left to try."""

    def tell(self, x: np.ndarray, y: np.ndarray) -> None:  # noqa: B027 - random search has no use for scores
        """Scores y [N, M] of rows x [N, G], all to be minimised."""
