"""Simulated annealing: moves that keep the budget, chains that share a front, and that it beats random search."""

from dataclasses import replace

import numpy as np
import pytest

from search.engines.anneal import NEAR, AnnealEngine
from search.engines.base import EngineInputs
from search.engines.random import RandomEngine
from search.pareto.domination import non_dominated
from search.spaces.gene import Gene
from search.testing.engine_contract import LearningContract, continue_, genes, scores
from tests.helpers.reuse_problem import STEPS
from tests.helpers.reuse_problem import search as run

GENES = [Gene(f"{stem}@{t}", levels) for t in range(10) for stem, levels in (("reuse", 2), ("bits", 5))]
ROW = np.array([1, 2] * 4 + [0, 4] * 3 + [0, 0] * 3)


class TestAnneal(LearningContract):
    make = AnnealEngine

    def test_three_objectives(self) -> None:
        assert len(continue_(self.engine(objectives=3), 10, objectives=3)) == 70

    def test_the_front_of_all_told_is_kept_in_any_order(self) -> None:
        engine = self.engine()
        x = np.concatenate([engine.ask(24), engine.ask(24)])
        y = scores(x)
        engine.tell(x[30:], y[30:])
        engine.tell(x[:30], y[:30])
        assert set(map(tuple, engine.front_y)) == set(map(tuple, y[non_dominated(y)]))

    def test_broken_rows_and_rows_beyond_the_bounds_lose(self) -> None:
        engine = AnnealEngine(replace(self.start(), worst=np.array([1.0, 9.0])))
        x = engine.ask(24)
        engine.tell(x[:8], np.full((8, 2), np.nan))
        engine.tell(x[8:16], np.stack([np.linspace(0, 1, 8), np.full(8, 90.0)], axis=1))
        assert (engine.y[:, 1] == 90).all()
        engine.tell(x[16:], np.full((8, 2), [0.5, 9.0]))
        assert (engine.front_y == [0.5, 9.0]).all()
        assert (engine.y == [0.5, 9.0]).all()

    @pytest.mark.filterwarnings("error::RuntimeWarning")
    def test_scores_that_are_not_finite_are_taken_without_warnings(self) -> None:
        engine = AnnealEngine(self.start())
        continue_(engine, 4, n=24)
        for broken in (np.nan, np.inf, 1e305, 1e308):
            x = engine.ask(8)
            engine.tell(x, np.full((len(x), 2), broken))
            AnnealEngine(self.start()).restore(engine.state())

    @pytest.mark.parametrize("name", ["weights", "y", "front_y"])
    @pytest.mark.parametrize("value", [np.nan, np.inf, 1e301])
    def test_a_state_whose_numbers_are_not_finite_is_refused(self, name: str, value: float) -> None:
        engine = AnnealEngine(self.start())
        continue_(engine, 2, n=24)
        state = engine.state()
        state[name] = np.full_like(state[name], value)
        with pytest.raises(ValueError, match=rf"{name}: row 0 has .*; give numbers from -1e\+300 to 1e\+300"):
            engine.restore(state)

    def test_temperature_falls_with_every_told_row_then_is_0(self) -> None:
        engine = AnnealEngine(self.start(), start_temperature=0.08, end_temperature=0.02, steps=20)
        seen = [engine.temperature]
        for _ in range(4):
            continue_(engine, 1, n=5)
            seen.append(engine.temperature)
        assert seen == pytest.approx([0.08, 0.08 * 0.25**0.25, 0.04, 0.08 * 0.25**0.75, 0])

    def test_climbing_starts_at_the_best_rows_and_never_goes_back(self) -> None:
        engine = AnnealEngine(self.start(), steps=40)
        continue_(engine, 10, n=4)
        for _ in range(10):
            best = engine._scalar(engine.front_y).min(axis=1)
            assert np.diagonal(engine._scalar(engine.y)) == pytest.approx(best)
            continue_(engine, 1, n=4)

    @pytest.mark.parametrize(
        ("arguments", "told"),
        [
            ({"chains": 1}, "1 chains cannot cover a front; use engine.chains=8, at least 2"),
            ({"end_temperature": 0.0}, r"from 0\.05 to 0\.0; use engine\.start_temperature=0\.05"),
            ({"start_temperature": 1e-4}, r"from 0\.0001 to 0\.001"),
            ({"steps": 0}, "0 steps of annealing are too few; use engine.steps=200, at least 1"),
        ],
    )
    def test_wrong_settings_are_refused(self, arguments: dict[str, float], told: str) -> None:
        with pytest.raises(ValueError, match=told):
            AnnealEngine(self.start(), **arguments)  # type: ignore[arg-type]


