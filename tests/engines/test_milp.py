"""Integer programs against brute force, and the rows that the engine hands out."""

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search.engines.base import EngineInputs
from search.engines.milp import MilpEngine, milp_rows
from search.profile.tables import GeneTable
from search.testing.engine_contract import EngineContract, genes


def some_table(levels: Sequence[int], costs: int = 2, vectors: bool = True, seed: int = 3) -> GeneTable:
    """Error vectors with a common part, so that their norms do not add; level 0 is off."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=6)
    errors = [np.arange(n)[:, None] * (rng.normal(size=(n, 6)) + rng.choice([-1, 1]) * common) for n in levels]
    saved = [[-np.arange(n) * float(rng.integers(1, 9)) for n in levels] for _ in range(costs)]
    return GeneTable([np.linalg.norm(e, axis=1) for e in errors], saved, errors if vectors else ())


def with_table(table: GeneTable, seeds: object = None) -> EngineInputs:
    levels = [len(e) for e in table.errors]
    seeds = np.zeros((0, len(levels))) if seeds is None else np.array(seeds)
    return EngineInputs(genes(levels), 2, np.random.default_rng(0), seeds, table=lambda: table)


class TestMilp(EngineContract):
    make = MilpEngine

    def start(self, levels: Sequence[int] = EngineContract.LEVELS, seed: int = 0, objectives: int = 2) -> EngineInputs:
        return replace(super().start(levels, seed, objectives), table=lambda: some_table(levels, costs=1))


def total(parts: Sequence[np.ndarray], x: Sequence[int]) -> float:
    return float(sum(part[level] for part, level in zip(parts, x, strict=True)))


def numbers(draw, count: int, low: int, high: int) -> np.ndarray:
    return np.array(draw(st.lists(st.integers(low, high), min_size=count, max_size=count)), dtype=float)


@st.composite
def programs(draw):
    """Up to 4 genes, 1 to 3 costs, budgets of which some bind and some cannot be kept."""
    levels = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    count = draw(st.integers(1, 3))
    errors = [numbers(draw, n, 0, 6) for n in levels]
    costs = [[numbers(draw, n, -6, 6) for n in levels] for _ in range(count)]
    budgets = [[draw(st.sampled_from([-12.0, -5.0, -2.0, 0.0, 3.0, np.inf])) for _ in range(count)] for _ in range(2)]
    return GeneTable(errors, costs), np.array(budgets)


@settings(max_examples=60, deadline=None)
@given(program=programs())
def test_rows_are_the_best_of_all_under_every_budget(program) -> None:
    table, budgets = program
    every = list(itertools.product(*(range(len(e)) for e in table.errors)))
    squares = [e**2 for e in table.errors]
    found = list(milp_rows(table, budgets))
    assert milp_rows(table, budgets).dtype == np.int64
    for budget in budgets:
        inside = [x for x in every if all(total(c, x) <= b for c, b in zip(table.costs, budget, strict=True))]
        if inside:
            x = found.pop(0)
            assert all(total(c, x) <= b for c, b in zip(table.costs, budget, strict=True))
            assert total(squares, x) == min(total(squares, i) for i in inside)
    assert not found


def test_numbers_far_from_one_are_no_problem() -> None:
    table = some_table([3, 3, 3, 3], costs=1)
    budget = np.array([[-11.0]])
    tiny = GeneTable([1e-9 * e for e in table.errors], [[1e12 * c for c in table.costs[0]]])
    assert (milp_rows(tiny, 1e12 * budget) == milp_rows(table, budget)).all()


def test_a_level_that_was_measured_as_nan_is_never_chosen() -> None:
    table = some_table([3, 3, 3])
    for errors, vectors in zip(table.errors, table.vectors, strict=True):
        errors[2], vectors[2] = np.nan, np.nan
    rows = MilpEngine(with_table(table)).ask(99)
    assert len(rows) > 3
    assert rows.max() == 1
    assert milp_rows(table, np.full((1, 2), -1.0)).max() == 1


def test_no_budgets_and_no_genes_give_no_rows() -> None:
    assert milp_rows(some_table([2, 2]), np.zeros((0, 2))).shape == (0, 2)
    assert milp_rows(GeneTable([], [[]]), np.zeros((1, 1))).shape == (0, 0)


def test_zero_and_seeds_come_first_and_then_the_whole_range() -> None:
    table = some_table([4] * 12, costs=1)
    x = MilpEngine(with_table(table, [[1] * 12, [0] * 12])).ask(999)
    assert x[0].tolist() == [0] * 12
    assert x[1].tolist() == [1] * 12
    assert x[2].tolist() == [3] * 12  # the cheapest of all
    assert len(np.unique(x, axis=0)) == len(x) > 24
    costs = [total(table.costs[0], row) for row in x[2:14]]
    halves = np.linspace(min(costs), 0, 4)
    assert all(any(a <= cost <= b for cost in costs) for a, b in itertools.pairwise(halves))


def test_more_budgets_more_rows_and_vectors_add_their_own() -> None:
    levels = [4] * 10

    def rows(**options: object) -> set[tuple[int, ...]]:
        vectors = bool(options.pop("vectors", True))
        return set(
            map(tuple, MilpEngine(with_table(some_table(levels, vectors=vectors)), **options).ask(9999).tolist())
        )

    plain = rows(gram=False)
    assert rows(vectors=False) == plain
    assert plain < rows()
    assert len(rows(gram=False, budgets=4)) < len(plain)


def test_vectors_find_rows_with_less_joint_error() -> None:
    """The reason for them: joint errors are norms of sums."""
    table = some_table([4] * 12, costs=1)

    def front(gram: bool) -> float:
        x = MilpEngine(with_table(table), gram=gram).ask(999)
        joint = np.linalg.norm([sum(v[i] for v, i in zip(table.vectors, row, strict=True)) for row in x], axis=1)
        cost = np.array([total(table.costs[0], row) for row in x])
        limits = np.linspace(cost.min(), 0, 12)
        return float(np.mean([joint[cost <= limit].min() for limit in limits]))

    assert front(True) < 0.7 * front(False)


def test_a_cost_that_never_changes_is_no_problem() -> None:
    table = some_table([3, 3])
    same = GeneTable(table.errors, [table.costs[0], [np.zeros(3)] * 2], table.vectors)
    assert len(MilpEngine(with_table(same)).ask(99)) > 2


def without_table() -> None:
    MilpEngine(EngineInputs(genes([2]), 2, np.random.default_rng(0))).begin()


def refusing() -> None:
    def table() -> GeneTable:
        raise ValueError("layers of this model cannot be measured alone")

    MilpEngine(EngineInputs(genes([2]), 2, np.random.default_rng(0), table=table)).begin()


def with_levels(errors: list[int], costs: list[int], vectors: list[int]) -> None:
    parts = [np.zeros(n) for n in errors], [[np.zeros(n) for n in costs]], [np.zeros((n, 2)) for n in vectors]
    start = EngineInputs(genes([2, 3]), 2, np.random.default_rng(0), table=lambda: GeneTable(*parts))
    MilpEngine(start).begin()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (without_table, "this space has no additive table; use engine=nsga2"),
        (refusing, "^layers of this model cannot be measured alone$"),
        (lambda: MilpEngine(with_table(some_table([2])), budgets=1), "budgets 1 is too small; use engine.budgets=24"),
        (lambda: with_levels([2, 2], [2, 3], []), r"errors of the table has \[2, 2\] levels; give \[2, 3\]"),
        (lambda: with_levels([2, 3], [2], []), r"costs\[0\] of the table has \[2\] levels; give \[2, 3\]"),
        (lambda: with_levels([2, 3], [2, 3], [3]), r"vectors of the table has \[3\] levels; give \[2, 3\]"),
        (lambda: milp_rows(some_table([2]), np.zeros(2)), r"shape \(2,\); give \[N, 2\], a column for each cost"),
    ],
)
def test_refusals_say_what_is_wrong(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
