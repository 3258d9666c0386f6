"""Domination, hypervolume, knee and intervals against brute force."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from search.pareto.domination import hypervolume, knee, non_dominated
from search.pareto.intervals import _tails, bootstrap_interval, paired_difference_interval, paired_ratio_interval

# Few distinct values, so that ties and duplicates are common.
SCORES = st.tuples(st.integers(0, 12), st.integers(1, 3)).flatmap(
    lambda shape: arrays(float, shape, elements=st.integers(0, 5).map(float))
)


def dominates(a: np.ndarray, b: np.ndarray) -> bool:
    return bool((a <= b).all() and (a < b).any())


@given(SCORES)
def test_non_dominated_equals_its_definition(y: np.ndarray) -> None:
    expected = [
        not any(dominates(other, row) for other in y) and not any((y[j] == row).all() for j in range(i))
        for i, row in enumerate(y)
    ]
    assert non_dominated(y).tolist() == expected


@given(SCORES)
def test_hypervolume_counts_the_dominated_unit_cells(y: np.ndarray) -> None:
    reference = np.full(y.shape[1], 4.0)
    cells = itertools.product(range(4), repeat=y.shape[1])
    assert hypervolume(y, reference) == sum(any((row <= cell).all() for row in y) for cell in map(np.array, cells))


@given(SCORES, st.randoms(use_true_random=False))
def test_order_and_dominated_rows_change_nothing(y: np.ndarray, random: object) -> None:
    reference = np.full(y.shape[1], 4.0)
    volume = hypervolume(y, reference)
    order = list(range(len(y)))
    random.shuffle(order)  # type: ignore[attr-defined]
    assert hypervolume(y[order], reference) == pytest.approx(volume)
    assert hypervolume(y[non_dominated(y)], reference) == pytest.approx(volume)
    assert sorted(map(tuple, y[order][non_dominated(y[order])])) == sorted(map(tuple, y[non_dominated(y)]))


def test_rows_with_nan_are_not_on_the_front_and_dominate_nothing() -> None:
    y = np.array([[np.nan, 0], [1, 1], [0, np.nan], [np.inf, 0.5]])
    assert non_dominated(y).tolist() == [False, True, False, True]
    assert hypervolume(y, np.array([2.0, 2.0])) == 1


def test_nothing_has_no_volume() -> None:
    assert hypervolume(np.zeros((0, 0)), np.ones(2)) == 0
    assert hypervolume(np.array([[1.0, 0.0]]), np.ones(2)) == 0


def test_a_front_of_thousands_is_quick() -> None:
    x = np.linspace(0, 1, 3000)
    assert non_dominated(np.column_stack([x, 1 - x])).all()


@settings(max_examples=50)
@given(arrays(float, (8, 2), elements=st.integers(0, 20).map(float)))
def test_knee_is_farthest_below_the_chord(y: np.ndarray) -> None:
    front = y[non_dominated(y)]
    a, b = front[front[:, 0].argmin()], front[front[:, 1].argmin()]
    scale = np.where(b - a != 0, np.abs(b - a), 1)
    (ax, ay), (bx, by) = a / scale, b / scale

    def below(row: np.ndarray) -> float:
        px, py = row / scale
        return (by - ay) * (px - ax) - (bx - ax) * (py - ay)

    assert non_dominated(y)[knee(y)]
    assert below(y[knee(y)]) == pytest.approx(max(below(row) for row in front))


def test_knee_of_an_elbow_ignores_dominated_rows_and_axes_units() -> None:
    y = np.array([[9, 900], [0, 100], [1, 10], [10, 0], [5, 50]])
    assert knee(y) == 2
    assert knee(y * [1000, 0.001]) == 2
    assert knee(y[:1]) == 0
    assert knee(np.array([[0.3, 0.0], [0.0, 0.3], [0.1, 0.2], [0.2, 0.1]])) == 1  # straight: the lowest first


def test_interval_of_the_mean_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        low, high = bootstrap_interval(rng.exponential(size=60), rng, level=0.9, draws=300)
        hits += low <= 1 <= high
    assert 0.82 <= hits / 200 <= 0.95


@pytest.mark.parametrize("count", [8, 16])
def test_intervals_of_few_prompts_are_wide_enough(count: int) -> None:
    rng, hits = np.random.default_rng(0), 0
    for _ in range(600):
        low, high = bootstrap_interval(rng.normal(size=count), rng)
        hits += low <= 0 <= high
    assert 0.92 <= hits / 600 <= 0.98


def test_tails_are_those_of_students_t() -> None:
    """A normal distribution of the resampled means' width, cut there, is the t-interval."""
    from scipy.stats import norm, t

    for count in (3, 8, 30):
        low, high = _tails(0.95, count)
        assert low == pytest.approx(1 - high)
        spread = ((count - 1) / count) ** 0.5  # of resampled means, in units of the standard error
        assert spread * norm.ppf(high) == pytest.approx(t.ppf(0.975, count - 1))
    assert _tails(0.95, 10**6)[0] == pytest.approx(0.025, rel=1e-3) and _tails(0.95, 1) == (0, 1)


def test_pairing_removes_what_both_share() -> None:
    rng = np.random.default_rng(1)
    hard = rng.normal(size=40) * 10
    low, high = paired_difference_interval(hard + 0.5, hard + rng.normal(size=40) * 0.01, rng)
    assert 0.49 < low < 0.5 < high < 0.51
    alone = bootstrap_interval(hard, rng)
    assert high - low < (alone[1] - alone[0]) / 100
    scales = np.exp(hard / 10)
    low, high = paired_ratio_interval(0.5 * scales, scales * (1 + rng.normal(size=40) * 0.01), rng)
    assert 0.49 < low < 0.5 < high < 0.51


def test_same_generator_same_interval() -> None:
    values = np.arange(9.0)
    a, b = (bootstrap_interval(values, np.random.default_rng(3)) for _ in range(2))
    assert a == b
    assert bootstrap_interval(np.array([2.0]), np.random.default_rng(0)) == (2, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: non_dominated(np.zeros(3)), r"shape \(3,\); give rows"),
        (lambda: hypervolume(np.zeros((2, 3)), np.ones(2)), "has 2 objectives, the scores 3"),
        (lambda: knee(np.zeros((2, 3))), r"needs scores \[N, 2\]"),
        (lambda: knee(np.full((2, 2), np.nan)), "not NaN"),
        (lambda: bootstrap_interval(np.zeros(0), np.random.default_rng(0)), "P > 0"),
        (lambda: bootstrap_interval(np.zeros(3), np.random.default_rng(0), level=95), "level 95 is not"),
        (
            lambda: paired_difference_interval(np.zeros(3), np.zeros(2), np.random.default_rng(0)),
            "equal shapes",
        ),
        (
            lambda: paired_ratio_interval(np.zeros(3), np.zeros(2), np.random.default_rng(0)),
            r"equal shapes \[P\], got",
        ),
    ],
)
def test_refusals_say_what_is_wrong(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
