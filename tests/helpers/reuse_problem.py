"""A search problem in NumPy: which of 25 steps reuse the last computed value, with what cost and what error."""

from collections.abc import Callable

import numpy as np

from search.engines.base import Engine, EngineInputs
from search.pareto.domination import hypervolume
from search.spaces.gene import Gene

STEPS = 25


def tables() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    weight = np.exp(-np.arange(STEPS) / 6) + 0.1
    gap = np.maximum(np.arange(STEPS)[None] - np.arange(STEPS)[:, None], 0)
    return gap**1.3 * rng.uniform(0.5, 1.5, size=(STEPS, STEPS)), weight / weight.sum()


def toy(x: np.ndarray) -> np.ndarray:
    """Share of zero genes, and the error: a table entry per reuse, less where neighbours two apart agree."""
    reuse, weight = tables()
    masks = np.concatenate([np.ones((len(x), 1), dtype=bool), x == 0], axis=1)
    last = np.maximum.accumulate(np.where(masks, np.arange(STEPS), 0), axis=1)
    error = (weight * reuse[last, np.arange(STEPS)]).sum(axis=1)
    agree = (masks[:, 2:] == masks[:, :-2]).mean(axis=1)
    return np.stack([masks[:, 1:].mean(axis=1), error * (1.5 - agree)], axis=1)


def volume(y: np.ndarray) -> float:
    worst = toy(np.ones((1, STEPS - 1), dtype=np.int64))[0, 1]
    return hypervolume(y / [1, worst], np.ones(2))


def search(make: Callable[[EngineInputs], Engine], seed: int, seeds: np.ndarray, evaluations: int = 480) -> float:
    some = [Gene(f"reuse@{t}", 2, group=f"step {t}") for t in range(1, STEPS)]
    engine = make(EngineInputs(some, 2, np.random.default_rng(seed), seeds))
    found: list[np.ndarray] = []
    while sum(map(len, found)) < evaluations:
        x = engine.ask(24)
        found.append(toy(x))
        engine.tell(x, found[-1])
    return volume(np.concatenate(found))
