"""Models of one step, and schedulers that draw new noise at every step: what is refused, and what is left to search."""

from dataclasses import replace

import diffusers
import pytest

from search import Schedule
from search.config.compose import compose_config, normalise_overrides
from search.config.settings import Config
from search.loop.run import run
from search.schedule.schedulers import renoises
from search.spaces.bits import BitsSpace
from search.spaces.cache import CacheSpace
from search.spaces.gates import GatesSpace
from search.spaces.joint import JointSpace
from search.spaces.skip import SkipSpace
from search.spaces.solver import SolverSpace
from search.spaces.timesteps import TimestepsSpace
from search.testing.models import tiny_folder, tiny_model

ONE = tiny_model(steps=1)
FOUR = tiny_model(steps=4).target
RENOISED = replace(FOUR, renoises=True)


@pytest.mark.parametrize(
    ("space", "text"),
    [
        (CacheSpace(), r"a cache needs at least 2 steps, model.steps is 1; search space=\[skip,bits\], which need one"),
        (SolverSpace(), r"a solver needs at least 2 steps, model.steps is 1; search space=\[skip,bits\]"),
        (TimestepsSpace(), r"a timestep sequence needs at least 3 steps, model.steps is 1; search space=\[skip,bits\]"),
        (GatesSpace(), r"gates need 3 steps .* model.steps is 1; search space=bits"),
    ],
)
def test_one_step_has_nothing_to_reuse_or_to_move(space, text):
    with pytest.raises(ValueError, match=text):
        space.genes(ONE.target)
    with pytest.raises(ValueError, match=text):
        JointSpace([space, BitsSpace()]).genes(ONE.target)


@pytest.mark.parametrize("space", [SkipSpace(), BitsSpace()])
def test_one_step_has_bits_and_skips(space):
    first = next(gene.name for gene in space.genes(ONE.target))
    row = [int(gene.name == first) for gene in space.genes(ONE.target)]
    full = ONE.sample(["red apple"], [0])
    with Schedule.from_dict(ONE.target.schedule(space.decode(row, ONE.target))).apply(ONE.pipe):
        assert not ONE.sample(["red apple"], [0]).equal(full)
    assert ONE.sample(["red apple"], [0]).equal(full)


def search_one_step(folder, *more):
    given = [f"model.path={tiny_folder()}", "model.steps=1", f"runs={folder}", "tracking.enabled=false", *more]
    return run(Config.check(compose_config(normalise_overrides(given))))


def test_corrections_of_one_step_are_refused(tmp_path):
    with pytest.raises(ValueError, match="correct=true corrects reused values, and the only step of a run reuses none"):
        search_one_step(tmp_path, "+space=bits", "correct=true", "guard=[]")


@pytest.mark.slow
def test_a_search_of_one_step_ends_in_a_front(tmp_path):
    prompts = []
    for split, text in (("calibration", "red apple"), ("held_out", "blue boat")):
        (tmp_path / split).write_text(text)
        prompts.append(f"prompts.{split}={tmp_path / split}")
    budget = ["budget.evaluations=12", "budget.generation=6", "objective=[drift,bops]", "model.max_sequence_length=8"]
    result = search_one_step(tmp_path, "+space=[skip,bits]", "guard=[]", "certify=off", *budget, *prompts)
    assert result.of("front") and not [entry.name for entry in result.of("preset") if "step" in entry.name]


@pytest.mark.parametrize("space", [CacheSpace, GatesSpace])
def test_outputs_are_reused_across_new_noise_and_not_forecast(space):
    names = {gene.name: gene.levels for gene in space().genes(RENOISED)}
    assert names == {gene.name: gene.levels for gene in space(max_order=0).genes(RENOISED)}
    assert not any("O=" in name for name in space().presets(RENOISED)) and space().presets(RENOISED)
    with pytest.raises(ValueError, match=f"draws new noise at every step, .*; use space.{space.key}.max_order=0"):
        space(max_order=1).genes(RENOISED)


def test_schedulers_that_draw_all_noise_anew():
    flow = diffusers.FlowMatchEulerDiscreteScheduler
    assert renoises(diffusers.LCMScheduler()) and renoises(flow(stochastic_sampling=True))
    assert not renoises(flow()) and not renoises(diffusers.DPMSolverMultistepScheduler())
    assert not FOUR.renoises
