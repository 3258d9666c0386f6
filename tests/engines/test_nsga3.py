"""NSGA-III: directions, survival, tournaments, and that it covers three objectives."""

import warnings
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

from search.engines.base import Engine, EngineInputs
from search.engines.nsga2 import Nsga2Engine
from search.engines.nsga3 import Nsga3Engine, directions
from search.pareto.domination import hypervolume
from search.testing.engine_contract import EngineContract, EvolutionContract, continue_, genes, scores


class TestNsga3(EvolutionContract):
    make = Nsga3Engine

    @pytest.mark.parametrize("broken", [0, 1])
    def test_a_diverged_row_never_becomes_a_parent_while_others_are_there(self, broken: int) -> None:
        engine = self.engine()
        for bad in (np.nan, np.inf, -np.inf):
            x = engine.ask(24)
            y = scores(x)
            y[::2, broken], y[::2, 1 - broken] = bad, -5
            engine.tell(x, y)
            assert (engine.parents[1][:12] < 1e100).all()
            assert (engine.ideal >= 0).all()

    def test_the_units_of_scores_do_not_matter(self) -> None:
        found = []
        for unit in (1.0, 2.0**-40):
            engine, rows = self.engine(), []
            for _ in range(8):
                x = engine.ask(12)
                engine.tell(x, scores(x) * [unit, 1 / unit])
                rows.append(x.tolist())
            found.append(rows)
        assert found[0] == found[1]

    def test_warnings_stay_as_they_were(self) -> None:
        before = list(warnings.filters)
        continue_(self.engine(), 3)
        assert warnings.filters == before

    def test_each_direction_keeps_its_row(self) -> None:
        start = EngineInputs(genes([40, 40]), 2, np.random.default_rng(0))
        engine = Nsga3Engine(start, population=5)
        x = np.array([[i, 39 - i] for i in range(40)])
        engine.tell(x, x.astype(float))  # all are on the front; the directions are 0, 1/4 .. 1
        assert sorted(engine.parents[0][:, 0]) == pytest.approx([0, 39 / 4, 39 / 2, 39 * 3 / 4, 39], abs=1)


class TestUnified(EngineContract):
    make = partial(Nsga3Engine, unified=True)

    def engine(self, *args: object, **kwargs: object) -> Engine:
        return Nsga3Engine(self.start(*args, **kwargs), unified=True)  # type: ignore[arg-type]

    def test_tournaments_compare_within_a_direction_only(self) -> None:
        engine = self.engine()
        engine.rank, engine.niche = np.array([0, 1, 0, 0]), np.array([2, 2, 2, 1])
        engine.distance = np.array([0.5, 0.0, 0.1, 0.9])
        assert engine._better(0, 1)
        assert not engine._better(1, 2)
        assert engine._better(2, 0)
        assert 20 < sum(engine._better(3, 0) for _ in range(100)) < 80
        engine.unified = False
        assert 20 < sum(engine._better(0, 1) for _ in range(100)) < 80


@pytest.mark.parametrize(("objectives", "count", "got"), [(1, 24, 1), (2, 24, 24), (3, 24, 21), (3, 10, 10), (6, 8, 8)])
def test_directions_fit_and_lie_on_the_simplex(objectives: int, count: int, got: int) -> None:
    found = directions(objectives, count)
    assert found.shape == (got, objectives)
    assert found.sum(axis=1) == pytest.approx(1)
    assert (found >= 0).all()


@pytest.mark.parametrize(("population", "objectives", "least"), [(1, 2, 2), (2, 3, 3)])
def test_too_small_populations_are_refused(population: int, objectives: int, least: int) -> None:
    told = f"population {population} is too small for {objectives} obj.*use engine.population=24, at least {least}"
    with pytest.raises(ValueError, match=told):
        Nsga3Engine(EngineInputs(genes([3] * 4), objectives, np.random.default_rng(0)), population)


def dtlz2(x: np.ndarray) -> np.ndarray:
    """DTLZ2 (Deb et al. 2002) on integers 0..10: two genes of place, the others of distance, best at 5."""
    a, b = (x[:, i] / 10 * np.pi / 2 for i in range(2))
    far = 1 + ((x[:, 2:] / 10 - 0.5) ** 2).sum(axis=1)
    return np.stack([far * np.cos(a) * np.cos(b), far * np.cos(a) * np.sin(b), far * np.sin(a)], axis=1)


def reached(make: Callable[[EngineInputs], Engine], seed: int) -> float:
    engine = make(EngineInputs(genes([11] * 12, group_size=1), 3, np.random.default_rng(seed)))
    found = []
    for _ in range(40):
        x = engine.ask(24)
        found.append(dtlz2(x))
        engine.tell(x, found[-1])
    return hypervolume(np.concatenate(found), np.full(3, 1.5))


@pytest.mark.slow
def test_covers_three_objectives_no_worse_than_nsga2() -> None:
    # Medians of 12 seeds: NSGA-II 2.629, NSGA-III 2.627, unified 2.625, random search 1.07.
    two = np.median([reached(Nsga2Engine, seed) for seed in range(5)])
    for make in (Nsga3Engine, partial(Nsga3Engine, unified=True)):
        assert np.median([reached(make, seed) for seed in range(5)]) > two - 0.06
