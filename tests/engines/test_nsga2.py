"""NSGA-II: generation 0, moves, survival, and that it beats random search."""

from dataclasses import replace

import numpy as np
import pytest

from search.engines.base import EngineInputs
from search.engines.nsga2 import MOVES, Nsga2Engine, excess
from search.engines.random import RandomEngine
from search.exact.segments import reuse_front
from search.pareto.domination import non_dominated
from search.spaces.gene import Gene
from search.testing.engine_contract import EvolutionContract, continue_, genes, scores, some_seeds
from tests.helpers.reuse_problem import STEPS, search, tables, toy, volume


class TestNsga2(EvolutionContract):
    make = Nsga2Engine

    def test_generation_0_is_zero_seeds_and_a_fill(self) -> None:
        start = self.start()
        x = Nsga2Engine(start, population=10).ask(99)
        assert len(x) == 10
        assert (x[0] == 0).all()
        assert (x[1 : 1 + len(start.seeds)] == start.seeds).all()

    def test_more_seeds_than_places_are_all_tried(self) -> None:
        seeds = some_seeds(self.LEVELS, 30)
        start = EngineInputs(genes(self.LEVELS), 2, np.random.default_rng(0), np.concatenate([seeds, seeds]))
        x = Nsga2Engine(start, population=4).ask(99)
        assert len(x) == 1 + len(seeds)
        assert {tuple(row) for row in seeds.tolist()} < {tuple(row) for row in x.tolist()}

    def test_without_seeds_generation_0_is_spread(self) -> None:
        start = EngineInputs(genes([3] * 40), 2, np.random.default_rng(0))
        assert np.ptp((Nsga2Engine(start).ask(24) > 0).mean(axis=1)) > 0.6

    def test_asking_ahead_of_any_score_works(self) -> None:
        engine = self.engine()
        sizes = [len(engine.ask(24)) for _ in range(3)]
        assert sizes == [24, 24, 24]

    def test_three_objectives(self) -> None:
        engine = self.engine(objectives=3)
        assert len(continue_(engine, 10, objectives=3)) == 70

    @pytest.mark.parametrize("broken", [0, 1])
    def test_a_diverged_row_never_becomes_a_parent_while_others_are_there(self, broken: int) -> None:
        engine = self.engine()
        for bad in (np.nan, np.inf, -np.inf):
            x = engine.ask(24)
            y = scores(x)
            y[::2, broken], y[::2, 1 - broken] = bad, -5  # the cheapest of all, but broken
            engine.tell(x, y)
            assert (engine.parents[1] >= 0).all()
            assert (engine.parents[1][:12] < 1e100).all()

    def test_parents_are_the_front(self) -> None:
        engine = self.engine()
        x = np.concatenate([engine.ask(24), engine.ask(24)])
        y = scores(x)
        engine.tell(x[30:], y[30:])
        engine.tell(x[:30], y[:30])
        front = {tuple(row) for row in y[non_dominated(y)]}
        assert front <= {tuple(row) for row in engine.parents[1]}

    def test_tournaments_prefer_rank_then_crowding(self) -> None:
        engine = self.engine()
        x = np.eye(len(self.LEVELS), dtype=np.int64)[:3]  # gene i names row i
        engine.tell(x, scores(x))
        engine.parents = (x, scores(x))
        engine.rank, engine.crowding = np.array([1.0, 0.0, 0.0]), np.array([9.0, 1.0, 2.0])
        won = np.bincount([int(engine._select().argmax()) for _ in range(900)], minlength=3)
        # Of nine pairs the best row wins all five that it is in, the next three, the last only the one with itself.
        assert won == pytest.approx([100, 300, 500], abs=60)

    def test_rows_beyond_the_bounds_lose_against_rows_within(self) -> None:
        start = self.start()
        engine = Nsga2Engine(replace(start, worst=np.array([2.0, 10.0])), population=4)
        x = np.eye(len(self.LEVELS), dtype=np.int64)[:6]
        y = np.array([[0, 20], [0, 12], [2, 10], [3, 0], [1, 1], [np.nan, 0]])  # bounds: 100 %, 20 %, 0, 50 %, 0
        engine.tell(x, y)
        assert sorted(engine.parents[1].tolist()) == [[0, 12], [1, 1], [2, 10], [3, 0]]
        assert engine.excess.tolist() == [0, 0, 0.2, 0.5]
        assert sorted(engine.rank.tolist()) == [0, 0, 0, 1]
        won = np.bincount([int(engine._select().argmax()) for _ in range(900)], minlength=6)
        assert won[4] > won[2] > won[1] > won[3] > won[0] == won[5] == 0

    def test_a_population_of_one_is_refused(self) -> None:
        with pytest.raises(ValueError, match="population 1 is too small; use engine.population=24"):
            Nsga2Engine(self.start(), population=1)


