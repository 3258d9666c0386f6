"""Shortest paths with a given number of steps, against brute force."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search.exact.paths import reach_paths, shortest_paths


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), size=st.integers(2, 8))
def test_shortest_paths_equal_brute_force(seed, size):
    cost = np.random.default_rng(seed).random((size, size + 1))
    for count, found in zip(range(1, size + 1), shortest_paths(cost, range(1, size + 1)), strict=True):

        def total(path):
            return sum(cost[a, b] for a, b in itertools.pairwise([*path, size]))

        every = [(0, *rest) for rest in itertools.combinations(range(1, size), count - 1)]
        assert total(found) == pytest.approx(min(total(path) for path in every))


def test_reach_spends_steps_where_the_outputs_change():
    times = np.linspace(0, 1, 41)
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 50))
    sharp = np.tanh((times[:-1] - 0.8) * 20)  # the outputs turn at 0.8
    outputs = a + sharp[:, None] * b
    states = np.concatenate([[rng.normal(size=50)], np.zeros((40, 50))])
    for i in range(40):
        states[i + 1] = states[i] + outputs[i] / 40
    for count, path in zip((4, 8), reach_paths(states, outputs, (4, 8)), strict=True):
        assert path[0] == 0
        assert len(path) <= count
        assert path == sorted(set(path))
        late = [p for p in path if 24 <= p <= 38]
        assert len(late) >= len(path) // 2


def test_the_whole_run_is_one_path():
    cost = np.ones((5, 6))
    assert shortest_paths(cost, [5]) == [[0, 1, 2, 3, 4]]
    states, outputs = np.random.default_rng(0).normal(size=(2, 6, 9))
    assert reach_paths(states, outputs[:5], [5])[0][0] == 0


def test_impossible_counts_are_named():
    with pytest.raises(ValueError, match="no path of 4 steps through 3; use counts from 1 to 3"):
        shortest_paths(np.ones((3, 4)), [4])