def moved(move: str, count: int = 300) -> np.ndarray:
    engine = AnnealEngine(EngineInputs(GENES, 2, np.random.default_rng(0)))
    x = np.repeat(ROW[None], count, axis=0)
    assert any([getattr(engine, move)(row) for row in x])
    return x


@pytest.mark.parametrize("move", ["_relocate", "_shift", "_trade"])
def test_moves_keep_the_budget_of_each_kind(move: str) -> None:
    x = moved(move)
    assert (x[:, ::2].sum(axis=1) == ROW[::2].sum()).all()
    assert (x[:, 1::2].sum(axis=1) == ROW[1::2].sum()).all()
    assert (x >= 0).all()
    assert (x[:, 1::2] < 5).all()
    assert (x != ROW).any(axis=0).mean() > 0.4


def test_relocations_are_mostly_near_and_a_trade_moves_one_level() -> None:
    hit = [np.flatnonzero(row != ROW) for row in moved("_relocate")]
    assert {len(places) for places in hit} == {2}
    far = np.array([(b - a) // 2 > NEAR for a, b in hit])
    assert 0.05 < far.mean() < 0.5
    change = moved("_trade") - ROW
    assert set(map(tuple, np.sort(change[change.any(axis=1)], axis=1)[:, [0, 1, -2, -1]].tolist())) == {(-1, 0, 0, 1)}
    assert not change[:, ::2].any()


def test_a_row_without_budget_moves_off_it() -> None:
    engine = AnnealEngine(EngineInputs(GENES, 2, np.random.default_rng(0)))
    zero = np.zeros(len(GENES), dtype=np.int64)
    assert all(np.count_nonzero(engine._move(zero)) == 1 for _ in range(50))
    assert not zero.any()


def test_single_genes_have_nothing_to_trade_or_shift_with() -> None:
    engine = AnnealEngine(EngineInputs([Gene("a", 3), Gene("b", 4)], 2, np.random.default_rng(0)))
    row = np.array([2, 3])
    assert not (engine._trade(row) or engine._shift(row) or engine._relocate(row))
    row = np.array([1, 2])
    assert not engine._trade(row)


def test_beats_random_search_at_equal_evaluations() -> None:
    none = np.zeros((0, STEPS - 1), dtype=np.int64)
    own = [run(AnnealEngine, seed, none) for seed in range(5)]
    assert np.median(own) > np.median([run(RandomEngine, seed, none) for seed in range(5)]) + 0.008


def test_genes_of_a_kind_share_stem_and_levels() -> None:
    some = [*GENES[:4], Gene("reuse@7", 3), Gene("reuse@8", 2, ordered=False), Gene("reuse@9", 1)]
    assert [kind.tolist() for kind in AnnealEngine(EngineInputs(some, 2, np.random.default_rng(0))).kinds] == [
        [0, 2],
        [1, 3],
        [4],
        [5],
    ]


def test_chains_of_three_objectives_have_the_corners_and_others() -> None:
    weights = AnnealEngine(EngineInputs(genes([3] * 4), 3, np.random.default_rng(0)), chains=6).weights
    assert weights.sum(axis=1) == pytest.approx(1)
    assert (weights > 0).all()
    assert np.diagonal(weights[:3]).min() > 0.9
