import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search.engines.dp import forecast_front, merge, reuse_front

seeds = st.integers(0, 10_000)


def tables(seed: int, steps: int):
    rng = np.random.default_rng(seed)
    return np.triu(rng.random((steps, steps)), 1), rng.random((steps,) * 3), rng.random(steps)


def masks(steps: int):
    for rest in itertools.product([True, False], repeat=steps - 1):
        yield np.array([True, *rest])


def reuse_error(mask, reuse, weight, join=lambda a, b: a + b):
    total, last = 0.0, 0
    for t in range(len(mask)):
        if mask[t]:
            last = t
        else:
            total = join(total, weight[t] * reuse[last, t])
    return total


def forecast_error(mask, reuse, forecast, weight):
    total, computed = 0.0, []
    for t in range(len(mask)):
        if mask[t]:
            computed.append(t)
        elif len(computed) == 1:
            total += weight[t] * reuse[0, t]
        else:
            total += weight[t] * forecast[computed[-2], computed[-1], t]
    return total


@settings(max_examples=20, deadline=None)
@given(seed=seeds, steps=st.integers(2, 8), aggregation=st.sampled_from(["sum", "max"]))
def test_reuse_front_equals_brute_force(seed, steps, aggregation):
    reuse, _, weight = tables(seed, steps)
    join = max if aggregation == "max" else (lambda a, b: a + b)
    front = reuse_front(reuse, weight, aggregation)
    assert len(front) == steps
    for k, (error, mask) in enumerate(front, start=1):
        best = min(reuse_error(m, reuse, weight, join) for m in masks(steps) if m.sum() == k)
        assert error == pytest.approx(best)
        assert mask.sum() == k and mask[0]
        assert reuse_error(mask, reuse, weight, join) == pytest.approx(error)


@settings(max_examples=20, deadline=None)
@given(seed=seeds, steps=st.integers(2, 8))
def test_forecast_front_equals_brute_force(seed, steps):
    reuse, forecast, weight = tables(seed, steps)
    for k, (error, mask) in enumerate(forecast_front(reuse, forecast, weight), start=1):
        best = min(forecast_error(m, reuse, forecast, weight) for m in masks(steps) if m.sum() == k)
        assert error == pytest.approx(best)
        assert mask.sum() == k and mask[0]
        assert forecast_error(mask, reuse, forecast, weight) == pytest.approx(error)


@settings(max_examples=20, deadline=None)
@given(seed=seeds)
def test_no_combination_dominates_a_merged_point(seed):
    fronts, costs = {}, {"a": 1.0, "b": 2.5, "c": 0.7}
    for i, name in enumerate(costs):
        reuse, _, weight = tables(seed + i, 5)
        fronts[name] = reuse_front(reuse, weight)
    everything = [
        (sum(costs[n] * m.sum() for n, (_, m) in zip(costs, pick, strict=True)), sum(e for e, _ in pick))
        for pick in itertools.product(*(fronts[n] for n in costs))
    ]
    merged = merge(fronts, costs)
    assert [c for c, *_ in merged] == sorted(c for c, *_ in merged)
    for cost, error, chosen in merged:
        assert set(chosen) == set(costs)
        assert sum(costs[n] * m.sum() for n, m in chosen.items()) == pytest.approx(cost)
        assert not any(c < cost - 1e-9 and e < error - 1e-9 for c, e in everything)


def test_an_unknown_aggregation_is_named():
    with pytest.raises(ValueError, match="aggregation 'mean' is unknown; use sum or max"):
        reuse_front(np.zeros((3, 3)), np.ones(3), "mean")
