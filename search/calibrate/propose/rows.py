"""Rows of several spaces combined to rows of the space that a search has."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from search.exact.rows import spread_indices, unique_rows
from search.profile.target import Target
from search.spaces.base import Space

PICKS = 5  # rows of each space that are combined with rows of the other spaces
COMBINED = 32
Tokens = dict[str, list[str]]


class RowBuilder:
    """Rows [G] of a space, from rows of the single spaces that it is made of."""

    def __init__(self, space: Space, target: Target) -> None:
        self.space, self.target = space, target
        self.single_spaces = {single.key: single for single in space.single_spaces}

    def join(self, rows: Mapping[str, np.ndarray]) -> np.ndarray:
        """One row from rows of single spaces by key; the other spaces are off."""
        return self.space.join(rows, self.target)

    def lift(self, key: str, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Rows of one single space, all other spaces off."""
        return [self.join({key: row}) for row in rows]

    def stack(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        """Rows as an array [N, G], each once, without those that are all off."""
        unique = unique_rows(rows)
        return np.array(unique, dtype=np.int64).reshape(len(unique), len(self.space.genes(self.target)))

    def stack_of(self, make_rows: Callable[[], list[np.ndarray]]) -> np.ndarray:
        """The rows that `make_rows` returns, as an array."""
        return self.stack(make_rows())

    def encode(self, method: str, plans: Iterable[Tokens]) -> list[np.ndarray]:
        """Rows of the space for actions of component kinds.

        Raises:
            ValueError: No space reuses anything, or none has genes for component kinds; names the method.
        """
        if not self.reusing_spaces:
            raise ValueError(f"{method} reuses components, and {self.space.key} reuses none; use +space=cache")
        rows = [self.space.encode(tokens, self.target) for tokens in plans]
        if all(row is None for row in rows):
            raise ValueError(
                f"{method} reuses whole component kinds, which this granularity has no genes for; "
                "use space.cache.granularity=component"
            )
        return unique_rows(rows)

    @property
    def reusing_spaces(self) -> list[Space]:
        """The single spaces that reuse or forecast values."""
        return [space for space in self.single_spaces.values() if space.reuses_values(self.target)]

    def combine(
        self, rows_by_space: Mapping[str, Sequence[np.ndarray]], price: Callable[[str, np.ndarray], float]
    ) -> list[np.ndarray]:
        """Rows of all spaces at once, from a few rows of each that are spread over their price; always the same."""
        if len(rows_by_space) < 2:
            return []
        picks: dict[str, list[np.ndarray]] = {}
        for key, rows in rows_by_space.items():
            if rows:
                order = np.argsort([price(key, row) for row in rows], kind="stable") if len(rows) > 1 else [0]
                picks[key] = [rows[order[i]] for i in spread_indices(len(rows), PICKS)]
        rng = np.random.default_rng(0)
        drawn = [{key: rows[rng.integers(len(rows))] for key, rows in picks.items()} for _ in range(COMBINED)]
        return unique_rows([self.join(rows) for rows in drawn])
