"""Races: what is surely behind is dropped, what may be ahead is not, and estimates are on the scale of all prompts."""

import numpy as np
import pytest

from search.evaluate.racing import FEWEST, Race, Rival


def rivals(*drift: list[float], cost: float = 0.5) -> list[Rival]:
    return [Rival(np.array(values), np.array([cost])) for values in drift]


BEST = [0.10, 0.11, 0.09, 0.10, 0.12, 0.08, 0.10, 0.11]


def test_who_is_behind_on_every_prompt_is_beaten():
    race = Race(rivals(BEST))
    assert race.beaten([d + 0.01 for d in BEST[:4]], np.array([0.5]))
    assert not race.beaten([d - 0.001 for d in BEST[:4]], np.array([0.5]))


def test_who_is_cheaper_is_not_beaten():
    race = Race(rivals(BEST))
    assert not race.beaten([9.0] * 4, np.array([0.49]))
    assert race.beaten([9.0] * 4, np.array([0.51]))
    assert not Race([]).beaten([9.0] * 4, np.array([0.5]))


def test_a_difference_that_prompts_disagree_about_is_none():
    race = Race(rivals([0.1] * 8))
    assert not race.beaten([0.05, 0.05, 0.05, 0.26], np.array([0.5]))  # behind on the average, by one prompt
    assert race.beaten([0.11, 0.12, 0.12, 0.26], np.array([0.5]))


def test_too_few_prompts_say_nothing_and_what_diverged_is_beaten():
    race = Race(rivals(BEST))
    assert not race.beaten([9.0] * (FEWEST - 1), np.array([0.5]))
    assert race.beaten([float("nan")] * FEWEST, np.array([0.1]))


def test_slack_asks_for_so_many_times_less():
    own = [2 * d + 0.001 for d in BEST]
    assert Race(rivals(BEST), slack=2.0).beaten(own, np.array([0.5]))
    assert not Race(rivals(BEST), slack=2.1).beaten(own, np.array([0.5]))


def test_equals_are_rarely_dropped():
    """Of candidates that are as good as the rival on average, whatever prompts come first, about one in twenty."""
    rng = np.random.default_rng(0)
    dropped = [
        Race(rivals(list(0.1 + 0.02 * rng.normal(size=32)))).beaten(
            list(0.1 + 0.02 * rng.normal(size=8)), np.array([0.5])
        )
        for _ in range(400)
    ]
    assert 0.01 < np.mean(dropped) < 0.12


def test_an_estimate_follows_what_the_rivals_did_on_the_other_prompts():
    race = Race(rivals([0.1, 0.1, 0.2, 0.2], [0.2, 0.2, 0.4, 0.4]))
    assert race.expected([0.3, 0.3]) == pytest.approx(0.45)
    assert Race([]).expected([0.3, 0.5]) == pytest.approx(0.4)


def test_one_unstable_prompt_decides_a_mean_and_no_geometric_mean():
    race = {over: Race(rivals([0.1] * 8), over=over) for over in ("mean", "log")}
    own = [0.05, 0.05, 0.05, 0.05, 0.05, 0.05, 0.05, 4.0]
    assert race["mean"].expected(own) == pytest.approx(np.mean(own))
    assert race["log"].expected(own) == pytest.approx(np.exp(np.log(own).mean()))
    behind = [0.11, 0.12, 0.12, 0.11, 0.12, 0.11, 0.12, 0.13]
    assert all(each.beaten(behind, np.array([0.5])) for each in race.values())
    assert not race["log"].beaten(own, np.array([0.5]))
