"""Several spaces as one: genes side by side, decoded in order, folded to the same behaviour."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from search import Schedule
from search.spaces.bits import BitsSpace
from search.spaces.cache import CacheSpace
from search.spaces.guidance import GuidanceSpace
from search.spaces.joint import JointSpace
from search.spaces.skip import SkipSpace
from search.spaces.solver import SolverSpace
from search.spaces.timesteps import TimestepsSpace
from search.testing.models import tiny_model
from search.testing.space_contract import PROMPTS, SpaceContract

SPACES = {
    "timesteps": TimestepsSpace(),
    "solver": SolverSpace(fit=False),
    "cache": CacheSpace(axis="logsnr"),
    "skip": SkipSpace(),
    "bits": BitsSpace(),
    "guidance": GuidanceSpace(),
}
PAIRS = [(a, b) for a in SPACES for b in SPACES if a < b]
TARGET = tiny_model().target


class TestAll(SpaceContract):
    @pytest.fixture
    def space(self):
        return JointSpace(list(SPACES.values()))


class TestFour(SpaceContract):
    @pytest.fixture
    def space(self):
        return JointSpace([TimestepsSpace(), SolverSpace(fit=False), CacheSpace("component", 2), BitsSpace()])


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.mark.parametrize("pair", PAIRS, ids="+".join)
def test_every_pair_composes(pair, model):
    space, target = JointSpace([SPACES[key] for key in pair]), model.target
    levels = np.array([g.levels for g in space.genes(target)])
    bare = model.sample(PROMPTS, [0, 1])
    for seed in range(3):
        rng = np.random.default_rng(seed)
        x = np.where(rng.random(len(levels)) < 0.4, rng.integers(0, levels), 0)
        schedule = Schedule.from_dict(target.schedule(space.decode(x, target)))
        with schedule.apply(model.pipe):
            assert torch.isfinite(model.sample(PROMPTS, [0, 1])).all()
    assert torch.equal(model.sample(PROMPTS, [0, 1]), bare)


@pytest.mark.parametrize("key", SPACES)
def test_one_part_alone_is_that_space(key):
    joint, space = JointSpace(list(SPACES.values())), SPACES[key]
    rng = np.random.default_rng(1)
    for _ in range(5):
        x = rng.integers(0, [g.levels for g in space.genes(TARGET)])
        alone = Schedule.from_dict(TARGET.schedule(space.decode(x, TARGET)))
        both = Schedule.from_dict(TARGET.schedule(joint.decode(joint.join({key: x}, TARGET), TARGET)))
        assert alone.steps >= both.steps
        if alone.steps == both.steps:
            assert both == alone


def test_genes_of_a_step_share_a_group():
    genes = JointSpace([TimestepsSpace(), CacheSpace("step")]).genes(TARGET)
    assert {g.name for g in genes if g.group == "step 3"} == {
        "timesteps.dropped@3",
        "timesteps.moved@3",
        "cache.denoiser@3",
    }


def test_a_skip_lies_over_a_reuse_and_what_it_leaves_unread_is_computed():
    space = JointSpace([CacheSpace("block", max_order=0), SkipSpace()])
    names = [g.name for g in space.genes(TARGET)]
    x = np.zeros(len(names), dtype=int)
    for t in range(1, 6):
        x[names.index(f"cache.transformer_blocks.1@{t}")] = 1
    for t in (0, 1, 3):
        x[names.index(f"skip.skip transformer_blocks.1@{t}")] = 1
    plan = Schedule.from_dict(TARGET.schedule(space.decode(x, TARGET))).plan
    assert plan.tokens["transformer_blocks.1"] == tuple("SSCSRR")


def test_cache_genes_follow_their_step_when_others_are_dropped():
    space = JointSpace([TimestepsSpace(), CacheSpace("step", max_order=0)])
    names = [g.name for g in space.genes(TARGET)]
    x = np.zeros(len(names), dtype=int)
    x[names.index("cache.denoiser@4")] = 1
    x[[names.index(f"timesteps.dropped@{t}") for t in (1, 2)]] = 1
    plan = Schedule.from_dict(TARGET.schedule(space.decode(x, TARGET))).plan
    assert plan.tokens["denoiser"] == tuple("CCRC")  # teacher's steps 0, 3, 4, 5


@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32 - 1), order=st.integers(0, 2))
def test_a_reused_step_of_a_table_folds_into_it(seed, order, model):
    """The folded schedule gives the latents of the unfolded one: rounding apart, fewer steps do the same."""
    rng = np.random.default_rng(seed)
    spaces = [SolverSpace(fit=False), CacheSpace("step", max_order=order, axis="logsnr")]
    joint, target = JointSpace(spaces), model.target
    solver = rng.integers(0, [g.levels for g in spaces[0].genes(target)])
    cache = rng.integers(0, [g.levels for g in spaces[1].genes(target)])
    parts = spaces[0].decode(solver, target)
    if not parts or not spaces[1].decode(cache, target):
        return
    long = Schedule.from_dict(target.schedule({**parts, **spaces[1].decode(cache, target)}))
    folded = joint.decode(np.concatenate([solver, cache]), target)
    short = Schedule.from_dict(target.schedule(folded))
    computed = long.plan.tokens["denoiser"].count("C")
    assert short.steps == computed
    assert short.plan.is_off
    found = []
    for schedule in (long, short):
        with schedule.apply(model.pipe):
            found.append(model.sample(PROMPTS, [0, 1]).double())
    scale = max(1.0, float(found[0].abs().max()))
    assert torch.allclose(found[0], found[1], atol=2e-3 * scale)


def test_a_space_twice_is_refused():
    with pytest.raises(ValueError, match=r"space=\['skip', 'skip'\] has one space twice"):
        JointSpace([SkipSpace(), SkipSpace()])
