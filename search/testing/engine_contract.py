"""What every engine must do. Inherit `EngineContract` and set `make`."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NoReturn

import numpy as np
import pytest

from search.engines.base import Engine, EngineInputs
from search.loop.checkpoint import from_bytes, to_bytes
from search.spaces.gene import Gene


def genes(levels: Sequence[int], group_size: int = 3) -> list[Gene]:
    """Genes in groups of `group_size`, every fourth one without order."""
    return [Gene(f"g{i}", n, group=f"group {i // group_size}", ordered=i % 4 != 3) for i, n in enumerate(levels)]


def some_seeds(levels: Sequence[int], count: int = 6) -> np.ndarray:
    """Distinct rows where the space has as many."""
    rng = np.random.default_rng(99)
    return np.unique(rng.integers(0, np.array(levels), size=(count, len(levels))), axis=0)


def scores(x: np.ndarray, objectives: int = 2) -> np.ndarray:
    """Scores with many ties: what depends on an unseeded draw shows."""
    return np.stack([(x == 0).mean(axis=1), (x > 0).sum(axis=1), (x % 3 == 1).sum(axis=1)][:objectives], axis=1)


def continue_(engine: Engine, rounds: int, n: int = 7, objectives: int = 2) -> list[list[int]]:
    """All rows of the next rounds of ask and tell."""
    rows: list[list[int]] = []
    for _ in range(rounds):
        x = engine.ask(n)
        engine.tell(x, scores(x, objectives))
        rows += x.tolist()
    return rows


def resumed(engine: Engine, inputs: EngineInputs, make: Callable[[EngineInputs], Engine]) -> Engine:
    """The engine as a search has it that is resumed from its checkpoint; `inputs` are those of the engine."""
    saved = from_bytes(to_bytes([engine.state(), dict(inputs.rng.bit_generator.state)]))

    def measure() -> NoReturn:
        raise AssertionError("an engine that is restored measures nothing again")

    rng = np.random.default_rng(12345)
    twin = make(replace(inputs, rng=rng, proposals=dict.fromkeys(inputs.proposals, measure), table=measure))
    twin.restore(saved[0])
    rng.bit_generator.state = saved[1]
    return twin


class EngineContract:
    """`make` builds the engine from its inputs, as `conf/engine/<name>.yaml` with its defaults would."""

    make: Callable[[EngineInputs], Engine]
    LEVELS = (3, 2, 4, 3, 2, 4, 3, 2, 4, 1, 1, 5)

    def start(self, levels: Sequence[int] = LEVELS, seed: int = 0, objectives: int = 2) -> EngineInputs:
        """What an engine begins with on genes of so many levels."""
        return EngineInputs(genes(levels), objectives, np.random.default_rng(seed), some_seeds(levels))

    def engine(self, *args: Any, **kwargs: Any) -> Engine:
        """A fresh engine; arguments are those of `start`."""
        return type(self).make(self.start(*args, **kwargs))

    @pytest.mark.parametrize("n", [1, 5, 24, 100])
    def test_rows_are_int64_within_levels_and_at_most_n(self, n: int) -> None:
        engine = self.engine()
        for _ in range(4):
            x = engine.ask(n)
            assert x.dtype == np.int64
            assert x.ndim == 2
            assert len(x) <= n
            assert x.shape[1] == len(self.LEVELS)
            assert ((x >= 0) & (x < np.array(self.LEVELS))).all()
            engine.tell(x, scores(x))

    def test_no_row_is_asked_twice(self) -> None:
        rows = continue_(self.engine(), 30)
        assert len({tuple(row) for row in rows}) == len(rows)

    def test_all_seeds_come_first(self) -> None:
        seeds = {tuple(row) for row in some_seeds(self.LEVELS).tolist()}
        first = {tuple(row) for row in self.engine().ask(len(seeds) + 1).tolist()}
        assert seeds <= first

    def test_same_seed_same_rows(self) -> None:
        np.random.seed(1)
        a = continue_(self.engine(), 12)
        np.random.seed(2)
        assert a == continue_(self.engine(), 12)

    def test_genes_with_one_level_stay_zero(self) -> None:
        x = np.array(continue_(self.engine((1, 1, 3, 1, 4, 2)), 5))
        assert not x[:, [0, 1, 3]].any()

    def test_a_space_without_decisions_ends(self) -> None:
        assert len(continue_(self.engine((1, 1, 1)), 3)) == 1

    def test_ask_after_exhaustion_gives_no_rows(self) -> None:
        engine = self.engine((2, 1, 3))
        rows = continue_(engine, 6, n=3)
        assert 0 < len({tuple(row) for row in rows}) == len(rows) <= 6
        for _ in range(2):
            x = engine.ask(4)
            assert x.shape == (0, 3)
            assert x.dtype == np.int64
            engine.tell(x, scores(x))

    @pytest.mark.parametrize("rounds", [0, 2, 5])
    @pytest.mark.parametrize("between", [False, True], ids=["after tell", "between ask and tell"])
    def test_a_restored_engine_goes_on_identically(self, rounds: int, between: bool) -> None:
        inputs = self.start()
        engine = type(self).make(inputs)
        engine.begin()
        continue_(engine, rounds)
        open_rows = engine.ask(5) if between else engine.ask(0)
        twin = resumed(engine, inputs, type(self).make)
        continued = []
        for one, seed in ((engine, 1), (twin, 2)):
            np.random.seed(seed)
            one.tell(open_rows, scores(open_rows))
            continued.append(continue_(one, 6))
        assert continued[0] == continued[1]

    def test_a_state_that_does_not_fit_is_refused(self) -> None:
        """Of another space, and with any entry missing, of another type, or one too many."""
        engine = self.engine()
        continue_(engine, 2)
        state = from_bytes(to_bytes(engine.state()))
        with pytest.raises(ValueError):
            self.engine((2, 2, 2)).restore(state)
        other = self.engine()
        for name in state:
            missing = {key: value for key, value in state.items() if key != name}
            for wrong in (missing, {**state, name: "text"}, {**state, name: None}):
                with pytest.raises(ValueError, match=name):
                    other.restore(wrong)
        with pytest.raises(ValueError, match="unknown"):
            other.restore({**state, "unknown": 1})
        other.restore(state)

    def test_what_is_handed_over_stays_as_it_was(self) -> None:
        start = self.start()
        seeds = start.seeds.copy()
        engine = type(self).make(start)
        for _ in range(5):
            x = engine.ask(7)
            y = scores(x)
            before = copy.deepcopy((x, y))
            engine.tell(x, y)
            assert (x == before[0]).all()
            assert (y == before[1]).all()
            x[:], y[:] = 77, 77  # nor may the engine keep what it gave away
        assert (start.seeds == seeds).all()
        assert (engine.ask(7) < 5).all()


class LearningContract(EngineContract):
    """What an engine must do that goes by scores."""

    def test_wrong_shapes_are_refused(self) -> None:
        engine = self.engine()
        with pytest.raises(ValueError, match=r"scores have shape \(3, 1\); give \[3, 2\]"):
            engine.tell(engine.ask(3), np.zeros((3, 1)))


class EvolutionContract(LearningContract):
    """What an engine must do that keeps parents."""

    def test_only_broken_rows_do_not_stop_it(self) -> None:
        engine = self.engine()
        for _ in range(3):
            x = engine.ask(24)
            engine.tell(x, np.full((len(x), 2), np.nan))
        assert len(engine.ask(24)) == 24
