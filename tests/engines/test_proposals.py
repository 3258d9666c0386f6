"""Rows of a named method: once each, in order, and what is said where there are none."""

from collections.abc import Sequence

import numpy as np
import pytest

from search.engines.base import Engine, EngineInputs
from search.engines.proposals import ProposalEngine
from search.testing.engine_contract import EngineContract, genes, some_seeds


def with_rows(rows: object, seeds: object = ((0, 0, 0),), name: str = "dp") -> EngineInputs:
    return EngineInputs(genes([2, 3, 4]), 2, np.random.default_rng(0), np.array(seeds), proposals={name: lambda: rows})


class TestProposals(EngineContract):
    @staticmethod
    def make(start: EngineInputs) -> Engine:
        return ProposalEngine(start, of="dp")

    def start(self, levels: Sequence[int] = EngineContract.LEVELS, seed: int = 0, objectives: int = 2) -> EngineInputs:
        """The seeds come last here, and all are handed out: the contract's seeds are the rows as well."""
        rows = some_seeds(levels)
        return EngineInputs(
            genes(levels), objectives, np.random.default_rng(seed), rows, proposals={"dp": lambda: rows.copy()}
        )


def test_the_zero_row_then_the_rows_then_the_seeds_each_once() -> None:
    rows = np.array([[1, 2, 3], [0, 0, 0], [1, 0, 0], [1, 2, 3]])
    engine = ProposalEngine(with_rows(rows, [[1, 1, 1], [1, 0, 0]]), of="dp")
    assert engine.ask(2).tolist() == [[0, 0, 0], [1, 2, 3]]
    engine.tell(rows[:1], np.full((1, 2), np.nan))
    assert engine.ask(99).tolist() == [[1, 0, 0], [1, 1, 1]]
    assert engine.ask(99).shape == (0, 3)


def test_rows_are_computed_once_when_the_engine_is_made() -> None:
    calls = []
    start = EngineInputs(
        genes([2]), 2, np.random.default_rng(0), proposals={"olss": lambda: calls.append(1) or np.ones((1, 1))}
    )
    assert ProposalEngine(start, "olss").ask(9).tolist() == [[0], [1]]
    assert len(calls) == 1


def test_no_rows_is_the_zero_row_alone() -> None:
    assert ProposalEngine(with_rows(np.zeros((0, 3))), "dp").ask(9).tolist() == [[0, 0, 0]]


@pytest.mark.parametrize(
    ("start", "of", "message"),
    [
        (with_rows([], name="dp"), "olss", r"this search has no 'olss' rows; there are: dp\. Use engine=nsga2"),
        (
            EngineInputs(genes([2]), 2, np.random.default_rng(0)),
            "dp",
            "no 'dp' rows; there are: none. Use engine=nsga2",
        ),
        (with_rows([[0, 3, 0]]), "dp", "'dp' rows do not fit the genes: .* 3 at gene 'g1'; use 0 to 2"),
        (with_rows([[0, 0.5, 0]]), "dp", "'dp' rows do not fit the genes: .* 0.5 at gene 'g1'"),
        (with_rows([[0, 0]]), "dp", r"'dp' rows do not fit the genes: .* shape \(1, 2\); give rows \[S, 3\]"),
    ],
)
def test_refusals_say_what_is_wrong(start: EngineInputs, of: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProposalEngine(start, of).begin()


def test_the_reason_of_the_method_itself_comes_through() -> None:
    def refuse() -> np.ndarray:
        raise ValueError("nothing to segment")

    start = EngineInputs(genes([2]), 2, np.random.default_rng(0), proposals={"beam": refuse})
    with pytest.raises(ValueError, match="^nothing to segment$"):
        ProposalEngine(start, of="beam").begin()
