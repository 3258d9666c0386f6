"""Segmentation DP against brute force over every plan."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from search.exact.segments import Front, even_plans, forecast_front, merge_fronts, reuse_front


def cases(most: int, axes: int = 2) -> st.SearchStrategy[tuple[np.ndarray, ...]]:
    """A weight [T] and tables of 2 .. `axes` axes. Small whole numbers: sums are exact and ties common."""

    def build(steps: int) -> st.SearchStrategy[tuple[np.ndarray, ...]]:
        number = st.integers(0, 6).map(float)
        shapes = [(steps,) * n for n in range(1, axes + 1)]
        return st.tuples(*(arrays(float, shape, elements=number) for shape in shapes))

    return st.integers(1, most).flatmap(build)


def masks(steps: int) -> list[np.ndarray]:
    return [np.array([True, *rest]) for rest in itertools.product((False, True), repeat=steps - 1)]


def errors(mask: np.ndarray, weight: np.ndarray, reuse: np.ndarray, forecast: np.ndarray | None = None) -> list[float]:
    """Weighted error of each step that is not computed, largest first; by hand, one step after the other."""
    found, computed = [], []
    for t, computes in enumerate(mask):
        if computes:
            computed.append(t)
        elif forecast is not None and len(computed) > 1:
            found.append(weight[t] * forecast[computed[-2], computed[-1], t])
        else:
            found.append(weight[t] * reuse[computed[-1], t])
    return sorted(found, reverse=True)


JOINS = {"sum": sum, "max": lambda e: max(e, default=0), "lexicographic": list}


@pytest.mark.parametrize("aggregation", JOINS)
@settings(max_examples=40, deadline=None)
@given(case=cases(8))
def test_reuse_front_is_the_best_of_all_plans(aggregation: str, case: tuple[np.ndarray, np.ndarray]) -> None:
    weight, reuse = case
    front = reuse_front(reuse, weight, aggregation)  # type: ignore[arg-type]
    join = JOINS[aggregation]
    assert len(front) == len(weight)
    for k, (error, mask) in enumerate(front, start=1):
        assert mask[0]
        assert mask.sum() == k
        best = min(join(errors(m, weight, reuse)) for m in masks(len(weight)) if m.sum() == k)
        own = errors(mask, weight, reuse)
        assert join(own) == best
        assert error == (sum(own) if aggregation == "sum" else max(own, default=0))


@pytest.mark.parametrize("aggregation", ["sum", "max"])
@settings(max_examples=40, deadline=None)
@given(case=cases(7, axes=3))
def test_forecast_front_is_the_best_of_all_plans(aggregation: str, case: tuple[np.ndarray, ...]) -> None:
    weight, reuse, forecast = case
    join = JOINS[aggregation]
    for k, (error, mask) in enumerate(forecast_front(reuse, forecast, weight, aggregation), start=1):  # type: ignore[arg-type]
        assert mask[0]
        assert mask.sum() == k
        best = min(join(errors(m, weight, reuse, forecast)) for m in masks(len(weight)) if m.sum() == k)
        assert error == join(errors(mask, weight, reuse, forecast)) == best


def gaps(mask: np.ndarray) -> np.ndarray:
    """Steps from each compute to the next or to the end."""
    return np.diff([*np.flatnonzero(mask), len(mask)])


@pytest.mark.parametrize("aggregation", ["sum", "max"])
@settings(max_examples=40, deadline=None)
@given(case=cases(8), lengths=st.tuples(st.integers(1, 4), st.integers(1, 8)))
def test_limits_of_length_are_kept_and_the_best_within_is_found(
    aggregation: str, case: tuple[np.ndarray, np.ndarray], lengths: tuple[int, int]
) -> None:
    weight, reuse = case
    join = JOINS[aggregation]
    within = [m for m in masks(len(weight)) if gaps(m).min() >= lengths[0] and gaps(m).max() <= lengths[1]]
    front = reuse_front(reuse, weight, aggregation, lengths)  # type: ignore[arg-type]
    assert [mask.sum() for _, mask in front] == sorted({m.sum() for m in within})
    for error, mask in front:
        best = min(join(errors(m, weight, reuse)) for m in within if m.sum() == mask.sum())
        assert error == join(errors(mask, weight, reuse)) == best
        assert any((mask == m).all() for m in within)


def test_cachequant_s_plan_of_14_steps_in_4_segments() -> None:
    """Against brute force over all segmentations of two to eight steps each (interval 4: half to twice)."""
    rng = np.random.default_rng(5)
    for _ in range(5):
        outputs = rng.normal(size=(14, 6)).cumsum(axis=0)
        distance = np.abs(outputs[:, None] - outputs[None]).sum(axis=2)
        found = next(m for m in even_plans(distance) if m.sum() == 4)
        every = [m for m in masks(14) if m.sum() == 4 and gaps(m).min() >= 2 and gaps(m).max() <= 8]
        best = min(every, key=lambda m: sum(errors(m, np.ones(14), distance)))
        assert (found == best).all()


def test_cachequant_has_a_plan_for_every_interval() -> None:
    distance = np.abs(np.arange(20.0)[:, None] - np.arange(20.0))
    plans = even_plans(distance)
    assert [int(mask.sum()) for mask in plans] == [round(20 / i) for i in range(2, 21)]
    assert np.flatnonzero(plans[2]).tolist() == [0, 4, 8, 12, 16]  # even outputs, even steps


def test_lengths_are_not_for_lexicographic_minima() -> None:
    with pytest.raises(ValueError, match="lengths are for sums and maxima; use aggregation sum or max"):
        reuse_front(np.zeros((3, 3)), np.ones(3), "lexicographic", (1, 2))


def test_ten_steps_of_real_numbers() -> None:
    rng = np.random.default_rng(0)
    weight, reuse, forecast = rng.random(10), rng.random((10, 10)), rng.random((10, 10, 10))
    for front, table in (
        (reuse_front(reuse, weight), None),
        (forecast_front(reuse, forecast, weight), forecast),
    ):
        for k, (error, _) in enumerate(front, start=1):
            best = min(sum(errors(m, weight, reuse, table)) for m in masks(10) if m.sum() == k)
            assert error == pytest.approx(best)


def test_a_forecast_that_equals_reuse_changes_nothing() -> None:
    rng = np.random.default_rng(1)
    weight, reuse = rng.random(12), rng.random((12, 12))
    same = np.broadcast_to(reuse, (12, 12, 12))
    for (a, mask_a), (b, mask_b) in zip(reuse_front(reuse, weight), forecast_front(reuse, same, weight), strict=True):
        assert a == pytest.approx(b)
        assert (mask_a == mask_b).all()


def test_what_cannot_be_used_is_not_read() -> None:
    rng = np.random.default_rng(2)
    weight, reuse, forecast = rng.random(6), rng.random((6, 6)), rng.random((6, 6, 6))
    expected = [error for error, _ in reuse_front(reuse, weight) + forecast_front(reuse, forecast, weight)]
    reuse[np.tril_indices(6)] = np.nan
    p, s, t = np.indices((6, 6, 6))
    forecast[(p >= s) | (s >= t)] = np.nan
    assert [error for error, _ in reuse_front(reuse, weight) + forecast_front(reuse, forecast, weight)] == expected


def test_lexicographic_breaks_the_ties_of_the_maximum() -> None:
    # With two computes the best maximum is 5 whatever else happens; computing step 2 leaves [5, 4].
    reuse = np.array([[0, 5, 5, 5], [0, 0, 1, 5], [0, 0, 0, 4], [0, 0, 0, 0]], dtype=float)
    one = dict(enumerate(reuse_front(reuse, np.ones(4), "lexicographic"), start=1))
    assert one[2][0] == 5
    assert errors(one[2][1], np.ones(4), reuse) == [5, 1]


def test_lexicographic_prefers_many_errors_to_one_that_is_larger() -> None:
    reuse = np.zeros((5, 5))
    reuse[0, 1:], reuse[1, 2:], reuse[2, 3:], reuse[3, 4:] = (3, 3, 3, 9), (4, 1, 1), 9, 9
    error, mask = reuse_front(reuse, np.ones(5), "lexicographic")[1]
    assert error == 3
    assert mask.tolist() == [True, False, False, False, True]


def test_fifty_steps_take_no_time() -> None:
    rng = np.random.default_rng(3)
    reuse, forecast, weight = rng.random((50, 50)), rng.random((50, 50, 50)), rng.random(50)
    assert len(reuse_front(reuse, weight, "lexicographic")) == 50
    assert len(forecast_front(reuse, forecast, weight)) == 50


@settings(max_examples=60, deadline=None)
@given(data=st.data(), steps=st.integers(1, 5), nodes=st.integers(1, 3))
def test_no_combination_dominates_a_merged_point(data: st.DataObject, steps: int, nodes: int) -> None:
    number = st.integers(0, 6).map(float)
    costs = {f"n{i}": float(data.draw(st.integers(1, 4))) for i in range(nodes)}
    fronts: dict[str, Front] = {
        name: reuse_front(
            data.draw(arrays(float, (steps, steps), elements=number)),
            data.draw(arrays(float, steps, elements=number)),
        )
        for name in costs
    }
    merged = merge_fronts(fronts, costs)
    every = [
        (sum(costs[n] * m.sum() for n, (_, m) in zip(costs, combo, strict=True)), sum(e for e, _ in combo))
        for combo in itertools.product(*fronts.values())
    ]
    for cost, error, chosen in merged:
        assert cost == sum(costs[n] * chosen[n].sum() for n in costs)
        assert not any(c <= cost and e <= error and (c < cost or e < error) for c, e in every)
    assert all(a[0] < b[0] and a[1] > b[1] for a, b in itertools.pairwise(merged))
    assert merged[0][0] == min(c for c, _ in every)
    assert merged[-1][1] == min(e for _, e in every)
    # nothing is missing either: every weighing of cost against error has its best point in the list
    for price in (0.1, 0.5, 1.0, 2.0, 5.0):
        assert min(e + price * c for c, e, _ in merged) == pytest.approx(min(e + price * c for c, e in every))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: reuse_front(np.zeros((3, 3)), np.ones(3), "mean"),
            "aggregation 'mean' is unknown; use sum, max or",
        ),
        (lambda: forecast_front(np.zeros((3, 3)), np.zeros((3, 3, 3)), np.ones(3), "mean"), "use sum or max"),
        (lambda: reuse_front(np.zeros((3, 4)), np.ones(3)), r"reuse has shape \(3, 4\); give \(3, 3\)"),
        (
            lambda: forecast_front(np.zeros((3, 3)), np.zeros((3, 3)), np.ones(3)),
            r"forecast has .* give \(3, 3, 3\)",
        ),
        (
            lambda: reuse_front(np.full((3, 3), np.nan), np.ones(3)),
            "reuse times weight has a number that is negative or not finite",
        ),
        (lambda: reuse_front(np.ones((3, 3)), -np.ones(3)), "reuse times weight has a number that is negative"),
        (
            lambda: merge_fronts({"a": [(0.0, np.ones(1, dtype=bool))]}, {"a": 0.0}),
            "cost of 'a' is 0.0; give a number",
        ),
        (lambda: merge_fronts({"a": [(0.0, np.ones(1, dtype=bool))]}, {}), "cost of 'a' is None; give a number"),
    ],
)
def test_refusals_say_what_is_wrong(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
