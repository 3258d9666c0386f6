import numpy as np
import pytest

from search.engines.base import Start
from search.engines.dp import DpEngine
from search.engines.nsga2 import Nsga2Engine
from search.engines.random import RandomEngine
from search.front import hypervolume
from search.spaces.base import Gene
from tests.engine_contract import EngineContract, start


class TestRandom(EngineContract):
    def make(self, start):
        return RandomEngine(start)

    def test_rows_differ_widely_in_how_much_is_off(self):
        off = (RandomEngine(start(seeds=0)).ask(200)[:, [0, 1, 3, 4, 6, 7]] == 0).mean(axis=1)
        assert off.min() < 0.2 and off.max() > 0.8


class TestNsga2(EngineContract):
    def make(self, start):
        return Nsga2Engine(start, population=8)

    def test_three_objectives(self):
        engine = Nsga2Engine(start(objectives=3), population=6)
        assert len(self.play(engine, 6, objectives=3)) == 42

    def test_a_failed_candidate_is_not_a_parent(self):
        engine = Nsga2Engine(start(), population=4)
        x = engine.ask(8)
        y = np.ones((8, 2))
        y[0] = np.nan
        engine.tell(x, y)
        assert not any(np.array_equal(x[0], p) for p in engine.parents[0])

    def test_a_population_of_one_says_what_to_type(self):
        with pytest.raises(ValueError, match="population 1 is too small; use engine.population=24"):
            Nsga2Engine(start(), population=1)


class TestDp(EngineContract):
    def make(self, start):
        return DpEngine(start)

    def test_without_a_front_it_says_what_to_use(self):
        with pytest.raises(ValueError, match="no genes for the DP front; use engine=nsga2"):
            DpEngine(start(seeds=0))


def structured(x: np.ndarray) -> np.ndarray:
    """Cost: computed genes. Error: every run of k genes that are not computed costs k squared, weighted by place."""
    cost = (x == 0).mean(axis=1)
    error = np.zeros(len(x))
    for i, row in enumerate(x):
        run = 0
        for j, value in enumerate(row):
            run = run + 1 if value else 0
            error[i] += run * (1 + j / 8)
    return np.stack([cost, error / 600], axis=1)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_nsga2_beats_random_at_equal_evaluations(seed):
    found = {}
    for make in (RandomEngine, Nsga2Engine):
        engine = make(Start([Gene(f"g{i}", 2) for i in range(24)], 2, np.random.default_rng(seed)))
        all_scores = []
        for _ in range(30):
            x = engine.ask(20)
            engine.tell(x, structured(x))
            all_scores.append(structured(x))
        found[make] = hypervolume(np.concatenate(all_scores), np.ones(2))
    assert found[Nsga2Engine] > found[RandomEngine] + 0.01
