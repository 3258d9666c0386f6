"""What may be said about schedules: against brute force, and against what is known by construction."""

import numpy as np
import pytest

from search.objectives.base import Quality
from search.objectives.drift import Drift
from search.objectives.macs import Macs
from search.pareto.certificates import MissCount
from search.pareto.domination import non_dominated
from search.pareto.intervals import _tails, difference_interval, surely_dominated
from search.results.compare import (
    held_out_gaps,
    mark_dominated,
    paired_difference,
    recommended_name,
    reward_warnings,
    summarise_scores,
    tuned_reward_warning,
)
from search.results.result import Entry
from search.results.scores import Score
from tests.helpers.liked_reward import Liked

RNG = np.random.default_rng


class Shiny(Quality):
    key, unit, better = "shiny", "", "higher"

    def __call__(self, run, teacher, prompts):
        raise NotImplementedError

    def worst(self, costs):
        return 0.0


OBJECTIVES = {"drift": Drift(), "macs": Macs(), "liked": Liked(), "shiny": Shiny()}


def entry(name: str, role: str = "front", **samples: list[float]) -> Entry:
    return Entry(name, role, None, {}, {k: Score(float(np.mean(v))) for k, v in samples.items()}, samples=samples)


# Domination


@pytest.mark.parametrize("seed", range(5))
def test_without_spread_it_is_ordinary_domination(seed: int) -> None:
    y = RNG(seed).integers(0, 4, (12, 3)).astype(float)
    values, costs = np.repeat(y[:, :2, None], 5, axis=2), y[:, 2:]
    found = surely_dominated(values, costs, RNG(0))
    expected = [any((y[j] <= y[i]).all() and (y[j] < y[i]).any() for j in range(12)) for i in range(12)]
    assert [by is not None for by in found] == expected
    for i, by in enumerate(found):
        assert by is None or ((y[by] <= y[i]).all() and (y[by] < y[i]).any())
    kept = [i for i in range(12) if found[i] is None]
    assert {tuple(y[i]) for i in kept} == {tuple(row) for row in y[non_dominated(y)]}


def test_shares_of_draws_by_hand() -> None:
    values = RNG(3).normal(size=(4, 1, 9))
    values[1, 0] = values[0, 0] + 0.4 + 0.6 * RNG(4).normal(size=9)
    costs = np.array([[1.0], [1.0], [2.0], [0.5]])
    drawn = RNG(7).integers(9, size=(200, 9))

    def share(j: int, i: int) -> float:
        count = 0
        for row in drawn:
            a, b = values[j, 0, row].mean(), values[i, 0, row].mean()
            count += bool((a <= b and costs[j, 0] <= costs[i, 0]) and (a < b or costs[j, 0] < costs[i, 0]))
        return count / 200

    for level in (0.5, 0.8, 0.95):
        found = surely_dominated(values, costs, RNG(7), level, draws=200)
        level = 1 - _tails(2 * level - 1, 9)[0]
        for i in range(4):
            shares = [share(j, i) for j in range(4)]
            assert found[i] == (int(np.argmax(shares)) if max(shares) >= level else None)


def test_what_prompts_share_does_not_hide_a_difference_and_noise_makes_none() -> None:
    hard = 10 * RNG(0).random(16)  # what makes a prompt hard is in both
    costs = np.ones((2, 1))
    close = np.stack([hard, hard + 0.1 + 0.05 * RNG(1).random(16)])[:, None]
    assert surely_dominated(close, costs, RNG(0)) == [None, 0]
    noise = RNG(2).normal(size=(2, 1, 16))
    assert surely_dominated(noise, costs, RNG(0)) == [None, None]


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"give values \[N, Q, P\] and costs \[N, C\] of the same N"):
        surely_dominated(np.zeros((3, 2)), np.zeros((3, 1)), RNG(0))
    with pytest.raises(ValueError, match=r"an interval needs values \[P\] and \[Q\]"):
        difference_interval(np.zeros(0), np.zeros(3), RNG(0))


# Gaps


def test_a_gap_has_the_normal_interval_where_prompts_are_many() -> None:
    a, b = RNG(0).normal(1.0, 2.0, 400), RNG(1).normal(0.5, 1.0, 900)
    low, high = difference_interval(a, b, RNG(0), draws=4000)
    middle, half = a.mean() - b.mean(), 1.96 * np.sqrt(a.var() / 400 + b.var() / 900)
    assert (low, high) == pytest.approx((middle - half, middle + half), abs=0.02)


def test_gaps_are_of_qualities_that_both_splits_have() -> None:
    found = held_out_gaps({"drift": [0.3, 0.5], "macs": [0.5], "shiny": [1.0]}, {"drift": [0.1, 0.1, 0.1]}, OBJECTIVES)
    assert list(found) == ["drift"]
    assert found["drift"].value == pytest.approx(0.3) and found["drift"].low == pytest.approx(0.2)


def test_a_summary_leaves_out_what_has_no_values() -> None:
    found = summarise_scores({"drift": [0.1, 0.3], "macs": [0.5]}, OBJECTIVES)
    assert found["macs"] == Score(0.5) and list(found) == ["drift", "macs"]
    assert found["drift"].low == pytest.approx(0.1) and found["drift"].high == pytest.approx(0.3)


# Who is behind, and what is recommended


