"""Every entry of every engine's state, replaced by values that a stranger could write: refused, or the engine goes on.

A checkpoint has a digest, which anybody can compute: what is in it has to be checked.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from search.engines.anneal import AnnealEngine
from search.engines.autodiffusion import AutoDiffusionEngine
from search.engines.base import Engine, EngineInputs
from search.engines.bayes import BayesEngine
from search.engines.computed_rows import ComputedRowsEngine
from search.engines.ecad import EcadEngine
from search.engines.exhaustive import ExhaustiveEngine
from search.engines.nsga2 import Nsga2Engine
from search.engines.nsga3 import Nsga3Engine
from search.engines.predictor import PredictorEngine
from search.engines.random import RandomEngine
from search.loop.checkpoint import from_bytes, to_bytes
from search.testing.engine_contract import continue_, genes, some_seeds

LEVELS = (3, 2, 4, 3, 2, 1)


class Computed(ComputedRowsEngine):
    def compute_rows(self) -> list[np.ndarray]:
        return [np.full(len(LEVELS), 0), *self.start.seeds]


ENGINES = {
    "anneal": AnnealEngine,
    "autodiffusion": lambda inputs: AutoDiffusionEngine(inputs, population=6),
    "bayes": lambda inputs: BayesEngine(inputs, startup=4),
    "computed": Computed,
    "ecad": lambda inputs: EcadEngine(inputs, population=6),
    "exhaustive": ExhaustiveEngine,
    "nsga2": lambda inputs: Nsga2Engine(inputs, population=6),
    "nsga3": lambda inputs: Nsga3Engine(inputs, population=6),
    "predictor": lambda inputs: PredictorEngine(inputs, population=6, warmup=6),
    "random": RandomEngine,
}


def made(name: str, seed: int) -> Engine:
    inputs = EngineInputs(genes(LEVELS), 2, np.random.default_rng(seed), some_seeds(LEVELS))
    return ENGINES[name](inputs)


def entries(state: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(state, dict):
        for name, value in state.items():
            yield from entries(value, (*place, name))
    else:
        yield place, state


def changed(state: Any, place: tuple[str, ...], value: Any) -> Any:
    return {**state, place[0]: changed(state[place[0]], place[1:], value)} if place else value


def wrong_values(value: Any) -> Iterator[Any]:
    yield from (None, "text", -1, 2**70, 1.5, [], {}, True, 0, 10**6)
    if isinstance(value, np.ndarray):
        yield from (value[:0], value[1:], np.concatenate([value, value[:1]]), value.reshape(-1), value[None])
        yield from (value.astype(float), np.zeros_like(value))
        if value.dtype == float:
            yield from (np.full_like(value, number) for number in (np.nan, np.inf, 1e308))


@pytest.mark.slow
@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("name", ENGINES)
def test_a_state_with_a_wrong_entry_is_refused_or_used(name: str) -> None:
    engine = made(name, 0)
    continue_(engine, 5, n=6)
    state = from_bytes(to_bytes(engine.state()))
    refused = 0
    for place, value in entries(state):
        for wrong in wrong_values(value):
            twin = made(name, 1)
            try:
                twin.restore(changed(state, place, wrong))
            except ValueError as error:
                assert place[-1] in str(error), (place, wrong)
                refused += 1
            else:
                continue_(twin, 3, n=5)
    assert refused > 10
