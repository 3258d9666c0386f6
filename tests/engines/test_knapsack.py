"""Knapsack against brute force; local search on error vectors."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search.exact.knapsack import gram_search, knapsack_front

WHOLE = st.integers(-6, 6).map(float)


@st.composite
def tables(draw, costs=WHOLE):
    """Errors and costs of up to 5 genes. Small whole numbers: sums are exact and ties common."""
    levels = draw(st.lists(st.integers(1, 4), max_size=5))
    row = lambda number, n: np.array(draw(st.lists(number, min_size=n, max_size=n)))  # noqa: E731
    return [row(st.integers(0, 6).map(float), n) for n in levels], [row(costs, n) for n in levels]


def every(errors) -> list[tuple[int, ...]]:
    return list(itertools.product(*(range(len(e)) for e in errors)))


def total(parts, choice) -> float:
    return float(sum(part[level] for part, level in zip(parts, choice, strict=True)))


def pareto(points) -> list[tuple[float, float]]:
    """Cheapest first, each with less error than all cheaper ones."""
    found = []
    for cost, error in sorted(points):
        if not found or error < found[-1][1]:
            found.append((cost, error))
    return found


@settings(max_examples=150, deadline=None)
@given(table=tables(), factor=st.sampled_from([1.0, 3.0, 1024.0]))
def test_front_is_that_of_all_choices(table, factor: float) -> None:
    errors, costs = table
    costs = [factor * cost for cost in costs]
    front = knapsack_front(errors, costs)
    assert [(c, e) for c, e, _ in front] == pareto((total(costs, x), total(errors, x)) for x in every(errors))
    for cost, error, choice in front:
        assert choice.shape == (len(errors),)
        assert (total(costs, choice), total(errors, choice)) == (cost, error)


@settings(max_examples=50, deadline=None)
@given(table=tables(costs=st.floats(-5, 5)))
def test_other_costs_are_exact_up_to_the_grid(table) -> None:
    errors, costs = table
    resolution = 1000
    front = knapsack_front(errors, costs, resolution)
    slack = (len(errors) + 1) * sum(np.ptp(c) for c in costs) / resolution
    for cost, error in pareto((total(costs, x), total(errors, x)) for x in every(errors)):
        assert min(e for c, e, _ in front if c <= cost + slack + 1e-12) <= error
    for (a, b, choice), (c, d, _) in zip(front, front[1:], strict=False):
        assert a < c
        assert b > d
        assert a == pytest.approx(total(costs, choice))


def test_a_level_of_infinite_error_is_never_chosen() -> None:
    front = knapsack_front([np.array([0, np.inf, 2.0])], [np.array([0, -9.0, -3.0])])
    assert [(c, e, x.tolist()) for c, e, x in front] == [(-3, 2, [2]), (0, 0, [0])]


def test_of_equal_levels_the_lowest_is_taken() -> None:
    (point,) = knapsack_front([np.zeros(3)] * 2, [np.zeros(3)] * 2)
    assert point[2].tolist() == [0, 0]


@pytest.mark.parametrize("whole", [True, False])
def test_250_genes_of_6_levels_are_solved(whole: bool) -> None:
    rng = np.random.default_rng(0)
    costs = [-np.cumsum(rng.integers(0, 100, 6) if whole else rng.random(6)) for _ in range(250)]
    front = knapsack_front([np.cumsum(rng.random(6)) for _ in range(250)], costs)
    assert len(front) > 5000


def objective(vectors, choice, damping: float) -> float:
    chosen = [v[level] for v, level in zip(vectors, choice, strict=True)]
    norms = sum(float(v @ v) for v in chosen)
    whole = np.sum(chosen, axis=0)
    return (1 - damping) * norms + damping * float(whole @ whole)


def some_vectors(seed: int, genes: int, levels: int = 3) -> tuple[list[np.ndarray], list[list[np.ndarray]]]:
    """Vectors with a common direction, so that they are far from orthogonal; two costs."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=4)
    vectors = []
    for _ in range(genes):
        v = rng.normal(size=(levels, 4)) + rng.choice([-1, 1]) * common
        v *= np.arange(levels)[:, None]
        vectors.append(v)
    costs = [[np.array([0, *-np.sort(rng.integers(0, 9, levels - 1)).astype(float)]) for _ in vectors] for _ in "ab"]
    return vectors, costs


@pytest.mark.parametrize("damping", [0.0, 0.5, 1.0])
def test_local_search_never_gets_worse_or_dearer_and_often_finds_the_best(damping: float) -> None:
    best = 0
    for seed in range(20):
        vectors, costs = some_vectors(seed, 5)
        rng = np.random.default_rng(seed)
        starts = rng.integers(0, 3, size=(3, 5))
        kept = starts.copy()
        found = gram_search(vectors, costs, starts, damping)
        assert (starts == kept).all()
        assert found.dtype == np.int64
        assert found.shape == starts.shape
        for before, after in zip(starts, found, strict=True):
            assert all(total(cost, after) <= total(cost, before) for cost in costs)
            reached = objective(vectors, after, damping)
            assert reached <= objective(vectors, before, damping) + 1e-9
            least = min(
                objective(vectors, x, damping)
                for x in itertools.product(range(3), repeat=5)
                if all(total(cost, x) <= total(cost, before) for cost in costs)
            )
            best += reached <= least + 1e-9
    assert best >= 42  # of 60


def test_errors_that_cancel_are_found_by_vectors_only() -> None:
    v = np.array([1.0, 0.0])
    vectors = [np.array([0 * v, v]), np.array([0 * v, -v]), np.array([0 * v, [0, 0.5]]), np.array([0 * v, [0, 0.5]])]
    costs = [np.array([0.0, -1.0])] * 4
    start = np.array([[0, 0, 1, 1]])
    assert gram_search(vectors, [costs], start, 0.0).tolist() == [[0, 0, 1, 1]]
    assert gram_search(vectors, [costs], np.array([[0, 1, 1, 0]]), 1.0).tolist() == [[1, 1, 0, 0]]  # a pair at once


def test_a_level_without_a_vector_is_never_chosen() -> None:
    vectors = [np.array([[0.0], [np.nan], [5.0]])]
    assert gram_search(vectors, [[np.array([0.0, -1, -1])]], np.array([[2]])).tolist() == [[2]]


def test_no_rows_and_no_genes_are_no_problem() -> None:
    assert gram_search([np.zeros((2, 3))], [[np.zeros(2)]], np.zeros((0, 1))).shape == (0, 1)
    assert gram_search([], [[]], np.zeros((2, 0))).shape == (2, 0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: knapsack_front([np.zeros(2)], [np.zeros(3)]), r"differ: \[2\] errors, \[3\] costs; give one of each"),
        (lambda: knapsack_front([np.array([0, -1])], [np.zeros(2)]), r"gene 0 are \[0.0, -1.0\]; give numbers from 0"),
        (lambda: knapsack_front([np.array([0, np.nan])], [np.zeros(2)]), "errors of gene 0 are .*nan"),
        (lambda: knapsack_front([np.full(2, np.inf)], [np.zeros(2)]), "give at least one finite number"),
        (lambda: knapsack_front([np.zeros(2)], [np.array([0, np.inf])]), "costs of gene 0 are .*; give finite numbers"),
        (lambda: gram_search([], [], np.zeros((1, 0)), damping=2), "damping 2 is not from 0 to 1; use 0.5"),
    ],
)
def test_refusals_say_what_is_wrong(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