def test_the_front_says_who_is_surely_behind_and_rewards_are_paired_with_the_teacher() -> None:
    base = RNG(0).random(16)
    rows = [
        entry("good", drift=(0.1 * base).tolist(), macs=[0.5], liked=(base + 0.2).tolist()),
        entry("bad", drift=(0.1 * base + 0.05).tolist(), macs=[0.6], liked=(base - 0.1).tolist()),
        entry("dear", drift=(0.05 * base).tolist(), macs=[0.9], liked=base.tolist()),
        entry("preset", "preset", drift=(0.0 * base).tolist(), macs=[0.1], liked=base.tolist()),
        entry("teacher", "teacher", drift=(0.0 * base).tolist(), macs=[1.0], liked=base.tolist()),
    ]
    mark_dominated(rows, OBJECTIVES, ["drift", "macs"])
    assert [row.behind for row in rows] == ["", "good", "", "", ""]
    assert rows[0].change["liked"].value == pytest.approx(0.2) == rows[0].change["liked"].low
    assert rows[1].change["liked"].high == pytest.approx(-0.1) and rows[4].change == {}


def timed(name: str, psnr: list[float], speed: tuple[float, float, float], macs: float, **more: object) -> Entry:
    scores = {
        "psnr": Score(float(np.mean(psnr)), min(psnr), max(psnr)),
        "speedup": Score(*speed),
        "macs": Score(macs),
    }
    return Entry(name, "front", None, {}, scores, samples={"psnr": psnr}, **more)


CERTIFIED, REFUSED = MissCount(32, 0, True), MissCount(12, 4, False)


def test_the_fastest_that_is_certified_is_recommended() -> None:
    rows = [
        timed("refused", [20.0, 31.0], (5.0, 4.9, 5.1), 0.2, tested=REFUSED),
        timed("fast", [35.0, 40.0], (3.0, 2.9, 3.1), 0.4, tested=CERTIFIED),
        timed("slow", [50.0, 60.0], (2.0, 1.9, 2.1), 0.6, tested=CERTIFIED),
    ]
    assert recommended_name(rows) == "fast"
    assert recommended_name([rows[0], rows[2]]) == "slow"
    rows[1].behind = "slow"
    assert recommended_name(rows) == "slow"
    rows[2].behind = "refused"  # no other certified one is left
    assert recommended_name(rows) == "fast"
    assert recommended_name([]) == "teacher"


def test_times_that_overlap_do_not_decide() -> None:
    rows = [
        timed("lucky", [40.0, 41.0], (3.1, 2.0, 3.2), 0.6, tested=CERTIFIED),
        timed("lean", [40.0, 41.0], (3.0, 2.9, 3.1), 0.4, tested=CERTIFIED),
    ]
    assert recommended_name(rows) == "lean"
    rows[0] = timed("faster", [40.0, 41.0], (3.6, 3.5, 3.7), 0.6, tested=CERTIFIED)
    assert recommended_name(rows) == "faster"


def test_qualities_that_prompts_do_not_tell_apart_leave_it_to_speed() -> None:
    a = timed("truest", [10.0, 20.0, 15.0, 22.0], (1.5, 1.4, 1.6), 0.8)
    b = timed("as true", [21.0, 14.0, 22.0, 9.9], (2.5, 2.4, 2.6), 0.5)
    c = timed("worse", [8.0, 18.0, 13.0, 20.0], (3.5, 3.4, 3.6), 0.3)
    assert recommended_name([a, b, c]) == "as true"
    assert recommended_name([a, c]) == "truest"
    del a.samples["psnr"]  # read back from front.json: only intervals are left, and they overlap
    assert paired_difference(a, c, "psnr").low == pytest.approx(10.0 - 20.0)
    assert recommended_name([a, c]) == "worse"


# Hacking


def test_a_reward_that_was_not_searched_and_fell_is_told() -> None:
    base = RNG(0).random(12)
    teacher = entry("teacher", "teacher", drift=[0.0] * 12, liked=base.tolist(), shiny=base.tolist())
    hack = entry("hack", drift=[0.4] * 12, liked=(base - 0.2).tolist(), shiny=(base + 1).tolist())
    honest = entry("honest", drift=[0.1] * 12, liked=(base + 0.1).tolist(), shiny=(base + 1).tolist())
    lines = reward_warnings([hack, honest, teacher], OBJECTIVES, ["shiny", "macs"], ["liked"])
    assert len(lines) == 1 and lines[0].startswith("hack has a better shiny than the teacher, but liked")
    assert (
        reward_warnings([hack, honest, teacher], OBJECTIVES, ["drift", "macs"], ["liked"]) == []
    )  # nothing was gained
    noise = entry("noise", liked=(base + RNG(1).normal(size=12)).tolist(), shiny=(base + 1).tolist())
    assert reward_warnings([noise, teacher], OBJECTIVES, ["shiny"], ["liked"]) == []


def test_a_search_of_only_what_the_model_was_tuned_on_is_warned_of() -> None:
    def warning(searched: list[str], reported: list[str] = [], tuned_on: str = "liked") -> str:  # noqa: B006
        return tuned_reward_warning([tuned_on], OBJECTIVES, searched, reported)

    said = warning(["liked", "macs"])
    assert said.startswith("the model was tuned on liked, and no other quality is searched: the score may improve")
    assert said.endswith("objective=[liked,drift,macs], and name one that was not, guard=[ssim]")
    assert warning(["liked", "macs"], ["shiny", "macs"]).endswith("and judge by shiny of guard=")
    assert warning(["liked", "drift", "macs"]) == warning(["macs"]) == warning(["liked"], tuned_on="shiny") == ""
