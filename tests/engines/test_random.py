"""Random search: seeds, variety, and every row exactly once."""

import itertools

import numpy as np
import pytest

from search.engines.base import EngineInputs
from search.engines.random import RandomEngine, count_on, draw
from search.testing.engine_contract import EngineContract, genes


class TestRandom(EngineContract):
    make = RandomEngine

    def test_rows_do_not_depend_on_how_calls_are_split(self) -> None:
        whole, split = self.engine(), self.engine()
        assert whole.ask(40).tolist() == [row for n in (1, 0, 13, 26) for row in split.ask(n).tolist()]

    def test_seeds_come_in_their_order(self) -> None:
        start = self.start()
        assert (RandomEngine(start).ask(len(start.seeds)) == start.seeds).all()

    @pytest.mark.parametrize("levels", [(2, 1, 3), (2,) * 8, (5, 4, 3, 2)])
    def test_a_small_space_is_handed_out_whole(self, levels: tuple[int, ...]) -> None:
        found = self.engine(levels).ask(10_000).tolist()  # one call: an early "nothing left" would show
        assert sorted(map(tuple, found)) == list(itertools.product(*map(range, levels)))

    def test_shares_of_genes_that_are_on_vary_widely(self) -> None:
        start = EngineInputs(genes([3] * 40), 2, np.random.default_rng(0))
        share = (RandomEngine(start).ask(400) > 0).mean(axis=1)
        counts = np.histogram(share, bins=5, range=(0, 1))[0]
        assert counts.min() > 40  # uniform draws over levels would leave three of the five empty


def test_every_level_is_drawn() -> None:
    rng, levels = np.random.default_rng(0), np.array([1, 2, 5])
    x = np.array([draw(rng, levels) for _ in range(500)])
    assert [len(set(column)) for column in x.T.tolist()] == [1, 2, 5]


def test_counting_on_passes_every_row_once() -> None:
    levels, row, asked = np.array([2, 1, 3]), np.array([1, 0, 2]), set()
    while (found := count_on(row, levels, asked)) is not None:
        assert found.tobytes() not in asked
        asked.add(found.tobytes())
    assert len(asked) == 6
    assert row.tolist() == [1, 0, 2]


@pytest.mark.parametrize(
    ("seeds", "message"),
    [
        ([[0, 3]], "seed 0 has 3 at gene 'g1'; use 0 to 2"),
        ([[0, 0], [-1, 0]], "seed 1 has -1 at gene 'g0'; use 0 to 1"),
        ([[0, 0.5]], "seed 0 has 0.5 at gene 'g1'"),
        ([[0, 0, 0]], r"seeds have shape \(1, 3\); give rows \[S, 2\]"),
        ([0, 0], r"seeds have shape \(2,\)"),
    ],
)
def test_seeds_that_do_not_fit_are_refused(seeds: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EngineInputs(genes([2, 3]), 2, np.random.default_rng(0), np.array(seeds))
