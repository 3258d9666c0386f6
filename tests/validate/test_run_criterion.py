"""The criterion that every run is held to: what can be typed, and which values miss it."""

import pytest

from search.objectives.drift import Drift
from search.objectives.macs import Macs
from search.objectives.mmd import Mmd
from search.objectives.psnr import Psnr
from search.validate.certificate import population_words
from search.validate.run_criterion import run_criterion
from tests.helpers.liked_reward import Liked

OBJECTIVES = {"psnr": Psnr(), "drift": Drift(), "liked": Liked(), "macs": Macs(), "mmd": object.__new__(Mmd)}


def test_values_that_do_not_meet_it_and_those_that_are_not_numbers_miss() -> None:
    criterion = run_criterion(" psnr>= 30 dB", OBJECTIVES)
    assert criterion.text == "psnr>=30" and criterion.missed([30.0, 29.99, float("nan"), 100.0]) == [0, 1, 1, 0]
    assert run_criterion("drift<0.1", OBJECTIVES).missed([0.1, 0.09]) == [True, False]
    assert max([40.0, 20.0, 30.0], key=criterion.badness) == 20.0


def test_a_drop_is_what_the_reward_is_below_the_teachers() -> None:
    drop, least = run_criterion("liked_drop<=1", OBJECTIVES), run_criterion("liked>=5", OBJECTIVES)
    assert drop.objective == "liked" and drop.values([4.0, 9.0], [6.0, 9.5]) == [2.0, 0.5]
    assert drop.missed([2.0, 0.5]) == [True, False] and least.missed(least.values([4.0, 9.0])) == [True, False]
    assert max([2.0, 0.5], key=drop.badness) == 2.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "lpips<=0.1",
            "no score 'lpips'; .* on psnr, drift, liked, liked_drop, or on an objective that guard=",
        ),
        ("macs<=0.5", "there is no score 'macs'"),
        ("mmd<=1", "there is no score 'mmd'"),
        ("psnr", "certify: 'psnr' is not understood; give one condition on a value of every run, such as certify="),
        ("psnr>=30 and drift<=0.1", "has 2 conditions; give one"),
        ("psnr<=30", "higher values of psnr are better; type psnr>=…"),
        ("liked_drop>=1", "lower values of liked_drop are better; type liked_drop<=…"),
        ("psnr>=30s", "psnr is not in 's'; give a number, or one with dB"),
    ],
)
def test_what_cannot_be_promised_is_refused_with_what_to_type(text, message) -> None:
    with pytest.raises(ValueError, match=message):
        run_criterion(text, OBJECTIVES)


def test_prompts_that_come_again_are_what_it_speaks_of() -> None:
    assert population_words(32, 1) == "a new prompt of this kind with new noise"
    assert population_words(16, 2) == "new noise on one of these 16 prompts"
    assert population_words(1, 32) == "new noise on this prompt"
