"""Exhaustive search: every row of a small space, the ground truth that other engines are compared with."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from search.engines.base import Engine, EngineInputs
from search.engines.state import Count, EngineState, Rows, stack_rows


class ExhaustiveState(EngineState):
    """State of an `ExhaustiveEngine`: the seeds that wait, and the number of the next row."""

    waiting: Rows
    next: Count


class ExhaustiveEngine(Engine):
    """The seeds, then every other row by counting up like an odometer, the last gene fastest.

    Any number of objectives: `tell` is ignored.

    Args:
        start: The genes and the first rows.
        limit: The largest number of rows of a space that is searched.

    Raises:
        ValueError: The space has more rows than `limit`.

    Example:
        >>> import numpy as np
        >>> from search.engines.base import EngineInputs
        >>> from search.engines.exhaustive import ExhaustiveEngine
        >>> from search.spaces.gene import Gene
        >>> start = EngineInputs([Gene("a", 2), Gene("b", 2)], objectives=2, rng=np.random.default_rng(0))
        >>> ExhaustiveEngine(start).ask(10).tolist()
        [[0, 0], [0, 1], [1, 0], [1, 1]]
    """

    def __init__(self, start: EngineInputs, limit: int = 20_000) -> None:
        self.start, self.levels = start, start.levels.tolist()
        self.count = math.prod(self.levels)  # Python's integers: no space is too large to be counted
        if self.count > limit:
            raise ValueError(
                f"this space has {_short(self.count)} rows, more than limit {limit}; "
                "use engine=nsga2, or raise engine.limit"
            )
        self.waiting = list(dict.fromkeys(map(tuple, start.seeds.tolist())))
        self.seeds = frozenset(self.waiting)
        self.next = 0  # the number of the row to come, its genes being the digits

    def ask(self, n: int) -> np.ndarray:
        """The next n rows, however they are split into calls."""
        rows, self.waiting = self.waiting[: max(n, 0)], self.waiting[max(n, 0) :]
        while len(rows) < n and self.next < self.count:
            row = self._row(self.next)
            self.next += 1
            if row not in self.seeds:
                rows.append(row)
        return np.array(rows, dtype=np.int64).reshape(len(rows), len(self.levels))

    def state(self) -> dict[str, Any]:
        """The seeds that wait, and the number of the next row."""
        return {"waiting": stack_rows(map(np.array, self.waiting), len(self.levels)), "next": self.next}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` returned."""
        saved = ExhaustiveState.read(state, self.start)
        self.waiting, self.next = list(map(tuple, saved.waiting.tolist())), saved.next

    def _row(self, number: int) -> tuple[int, ...]:
        row = []
        for levels in reversed(self.levels):
            number, digit = divmod(number, levels)
            row.append(digit)
        return tuple(reversed(row))


def _short(count: int) -> str:
    """A whole number, or 3.5e14 from a million on; floats would overflow at 1e308."""
    if count < 1_000_000:
        return str(count)
    power = math.log10(count)
    return f"{10 ** (power % 1):.1f}e{int(power)}"
