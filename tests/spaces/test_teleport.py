"""The first steps by the Gaussian of final latents, as a gene; alone and with other spaces."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import search
from search import Schedule
from search.calibrate import gaussian
from search.calibrate.gaussian import add_gaussian, fit_gaussian
from search.config.prompts import read_prompts
from search.config.settings import Prompts
from search.models.base import to_schedule
from search.models.pipeline import Pipeline
from search.objectives.drift import Drift
from search.spaces.base import Space
from search.spaces.cache import CacheSpace
from search.spaces.guidance import GuidanceSpace
from search.spaces.joint import JointSpace
from search.spaces.stitch import StitchSpace
from search.spaces.teleport import TeleportSpace
from search.spaces.timesteps import TimestepsSpace
from search.testing.models import save_tiny, tiny_folder, tiny_model
from search.testing.space_contract import PROMPTS, SpaceContract
from search.tracking.notes import describe_search

SETTINGS = Prompts(calibration=PROMPTS, held_out=PROMPTS, calibration_count=None, held_out_count=None, batch=16, seed=0)


def add(model: Pipeline, folder: Path, rank: int = 3) -> Pipeline:
    add_gaussian(model, rank, PROMPTS, SETTINGS, folder)
    return model


@cache
def pair_model() -> Pipeline:
    """A model with a smaller one, and its Gaussian."""
    folder = Path(mkdtemp())
    return add(tiny_model(small=save_tiny(folder / "small", 1)), folder)


class TeleportContract(SpaceContract):
    @staticmethod
    def make_model() -> Pipeline:
        return pair_model()


class TestAlone(TeleportContract):
    @pytest.fixture
    def space(self) -> Space:
        return TeleportSpace(3)


class TestWithOthers(TeleportContract):
    @pytest.fixture
    def space(self) -> Space:
        parts = [StitchSpace("step"), TimestepsSpace(), CacheSpace("component"), GuidanceSpace(), TeleportSpace(3)]
        return JointSpace(parts)


def test_decode_by_hand():
    target, space = pair_model().target, TeleportSpace()
    assert [(g.name, g.levels) for g in space.genes(target)] == [("until@G", 4)]
    assert space.decode([2], target)["models"] == {"names": {"G": target.others["G"]}, "at": "GGLLLL"}
    at = {name: space.decode(x, target)["models"]["at"] for name, x in space.presets(target).items()}
    names = {1: "Gaussian for 1 step", 2: "Gaussian for 2 steps", 3: "Gaussian for 3 steps"}
    assert at == {name: "G" * n + "L" * (6 - n) for n, name in names.items()}
    assert JointSpace([CacheSpace(), TeleportSpace(7)]).gaussian_rank == 7 and CacheSpace().gaussian_rank == 0
    sampler = dict(target.sampler)
    fewer = {**sampler, "timesteps": sampler["timesteps"][::2], "sigmas": [*sampler["sigmas"][:-1:2], 0.0]}
    assert space.decode([2], target.on({"steps": 3, "sampler": fewer}))["models"]["at"] == "GLL"


@pytest.mark.parametrize("order", [1, -1])
def test_a_smaller_network_goes_on_where_the_gaussian_ends(order):
    target = pair_model().target
    space = JointSpace([StitchSpace(), TeleportSpace()][::order])
    assert [g.name for g in StitchSpace().genes(target)] == ["until@S"]

    def at(small: int, first: int) -> str:
        x = space.join({"stitch": np.array([small]), "teleport": np.array([first])}, target)
        return space.decode(x, target)["models"]["at"]

    assert (at(4, 2), at(1, 2), at(0, 2), at(2, 0)) == ("GGSSLL", "GGLLLL", "GGLLLL", "SSLLLL")


def test_what_does_not_fit_says_what_to_type():
    with pytest.raises(ValueError, match="has no Gaussian of its final latents; a search with space=teleport fits it"):
        TeleportSpace().genes(tiny_model().target)
    with pytest.raises(ValueError, match="rank is 0; it is the number of directions .* space.teleport.rank=32"):
        TeleportSpace(0)
    with pytest.raises(ValueError, match="replaces at most 60% of the first steps, and .* has 1; it needs two steps"):
        TeleportSpace().genes(replace(pair_model().target, steps=1))
    with pytest.raises(ValueError, match="no smaller denoiser at hand"):
        StitchSpace().genes(replace(pair_model().target, others={"G": pair_model().target.others["G"]}))


def test_the_gaussian_is_that_of_the_models_own_final_latents_and_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(gaussian, "RUNS", 10)
    model = tiny_model()
    fitted = fit_gaussian(model, 3, PROMPTS, 5, 4)
    latents = model.sample(PROMPTS * 5, [30_005 + i for i in range(10)])
    torch.testing.assert_close(fitted.mean, latents.mean(0), rtol=1e-4, atol=1e-4)
    part, again, sampled = add(model, tmp_path).target.others["G"], tiny_model(), []
    with monkeypatch.context() as patch:
        patch.setattr(type(model), "sample", lambda *given, **more: sampled.append(given))
        assert add(again, tmp_path).target.others["G"] == part and not sampled
    assert list(again.others) == ["G"] and add(tiny_model(), tmp_path / "nowhere", 0).others == {}
    (tmp_path / "gaussian.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="gaussian.safetensors is damaged; remove it, and the Gaussian is fitted"):
        add(again, tmp_path)


def test_calls_of_the_gaussian_cost_its_two_products():
    model = pair_model()
    costs = model.costs()
    schedule = to_schedule(model, model.target.stitched("GGLLLL"))
    assert schedule.tensors and costs.macs(schedule) == 4 * costs.call_macs + 2 * costs.others["G"].call_macs
    model.begin(["red apple"], [0])
    with model.apply(schedule), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model.sample(["red apple"], [0])
    assert counter.get_total_flops() // 2 == costs.macs(schedule)
    assert costs.size(schedule) == costs.weight_bytes + model.others["G"].nbytes


@pytest.mark.slow
def test_a_searched_gaussian_is_exported_and_needs_no_other_pipeline(tmp_path, short_report):
    result = search.search(
        "model.steps=6", "model.max_sequence_length=8", f"model.path={tiny_folder()}", "tracking.enabled=false",
        "prompts.calibration_count=2", "prompts.held_out_count=2", model="pixart", space="teleport",
        objective=["drift", "macs"], engine="exhaustive", runs=tmp_path / "runs", certify="off",
    )  # fmt: skip
    entry = next(e for e in result.of("front") if e.schedule.models)
    (file,) = search.export(pick=entry.name, out=tmp_path / "s.json", runs=tmp_path / "runs")
    schedule, model = Schedule.load(file), tiny_model(steps=6)
    assert schedule == entry.schedule
    assert set(schedule.tensors) == {f"models/G.{name}" for name in ("mean", "basis", "values")}
    prompts, seeds = read_prompts("emoji_held_out.txt")[:2], [10_000, 10_001]
    teacher = model.sample(prompts, seeds)
    with schedule.apply(model.pipe) as handle:
        found = Drift()(model.sample(prompts, seeds), teacher)
        assert handle.stats()["models"]["G"] > 0
    assert entry.held_out["drift"].value == pytest.approx(float(found.mean()), rel=1e-3)
    assert "models=" not in describe_search(result)
    explanation = search.explain(file, tiny_model(steps=6), by=["part"])
    assert [effect.name for effect in explanation.effects] == ["fitted solver", "first steps by a Gaussian"]
    assert explanation.drift > 0 and explanation.effects[1].saved > 0.1
    assert search.verify(file, tiny_model(steps=6), prompts=prompts).passed