def only(monkeypatch: pytest.MonkeyPatch, move: str) -> None:
    monkeypatch.setattr("search.engines.nsga2.MOVES", {name: float(name == move) for name in MOVES})


def variations(some: list[Gene], row: list[int], count: int = 300) -> np.ndarray:
    engine = Nsga2Engine(EngineInputs(some, 2, np.random.default_rng(0)), population=2)
    before = np.array(row)
    x = np.array([engine._vary(before) for _ in range(count)])
    assert before.tolist() == row
    assert x.dtype == np.int64
    return x


class TestMoves:
    """Each move alone, on four groups of two genes and one of another shape in between."""

    GENES = [
        Gene(name, levels, group=group, ordered=name != "a")
        for group, shape in (("1", (4, 5)), ("2", (4, 5)), ("odd", (9,)), ("3", (4, 5)), ("4", (4, 5)))
        for name, levels in zip("ab", shape, strict=False)
    ]
    ROW = [1, 1, 2, 2, 8, 3, 3, 0, 4]
    PAIRS = [(1, 1), (2, 2), (3, 3), (0, 4)]

    def moved(self, monkeypatch: pytest.MonkeyPatch, move: str) -> np.ndarray:
        only(monkeypatch, move)
        return variations(self.GENES, self.ROW)

    def pairs(self, row: np.ndarray) -> list[tuple[int, int]]:
        assert row[4] == 8
        return [(int(row[i]), int(row[i + 1])) for i in (0, 2, 5, 7)]

    def test_reset_reaches_every_level_of_every_gene(self, monkeypatch: pytest.MonkeyPatch) -> None:
        x = self.moved(monkeypatch, "reset")
        assert [len(set(c)) for c in x.T.tolist()] == [gene.levels for gene in self.GENES]
        assert 1 < (x != self.ROW).sum(axis=1).mean() < 4

    def test_nudge_goes_two_levels_at_most_and_leaves_unordered_genes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        change = self.moved(monkeypatch, "nudge") - self.ROW
        assert not change[:, [0, 2, 4, 5, 7]].any()  # "a", also where it is alone
        assert set(change[:, 3].tolist()) == {-2, -1, 0, 1, 2}

    def test_nudge_reaches_farther_where_there_are_hundreds_of_levels(self, monkeypatch: pytest.MonkeyPatch) -> None:
        only(monkeypatch, "nudge")
        levels = (400, 120, 119, 9)  # 1/40: 10, 3, less than 3
        change = variations([Gene(str(n), n) for n in levels], [200, 60, 60, 4], count=900) - [200, 60, 60, 4]
        reach = [set(range(-r, r + 1)) for r in (10, 3, 2, 2)]
        assert [set(column) for column in change.T.tolist()] == reach

    def test_copy_repeats_a_neighbour(self, monkeypatch: pytest.MonkeyPatch) -> None:
        found = {tuple(self.pairs(row)) for row in self.moved(monkeypatch, "copy")}
        expected = {tuple(self.PAIRS)}
        for i in range(4):
            for j in (i - 1, i + 1):
                if 0 <= j < 4:
                    copied = list(self.PAIRS)
                    copied[j] = copied[i]
                    expected.add(tuple(copied))
        assert found == expected

    def test_swap_exchanges_two(self, monkeypatch: pytest.MonkeyPatch) -> None:
        found = {tuple(self.pairs(row)) for row in self.moved(monkeypatch, "swap")}
        assert all(sorted(pairs) == sorted(self.PAIRS) for pairs in found)
        assert len(found) == 1 + 6

    def test_off_clears_one_group(self, monkeypatch: pytest.MonkeyPatch) -> None:
        x = self.moved(monkeypatch, "off")
        cleared = {tuple(np.flatnonzero(row != self.ROW)) for row in x}
        assert cleared == {(0, 1), (2, 3), (4,), (5, 6), (8,)}
        assert not x[x != self.ROW].any()

    def test_shift_turns_a_run_by_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        found = {tuple(self.pairs(row)) for row in self.moved(monkeypatch, "shift")}
        expected = {
            tuple(self.PAIRS[:i] + [self.PAIRS[i:j][(k + by) % (j - i)] for k in range(j - i)] + self.PAIRS[j:])
            for i in range(4)
            for j in range(i + 1, 5)
            for by in (-1, 1)
        }
        assert found == expected


