"""Engines whose rows are computed once, before the first one is asked for; scores change nothing."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from search.engines.base import Engine, EngineInputs
from search.engines.row_queue import QueueState, RowQueue


class ComputedRowsEngine(Engine):
    """Hands out the rows of `compute_rows`, each once, in their order. Any number of objectives.

    They are computed by `begin`, or when the first ones are asked for; a search that is resumed has them in its state.
    """

    def __init__(self, start: EngineInputs) -> None:
        self.start = start
        self._queue: RowQueue | None = None  # until the rows are computed

    @abstractmethod
    def compute_rows(self) -> Iterable[np.ndarray]:
        """All rows [G], the first one to be asked for first; ValueError where there are none on this space."""

    @property
    def queue(self) -> RowQueue:
        """The rows that wait; computes them first where that was not done."""
        if self._queue is None:
            self._queue = RowQueue(len(self.start.genes), self.compute_rows())
        return self._queue

    def begin(self) -> None:
        """Compute the rows; ValueError where there are none on this space."""
        self._queue = self.queue

    def ask(self, n: int) -> np.ndarray:
        """The next rows of the list; none when all were handed out."""
        return self.queue.take(n)

    def state(self) -> dict[str, Any]:
        """All rows, and those that wait."""
        return self.queue.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` returned."""
        queue = RowQueue(len(self.start.genes))
        queue.restore(QueueState.read(state, self.start))
        self._queue = queue
