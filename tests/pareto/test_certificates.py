"""What certificates promise, against sums over all outcomes, simulation, and scipy's own binomial test."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from search.pareto.certificates import (
    MissCount,
    StoppingRule,
    certify_in_order,
    greatest_miss_rate,
    runs_without_a_miss,
)


def blocks(rule: StoppingRule, first: int) -> list[range]:
    return [range(a, b) for a, b in itertools.pairwise([0, *range(first, rule.looks[-1], first), rule.looks[-1]])]


@pytest.mark.parametrize("share, confidence, runs", [(0.9, 0.95, 29), (0.95, 0.95, 59), (0.9, 0.99, 44), (0.5, 0.5, 1)])
def test_so_many_runs_without_a_miss_are_the_fewest_that_the_binomial_test_accepts(share, confidence, runs) -> None:
    accepted = [binomtest(0, n, 1 - share, "less").pvalue <= 1 - confidence + 1e-12 for n in range(1, 2 * runs + 2)]
    assert runs_without_a_miss(share, confidence) == accepted.index(True) + 1 == runs


def test_a_single_decision_is_the_exact_binomial_test() -> None:
    for share, confidence in itertools.product((0.7, 0.9), (0.8, 0.95)):
        rule = StoppingRule.of(share, confidence, runs_without_a_miss(share, confidence) + 7)
        assert len(rule.looks) == 1
        for misses in range(rule.looks[0] + 1):
            test = binomtest(misses, rule.looks[0], 1 - share, "less")
            assert (misses <= rule.allowed[0]) == (test.pvalue <= 1 - confidence)
            upper = binomtest(misses, rule.looks[0], alternative="less").proportion_ci(confidence, "exact").high
            assert greatest_miss_rate(misses, rule.looks[0], confidence) == pytest.approx(upper)


def test_over_all_outcomes_what_just_fails_is_certified_with_at_most_the_error_and_one_miss_more_would_be_too_much():
    rule = StoppingRule.of(0.5, 0.75, 16)
    assert rule.looks == (8, 16)

    def error(allowed: tuple[int, ...]) -> float:
        first, second = binom.pmf(range(9), 8, 0.5), binom.cdf(range(17), 8, 0.5)
        late = sum(first[k] * second[allowed[1] - k] for k in range(allowed[0] + 1, allowed[1] + 1))
        return float(first[: allowed[0] + 1].sum() + late)

    assert error(rule.allowed) <= 0.25
    assert error((rule.allowed[0], rule.allowed[1] + 1)) > 0.25 < error((rule.allowed[0] + 1, rule.allowed[1]))


def test_false_certificates_are_as_rare_as_promised_for_a_whole_front_in_order() -> None:
    """Schedules that miss more and more, on the same runs: a false one is certified in at most 5 % of the searches."""
    rng, rule = np.random.default_rng(0), StoppingRule.of(0.9, 0.95, 128)
    rates = np.array([0.01, 0.05, 0.1001, 0.1002, 0.12, 0.3])
    false, true = 0, 0
    for _ in range(600):
        hard = rng.random(128)  # of a run, for all schedules

        def measure(number, runs, hard=hard):
            return (hard[runs] < rates[number]).tolist()

        tested = certify_in_order(len(rates), measure, rule, blocks(rule, 16))
        certified = [t is not None and t.certified for t in tested]
        assert certified == sorted(certified, reverse=True)  # the first ones
        false += any(certified[2:])
        true += certified[0]
    assert binomtest(false, 600, 0.05, "greater").pvalue > 0.01
    assert true / 600 > 0.99


def test_schedules_are_measured_only_as_long_as_that_can_matter() -> None:
    rule, measured = StoppingRule.of(0.9, 0.95, 128), []

    def measure(number, runs):
        measured.append((number, runs))
        return [number == 2 or (number == 1 and run == 5) for run in runs]  # the third always misses

    tested = certify_in_order(5, measure, rule, blocks(rule, 16))
    assert tested == [MissCount(32, 0, True), MissCount(64, 1, True), MissCount(6, 6, False), None, None]
    halves = [range(i, i + 16) for i in range(0, 64, 16)]
    assert measured == [*((0, runs) for runs in halves[:2]), *((1, runs) for runs in halves), (2, range(16))]
    assert certify_in_order(0, measure, rule, blocks(rule, 16)) == []
    assert certify_in_order(2, measure, rule, blocks(rule, 16)[:1]) == [None, None]  # no time for more


@given(st.lists(st.booleans(), max_size=160), st.integers(0, 159), st.sampled_from([32, 64, 128]))
def test_a_run_that_misses_never_helps_and_more_runs_take_no_certificate_away(missed, place, most) -> None:
    rule, longer = StoppingRule.of(0.9, 0.95, most), StoppingRule.of(0.9, 0.95, most + 64)
    decision = rule.decide(missed)
    worse = rule.decide([m or i == place for i, m in enumerate(missed)])
    assert not (worse and worse.certified) or (decision and decision.certified)
    assert longer.allowed[: len(rule.looks)] == rule.allowed
    if decision and decision.certified:
        assert longer.decide(missed) == decision
    if decision and not decision.certified:  # so many more without a miss are enough, one fewer is not
        further = rule.further_runs(decision)
        more = missed[: decision.runs] + [False] * further
        enough = StoppingRule.of(0.9, 0.95, len(more))
        assert enough.decide(more).certified
        assert not ((fewer := enough.decide(more[:-1])) and fewer.certified)


def test_what_cannot_be_promised_is_refused() -> None:
    with pytest.raises(ValueError, match=r"takes 304 runs or more, and at most 128 are made; give runs=304 or more"):
        StoppingRule.of(0.99, 0.95, 128)
    with pytest.raises(ValueError, match=r"share=1: give a number between 0 and 1"):
        runs_without_a_miss(1.0, 0.95)
    assert greatest_miss_rate(5, 5, 0.95) == 1.0