def test_excess_is_the_sum_of_shares_of_the_bounds() -> None:
    y = np.array([[1.0, -2.0, 0.0], [3.0, -1.0, 0.5], [-np.inf, 0, 0], [1e300, 0, 0]])
    assert excess(y, np.array([2.0, -2.0, 0.0])).tolist() == [0, 0.5 + 0.5 + 0.5, 1e300, 1e300]
    assert excess(y, np.zeros(0)).tolist() == [0, 0, 1e300, 1e300]


def test_crossover_takes_whole_groups() -> None:
    some = genes([3] * 12)
    engine = Nsga2Engine(EngineInputs(some, 2, np.random.default_rng(0)), population=2)
    a, b = np.ones(12, dtype=np.int64), np.full(12, 2)
    patterns = set()
    for _ in range(400):
        child = engine._cross(a, b).reshape(4, 3)
        assert (child == child[:, :1]).all()
        patterns.add(tuple(child[:, 0].tolist()))
    assert len(patterns) == 16
    assert (a == 1).all()


def test_half_of_the_crossovers_take_one_stretch() -> None:
    some = genes([3] * 20, group_size=1)
    engine = Nsga2Engine(EngineInputs(some, 2, np.random.default_rng(0)), population=2)
    a, b = np.ones(20, dtype=np.int64), np.full(20, 2)
    ends = np.array([np.count_nonzero(np.diff(engine._cross(a, b))) for _ in range(400)])
    assert 0.4 < (ends <= 2).mean() < 0.6  # a choice per group hardly ever has so few


def test_children_are_mutated_and_not_only_crossed() -> None:
    some = genes([4] * 24)
    seeds = np.random.default_rng(1).integers(1, 4, size=(11, 24))
    engine = Nsga2Engine(EngineInputs(some, 2, np.random.default_rng(0), seeds), population=12)
    x = engine.ask(12)
    engine.tell(x, scores(x))
    known = [{tuple(row[group]) for row in x} for group in engine.groups]

    def only_crossed(row: np.ndarray) -> bool:
        return all(tuple(row[group]) in here for group, here in zip(engine.groups, known, strict=True))

    # Not all: switching a group off gives what the zero row has there.
    assert np.mean([only_crossed(row) for row in engine.ask(200)]) < 0.4


def test_genes_without_a_group_are_groups_of_one() -> None:
    some = [Gene("a", 2), Gene("b", 2), Gene("c", 2, group="a"), Gene("d", 2, group="a")]
    engine = Nsga2Engine(EngineInputs(some, 2, np.random.default_rng(0)), population=2)
    assert [group.tolist() for group in engine.groups] == [[0], [1], [2, 3]]


# The comparator: 24 genes, 1 reuses at this step. The DP sees the table but not the second term.


@pytest.mark.slow
def test_beats_random_search_at_equal_evaluations() -> None:
    none = np.zeros((0, STEPS - 1), dtype=np.int64)
    own = [search(Nsga2Engine, seed, none, evaluations=960) for seed in range(5)]
    random = [search(RandomEngine, seed, none, evaluations=960) for seed in range(5)]
    assert min(own) > max(random)
    assert np.mean(own) > np.mean(random) + 0.008


def test_never_falls_behind_the_dp_front_it_starts_from_and_improves_on_it() -> None:
    plans = np.array([~mask[1:] for _, mask in reuse_front(*tables())], dtype=np.int64)
    exact = volume(toy(plans))
    reached = [search(Nsga2Engine, seed, plans) for seed in range(3)]
    assert min(reached) > exact
    assert min(reached) > search(Nsga2Engine, 0, plans[:0]) + 0.005
