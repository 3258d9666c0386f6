"""Rows that wait to be asked for: no row is handed out twice."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from search.engines.state import EngineState, Rows, keys_of_rows, stack_rows


class QueueState(EngineState):
    """State of a `RowQueue`: all rows that were ever added, and those that wait."""

    asked: Rows
    waiting: Rows


class RowQueue:
    """Rows x of G genes, handed out in the order in which they were added.

    Attributes:
        asked: The bytes of every row that was ever added.

    Example:
        >>> from search.engines.row_queue import RowQueue
        >>> queue = RowQueue(2, [[0, 0], [1, 0], [0, 0]])
        >>> len(queue), queue.take(5).tolist(), queue.add([1, 0])
        (2, [[0, 0], [1, 0]], False)
    """

    def __init__(self, genes: int, rows: Iterable[np.ndarray | list[int]] = ()) -> None:
        self.genes = genes
        self.asked: set[bytes] = set()
        self._waiting: list[np.ndarray] = []
        for row in rows:
            self.add(row)

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, row: np.ndarray | list[int]) -> bool:
        """Put a row [G] at the end; False where it was added before."""
        row = np.asarray(row, dtype=np.int64)
        key = row.tobytes()
        if key in self.asked:
            return False
        self.asked.add(key)
        self._waiting.append(row)
        return True

    def take(self, n: int) -> np.ndarray:
        """The next rows x [<=n, G]; none when all were handed out."""
        rows, self._waiting = self._waiting[:n], self._waiting[n:]
        return np.array(rows, dtype=np.int64).reshape(len(rows), self.genes)

    def state(self) -> dict[str, Any]:
        """Plain data for `restore`, as `QueueState` describes it."""
        return {
            "asked": stack_rows(sorted(self.asked), self.genes),
            "waiting": stack_rows(self._waiting, self.genes),
        }

    def restore(self, state: QueueState) -> None:
        """Take over what `state` returned."""
        self.asked, self._waiting = set(keys_of_rows(state.asked)), list(state.waiting)
