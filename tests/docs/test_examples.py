"""The files of docs/examples work: an objective, a cost, a space and an engine of a user."""

import sys
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hydra.utils import instantiate

from search import Schedule
from search.config.compose import compose_config, message_of_user_error, normalise_overrides
from search.config.settings import Config
from search.results.front import read_front
from search.results.pick import pick_entries
from search.testing import CostContract, EvolutionContract, SpaceContract
from search.testing.models import tiny_folder, tiny_model
from tests.helpers.repository import ROOT

CONF = ROOT / "docs" / "examples" / "my_conf"


NAMES = ("colourful", "hill", "nfe", "period")


@pytest.fixture(autouse=True)
def examples(monkeypatch):
    """Their folder is on the path, as --config-dir puts it there."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(CONF)])
    yield
    for name in NAMES:
        sys.modules.pop(name, None)


def test_two_files_make_an_objective():
    raw = compose_config(normalise_overrides(["objective=[colourful,macs]", "objective.colourful.pull=0.5"]), str(CONF))
    own = instantiate(raw["objective"]["colourful"])
    pictures = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for picture, value in zip(pictures, own.score(pictures, ["a"] * 3), strict=True):
        red, green, blue = (plane.flatten() for plane in picture)
        rg, yb = red - green, 0.5 * (red + green) - blue
        expected = (rg.std() ** 2 + yb.std() ** 2) ** 0.5 + 0.5 * (rg.mean() ** 2 + yb.mean() ** 2) ** 0.5
        assert float(value) == pytest.approx(float(expected), rel=1e-5)
    assert float(own.score(pictures[:1].mean(1, keepdim=True).expand(1, 3, 8, 8), ["a"])) == pytest.approx(0, abs=1e-6)


def test_a_class_that_is_not_found_says_where_it_belongs(tmp_path):
    (tmp_path / "objective").mkdir()
    (tmp_path / "objective" / "mine.yaml").write_text("# @package objective.mine\n_target_: mine.Missing\n")
    raw = compose_config(normalise_overrides(["objective=[mine,macs]"]), str(tmp_path))
    with pytest.raises(Exception) as error:
        instantiate(raw["objective"]["mine"])
    assert "Put its file into the folder of --config-dir, or into one on PYTHONPATH" in str(
        message_of_user_error(error.value)
    )


def test_a_cost_counts_denoiser_calls():
    from nfe import Nfe

    target = tiny_model().target
    rules = [["denoiser", "C" + "CR" * ((target.steps - 1) // 2) + "C" * ((target.steps - 1) % 2)]]
    schedule = Schedule.from_dict(target.schedule({"plan": {"rules": rules}}))
    assert Nfe()(schedule, None) == target.steps - (target.steps - 1) // 2
    assert Nfe()(Schedule.from_dict(target.schedule({})), None) == target.steps


class TestNfe(CostContract):
    @pytest.fixture
    def objective(self):
        from nfe import Nfe

        return Nfe()


class TestPeriodSpace(SpaceContract):
    @pytest.fixture
    def space(self):
        from period import PeriodSpace

        return PeriodSpace()

    @pytest.mark.parametrize("n", [2, 3])
    def test_without_more_warm_up_it_is_fora(self, space, target, n):
        ((node, actions),) = space.decode([n - 1, 0], target)["plan"]["rules"]
        assert node == "denoiser"
        assert actions == "".join("R" if t % n else "C" for t in range(target.steps))

    def test_each_row_is_found_again_by_its_actions(self, space, target):
        for period in range(1, space.longest):
            ((_, actions),) = space.decode([period, 1], target)["plan"]["rules"]
            row = space.encode({"denoiser": list(actions)}, target)
            assert space.decode(row, target) == space.decode([period, 1], target)
        assert not space.encode({}, target).any()
        assert space.encode({"denoiser": ["C", *["S"] * (target.steps - 1)]}, target) is None
        assert space.encode({"attn1": ["C"] * target.steps}, target) is None

    def test_the_warm_up_that_is_proposed_has_the_least_expected_drift(self, space, target):
        steps, rng = target.steps, np.random.default_rng(0)
        errors, weights = np.triu(rng.random((steps, steps)), 1), rng.random(steps)
        tables = SimpleNamespace(target=target, weights=weights, reuse_errors=lambda names: errors)
        drifts = {}
        for period, warm_up in product(range(1, space.longest), range(4)):
            ((_, actions),) = space.decode([period, warm_up], target)["plan"]["rules"]
            source, drifts[period, warm_up] = 0, 0.0
            for step, action in enumerate(actions):
                source = step if action == "C" else source
                drifts[period, warm_up] += weights[step] * errors[source, step]
        rows = space.propose(tables)
        assert [row[0] for row in rows] == list(range(1, space.longest))
        for period, warm_up in rows:
            assert drifts[period, warm_up] == pytest.approx(min(drifts[period, w] for w in range(4)))

    def test_the_period_begins_after_the_warm_up(self, space, target):
        ((_, actions),) = space.decode([2, 1], target)["plan"]["rules"]
        assert actions == ("CC" + "RRC" * target.steps)[: target.steps]


class TestHillEngine(EvolutionContract):
    @staticmethod
    def make(start):
        from hill import HillEngine

        return HillEngine(start)


def searched(tmp_path, *given: str):
    """A short search on the tiny pipeline with the examples' options."""
    from search.loop.run import run

    for name, lines in (("calibration", "red apple\nblue boat\n"), ("held_out", "blue apple\n3d boat\n")):
        (tmp_path / f"{name}.txt").write_text(lines)
    options = [
        f"model.path={tiny_folder()}",
        "model.steps=6",
        "model.max_sequence_length=8",
        f"prompts.calibration={tmp_path / 'calibration.txt'}",
        f"prompts.held_out={tmp_path / 'held_out.txt'}",
        f"runs={tmp_path / 'runs'}",
        "tracking.enabled=false",
        "certify=off",
        "budget.evaluations=12",
    ]
    return run(Config.check(compose_config(normalise_overrides([*given, *options]), str(CONF))))


@pytest.mark.slow
def test_the_objective_is_searched(tmp_path, short_report):
    result = searched(tmp_path, "objective=[colourful,macs]")
    assert result.objectives == ["colourful", "macs"] and result.of("front")
    assert {"colourful"} == set(result.of("front")[0].gap) == set(result.of("front")[0].change)


@pytest.mark.slow
def test_space_cost_and_engine_search_together_and_in_a_joint_space(tmp_path):
    result = searched(tmp_path, "+space=[timesteps,period]", "objective=[drift,nfe]", "engine=hill")
    assert result.objectives == ["drift", "nfe"] and result.of("front")
    assert result.axes == ("nfe", "drift")
    (best,) = pick_entries(read_front(result.folder), "nfe<=3")[:1]
    fitting = [e for e in result.of("front") if e.held_out["nfe"].value <= 3]
    assert best["name"] == min(fitting, key=lambda e: e.held_out["drift"].value).name
