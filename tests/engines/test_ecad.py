"""ECAD's genetic algorithm: cuts, the rate of mutation that was published, and whole generations."""

from functools import partial

import numpy as np
import pytest
from pymoo.core.population import Population
from pymoo.operators.mutation.bitflip import BitflipMutation

from search.engines.base import EngineInputs
from search.engines.ecad import EcadEngine, Flip, _Genes
from search.testing.engine_contract import EvolutionContract, continue_, genes, scores

BITS = 200


def bits(seeds: object = (), count: int = BITS, objectives: int = 2) -> EngineInputs:
    rows = np.array(seeds, dtype=np.int64).reshape(-1, count)
    return EngineInputs(genes([2] * count), objectives, np.random.default_rng(0), rows)


class TestEcad(EvolutionContract):
    make = EcadEngine


class TestEcadWorking(EvolutionContract):
    make = partial(EcadEngine, mutation=1.0, flips=3)

    def engine(self, *args: object, **kwargs: object) -> EcadEngine:
        return EcadEngine(self.start(*args, **kwargs), mutation=1.0, flips=3)  # type: ignore[arg-type]


def test_the_published_rate_is_that_of_pymoo_and_leaves_97_of_100_children_as_they_were() -> None:
    """The trap: prob=0.05 is the chance of a row. Each of 200 bits of it then flips with 1/200."""
    rows = np.zeros((20_000, BITS), dtype=np.int64)
    rng = np.random.default_rng(0)
    flip = Flip(np.full(BITS, 2), prob=0.05, prob_var=1 / BITS)
    ours = flip.do(_Genes(BITS), Population.new(X=rows.copy()), random_state=rng).get("X")
    theirs = BitflipMutation(prob=0.05).do(_Genes(BITS), Population.new(X=rows == 1), random_state=rng).get("X")
    expected = 0.05 * (1 - (1 - 1 / BITS) ** BITS)  # 3.2 %
    for mutated in (ours, theirs):
        assert mutated.any(axis=1).mean() == pytest.approx(expected, rel=0.12)
        assert mutated.sum() / len(rows) == pytest.approx(0.05, rel=0.12)


def test_a_flip_reaches_every_other_level_and_never_the_same() -> None:
    levels = np.array([1, 2, 3, 5])
    rows = np.tile([0, 1, 2, 3], (2000, 1))
    flip = Flip(levels, prob=1.0, prob_var=1.0)
    found = flip.do(_Genes(4), Population.new(X=rows), random_state=np.random.default_rng(0)).get("X")
    assert [sorted(set(column)) for column in found.T.tolist()] == [[0], [0], [0, 1], [0, 1, 2, 4]]


def test_crossover_cuts_four_times_in_nine_of_ten_pairs() -> None:
    engine = EcadEngine(bits([[1] * BITS]), population=2, mutation=0.0)
    engine.tell(np.array([[0] * BITS, [1] * BITS]), np.array([[0.0, 1.0], [1.0, 0.0]]))
    engine._breed()
    engine._select = iter(np.array([[0] * BITS, [1] * BITS] * 2000)).__next__  # type: ignore[method-assign]
    children = np.concatenate([engine._children() for _ in range(2000)])
    cuts = (np.diff(children, axis=1) != 0).sum(axis=1)
    assert set(cuts.tolist()) == {0, 4}
    assert (cuts == 4).mean() == pytest.approx(0.9, abs=0.03)


def test_without_mutation_a_gene_that_no_parent_has_never_appears() -> None:
    rng = np.random.default_rng(3)
    rows = rng.integers(0, 2, size=(24, BITS))
    rows[:, 7] = 0
    published, working = ({"mutation": 0.0}, {"mutation": 1.0, "flips": 3})
    for options, appears in ((published, False), (working, True)):
        engine = EcadEngine(bits(rows[1:]), population=24, **options)
        assert any(row[7] for row in continue_(engine, 40, n=24)) == appears


def test_a_generation_told_in_parts_or_at_once_is_the_same() -> None:
    found = []
    for size in (8, 24):
        engine, rows = EcadEngine(bits(count=30), population=24), []
        for _ in range(4 * 24 // size):
            x = engine.ask(size)
            assert len(x) == size
            engine.tell(x, scores(x))
            rows += x.tolist()
        found.append(rows)
    assert found[0] == found[1]


def test_seeds_are_generation_0_and_random_rows_only_fill_it() -> None:
    seeds = np.random.default_rng(1).integers(0, 2, size=(90, 30))
    assert len(EcadEngine(bits(seeds, 30)).ask(500)) == 91
    assert len(EcadEngine(bits(seeds[:10], 30)).ask(500)) == 72


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"population": 1}, "population 1 is too small"),
        ({"points": 0}, "points 0 is too small; use engine.points=4"),
        ({"crossover": 1.5}, "crossover 1.5 is not a valid chance; use engine.crossover=0.9, from 0 to 1"),
        ({"mutation": -1}, "mutation -1 is not a valid chance"),
        ({"flips": -1}, "flips -1 is too small; use engine.flips=1, at least 0"),
    ],
)
def test_what_cannot_be_is_told(options: dict[str, float], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        EcadEngine(bits(count=30), **options)
