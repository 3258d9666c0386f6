"""Exhaustive search: every row once, seeds first, and a limit."""

import itertools

import numpy as np
import pytest

from search.engines.base import Engine, EngineInputs
from search.engines.exhaustive import ExhaustiveEngine
from search.pareto.domination import non_dominated
from search.testing.engine_contract import EngineContract, genes, resumed, scores


class TestExhaustive(EngineContract):
    LEVELS = (3, 2, 4, 3, 2, 4, 3, 1, 1, 5)  # the contract's own would be above the limit
    make = ExhaustiveEngine

    def start(self, levels: tuple[int, ...] = LEVELS, seed: int = 0, objectives: int = 2) -> EngineInputs:
        return super().start(levels, seed, objectives)

    def test_rows_do_not_depend_on_how_calls_are_split(self) -> None:
        whole, split = self.engine(), self.engine()
        assert whole.ask(40).tolist() == [row for n in (1, 0, 13, 26) for row in split.ask(n).tolist()]


@pytest.mark.parametrize("levels", [(2, 1, 3), (2,) * 8, (5, 4, 3, 2), ()])
def test_every_row_comes_once(levels: tuple[int, ...]) -> None:
    seeds = np.array([[min(1, n - 1) for n in levels]] * 2)
    engine = ExhaustiveEngine(EngineInputs(genes(levels), 2, np.random.default_rng(0), seeds))
    found = list(map(tuple, [*engine.ask(2).tolist(), *engine.ask(10_000).tolist()]))
    assert found[0] == tuple(seeds[0])
    assert sorted(found) == list(itertools.product(*map(range, levels)))
    assert [row for row in found if row != found[0]] == sorted(set(found) - {found[0]})


def test_finds_the_true_front() -> None:
    levels = (3, 2, 4, 3)
    inputs = EngineInputs(genes(levels), 3, np.random.default_rng(0))
    engine: Engine = ExhaustiveEngine(inputs)
    x = []
    while len(rows := engine.ask(10)):
        x.append(rows)
        engine = resumed(engine, inputs, ExhaustiveEngine)
    y = scores(np.concatenate(x), 3)
    every = scores(np.array(list(itertools.product(*map(range, levels)))), 3)
    assert set(map(tuple, y[non_dominated(y)])) == set(map(tuple, every[non_dominated(every)]))


@pytest.mark.parametrize(
    ("levels", "limit", "told"),
    [
        ((2,) * 48, 20_000, r"this space has 2\.8e14 rows, more than limit 20000; use engine=nsga2, or raise engine"),
        ((40,) * 300, 20_000, r"4\.1e480 rows"),
        ((3, 4), 11, "12 rows, more than limit 11"),
    ],
)
def test_large_spaces_are_refused(levels: tuple[int, ...], limit: int, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        ExhaustiveEngine(EngineInputs(genes(levels), 2, np.random.default_rng(0)), limit)


def test_the_limit_itself_is_admissible() -> None:
    assert len(ExhaustiveEngine(EngineInputs(genes((3, 4)), 2, np.random.default_rng(0)), 12).ask(99)) == 12
