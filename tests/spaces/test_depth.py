"""The depth space: cuts, encoder propagation and noise against a UNet forward written by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from search import Schedule
from search.config.compose import compose_config, normalise_overrides
from search.config.settings import Config
from search.profile.count import count_costs
from search.profile.target import Target
from search.schedule.model.identity import model_part
from search.schedule.model.nodes import Tree
from search.schedule.schedulers import public_config, scheduler_grid
from search.spaces.cache import CacheSpace
from search.spaces.depth import DepthSpace
from search.spaces.joint import JointSpace
from search.spaces.solver import SolverSpace
from search.spaces.timesteps import TimestepsSpace
from search.testing.models import tiny_family, tiny_model
from search.testing.space_contract import SpaceContract
from tests.helpers.denoiser_loops import TINY, pipeline, run

STEPS = 6
ENCODER, WHOLE = 7, 8  # levels of a UNet with 6 skip connections


class Unet(SpaceContract):
    @staticmethod
    def make_model():
        return tiny_family("sd", steps=6)


class TestDepth(Unet):
    @pytest.fixture
    def space(self):
        return DepthSpace()


class TestWithTheOthers(Unet):
    @pytest.fixture
    def space(self):
        return JointSpace([DepthSpace(below=[700]), TimestepsSpace(), SolverSpace(fit=False), CacheSpace()])


class ByHand:
    """A UNet forward that keeps what it has last seen: skips [K], middle, what enters each layer of the decoder.

    At a cut, as in DeepCache, the encoder stops once it has given that skip connection, and the decoder goes on with
    the tensor that entered the layer which takes it.
    """

    def __init__(self, unet, levels):
        self.unet, self.levels = unet, levels
        self.skips, self.entering, self.middle, self.output = {}, {}, None, None
        self.count = len(unet.up_blocks) * (unet.config.layers_per_block + 1)

    def __call__(self, step, sample, timestep, encoder_hidden_states, return_dict):
        level = self.levels[step]
        if level == self.count + 2:
            return (self.output,)
        time = self.unet.time_embedding(self.unet.time_proj(timestep).to(sample.dtype))
        cut = self.count - level if 1 <= level <= self.count else None
        if level != self.count + 1:
            self.encode(sample, time, encoder_hidden_states, cut)
        hidden = self.middle if cut is None else self.entering[cut]
        self.output = self.decode(hidden, time, encoder_hidden_states, self.count - 1 if cut is None else cut)
        return (self.output,)

    def encode(self, sample, time, text, cut):
        hidden = self.skips[0] = self.unet.conv_in(sample)
        place = 0
        for block in self.unet.down_blocks:
            attentions = getattr(block, "attentions", [None] * len(block.resnets))
            for resnet, attention in zip(block.resnets, attentions, strict=True):
                if place == cut:
                    return
                hidden = layer(resnet, attention, hidden, time, text)
                place += 1
                self.skips[place] = hidden
            for sampler in block.downsamplers or ():
                if place == cut:
                    return
                hidden = sampler(hidden)
                place += 1
                self.skips[place] = hidden
        if cut is None:
            self.middle = self.unet.mid_block(hidden, time, encoder_hidden_states=text)

    def decode(self, hidden, time, text, first):
        place = self.count
        for block in self.unet.up_blocks:
            attentions = getattr(block, "attentions", [None] * len(block.resnets))
            for resnet, attention in zip(block.resnets, attentions, strict=True):
                place -= 1
                if place <= first:
                    self.entering[place] = hidden
                    hidden = layer(resnet, attention, torch.cat([hidden, self.skips[place]], 1), time, text)
            for sampler in block.upsamplers or ():
                hidden = sampler(hidden) if place <= first else hidden
        return self.unet.conv_out(self.unet.conv_act(self.unet.conv_norm_out(hidden)))


def layer(resnet, attention, hidden, time, text):
    hidden = resnet(hidden, time)
    return hidden if attention is None else attention(hidden, encoder_hidden_states=text, return_dict=False)[0]


def target_of(pipe, steps=STEPS, **changes):
    timesteps, sigmas = scheduler_grid(pipe.scheduler, steps)
    sampler = {"class": type(pipe.scheduler).__name__, "config": public_config(pipe.scheduler)}
    sampler |= {"timesteps": timesteps, "sigmas": sigmas}
    return replace(Target("unet", Tree.of(pipe.denoiser), steps, model_part(pipe.denoiser), sampler), **changes)


def decoded(pipe, levels, space=None, **changes):
    space = space or DepthSpace(strengths=[])
    target = target_of(pipe, len(levels), **changes)
    return Schedule.from_dict(target.schedule(space.decode(levels[1:], target)))


@pytest.mark.parametrize("level", range(1, WHOLE + 1))
def test_every_level_equals_a_forward_by_hand(level):
    """The paper's two kinds of steps in turn: full, and cut short at one skip connection."""
    pipe = pipeline("UNet2DConditionModel")
    levels = [0, level, level, 0, level, level]
    expected = run(pipe, STEPS, ByHand(pipe.denoiser, levels))
    schedule = decoded(pipe, levels)
    with schedule.apply(pipe) as handle:
        assert torch.equal(run(pipe, STEPS), expected)
        executed = handle.stats()["nodes"]
    assert executed["mid_block.0" if level < WHOLE else "denoiser"] == {"C": 2, "R": 4}
    assert not torch.equal(expected, run(pipe, STEPS))


@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
@given(levels=st.lists(st.integers(0, WHOLE), min_size=STEPS - 1, max_size=STEPS - 1))
def test_levels_in_any_order_read_the_newest_values(levels):
    pipe = pipeline("UNet2DConditionModel")
    expected = run(pipe, STEPS, ByHand(pipe.denoiser, [0, *levels]))
    with decoded(pipe, [0, *levels]).apply(pipe):
        assert torch.equal(run(pipe, STEPS), expected)


def test_cuts_of_a_unet_of_two_resolutions():
    """Skips: conv_in, two layers and a downsampler, two layers. The decoder takes them in three and three layers."""
    target = target_of(pipeline("UNet2DConditionModel"))
    space = DepthSpace()
    plans = [dict(space.decode([level, 0, 0, 0, 0, 0, 0], target)["plan"]["rules"]) for level in range(1, WHOLE + 1)]
    assert set(sum((list(p.values()) for p in plans), [])) == {"CRCCCC"}
    assert [list(p) for p in plans[:3]] == [
        ["mid_block.0"],
        ["down_blocks.1:resnets.1", "mid_block.0", "up_blocks.0:resnets.0"],
        ["down_blocks.1", "mid_block.0", "up_blocks.0:resnets.0", "up_blocks.0:resnets.1"],
    ]
    assert list(plans[4]) == [
        "down_blocks.0:resnets.1",
        "down_blocks.0:attentions.1",
        "down_blocks.0:downsamplers.0",
        "down_blocks.1",
        "mid_block.0",
        "up_blocks.0",
        "up_blocks.1:resnets.0",
        "up_blocks.1:attentions.0",
    ]
    assert "down_blocks.0" in plans[5] and "conv_in.0" not in plans[5] and "up_blocks.1:resnets.2" not in plans[5]
    assert list(plans[6]) == ["conv_in.0", "down_blocks.0", "down_blocks.1", "mid_block.0"]
    assert list(plans[7]) == ["denoiser"]


def test_deeper_cuts_cost_more():
    pipe = pipeline("UNet2DConditionModel")
    given = TINY["UNet2DConditionModel"].given() | {"timestep": torch.ones(2)}
    tree = Tree.of(pipe.denoiser)
    costs = count_costs(pipe.denoiser, tree, STEPS, lambda: pipe.denoiser(torch.zeros(2, 4, 8, 8), **given))
    macs = [costs.macs(decoded(pipe, [0, level, 0, 0, 0, 0])) for level in range(WHOLE + 1)]
    assert macs[0] == costs.teacher_macs
    assert macs[:ENCODER] == sorted(macs[:ENCODER], reverse=True) and len(set(macs)) == WHOLE + 1
    assert macs[WHOLE] == costs.teacher_macs - costs.call_macs == min(macs)


def test_presets_are_the_published_steps():
    pipe = pipeline("UNet2DConditionModel")
    target, space = target_of(pipe, 50), DepthSpace()
    presets = space.presets(target)
    depth = {name: [0, *x[:49].tolist()] for name, x in presets.items()}
    full = {name: [t for t, level in enumerate(levels) if level == 0] for name, levels in depth.items()}
    assert full["DeepCache N=3 branch 0"] == list(range(0, 50, 3))
    assert set(depth["DeepCache N=5 branch 0"]) == {0, 6} and set(depth["DeepCache N=5 branch 1"]) == {0, 5}
    assert full["Faster Diffusion"] == [0, 1, 2, 3, 5, 10, 15, 25, 35]
    assert full["Faster Diffusion k=5"] == list(range(0, 50, 5))
    assert set(depth["Faster Diffusion"]) == {0, ENCODER}
    assert presets["Faster Diffusion"][49:].tolist() == [2, 0]
    assert presets["Faster Diffusion, no noise"][49:].tolist() == [0, 0]
    assert space.decode(presets["Faster Diffusion"], target)["start"] == {
        "kind": "noise",
        "inject": {"strength": 0.003, "below": 500},
    }
    for n in (2, 3, 5):  # as many full steps as at even intervals, and close to one another at the centre
        centred = full[f"DeepCache N={n} centred branch 0"]
        assert len(centred) == -(-50 // n) and centred[0] == 0
        gaps = np.diff(centred)
        assert gaps[len(gaps) * 3 // 10] <= gaps[-1] and gaps[-1] == max(gaps[1:])
    assert not any("noise" in name for name in DepthSpace(strengths=[]).presets(target) if name == "Faster Diffusion")


def test_the_power_law_by_hand():
    """N=5 of 50: ten steps around 15. The last gaps follow u^p, with p lowered until ten steps differ."""
    target = target_of(pipeline("UNet2DConditionModel"), 50)
    x = DepthSpace().presets(target)["DeepCache N=5 centred branch 0"][:49]
    found = [0, *(t + 1 for t, level in enumerate(x) if level == 0)]

    def places(power):
        first, last = (-15 + 0j) ** (1 / power), (35 + 0j) ** (1 / power)
        u = [first + (last - first) * k / 10 for k in range(11)]
        return sorted({int((value**power).real) for value in u})

    fitting = next(p for p in (1.4 - 0.02 * k for k in range(20)) if len(places(p)) == 11)
    assert found == [0, *(15 + place for place in places(fitting)[1:-1])]


def test_levels_follow_their_step_where_timesteps_move():
    pipe = pipeline("UNet2DConditionModel")
    target = target_of(pipe, 12)
    levels = np.zeros(13, dtype=int)
    levels[5] = ENCODER  # the teacher's step 6
    timesteps, sigmas = scheduler_grid(pipe.scheduler, 6)
    moved = target.on({"steps": 6, "sampler": {**target.sampler, "timesteps": timesteps, "sigmas": sigmas}})
    actions = dict(DepthSpace().decode(levels, moved)["plan"]["rules"])["conv_in.0"]
    assert [moved.at[t] for t, token in enumerate(actions) if token == "R"] == [6]


def test_whole_steps_are_encoded_and_nothing_else():
    target, space = target_of(pipeline("UNet2DConditionModel")), DepthSpace()
    x = space.encode({"denoiser": list("CRCCRR")}, target)
    assert x.tolist() == [WHOLE, 0, 0, WHOLE, WHOLE, 0, 0]
    assert dict(space.decode(x, target)["plan"]["rules"]) == {"denoiser": "CRCCRR"}
    assert space.encode({}, target).tolist() == [0] * 7
    assert space.encode({"denoiser": ["C", "C", "F1", "C", "C", "C"]}, target) is None
    assert space.encode({"resnets.0": list("CRCCRR")}, target) is None


def test_noise_is_left_out_where_it_would_do_nothing():
    target, space = target_of(pipeline("UNet2DConditionModel")), DepthSpace(below=[500, 1])
    x = np.zeros(7, dtype=int)
    x[5] = 1
    assert space.decode(x, target) == {"start": {"kind": "noise", "inject": {"strength": 0.001, "below": 500.0}}}
    x[6] = 1  # no step is so late
    assert space.decode(x, target) == {}
    x[5:] = 0, 1
    assert space.decode(x, target) == {}
    x[5:] = 1, 0
    table = {"state": [1.0] * STEPS, "outputs": [[0.1] * (i + 1) for i in range(STEPS)]}
    with_table = replace(target, sampler={**target.sampler, "coefficients": table})
    assert space.decode(x, with_table) == {}


def test_where_it_does_not_apply():
    with pytest.raises(
        ValueError, match=r"depth is for UNets .* pixart has a PixArtTransformer2DModel: use \+space=cache"
    ):
        DepthSpace().genes(tiny_model().target)
    with pytest.raises(ValueError, match=r"depth needs at least 2 steps, model.steps is 1; search space=bits"):
        DepthSpace().genes(target_of(pipeline("UNet2DConditionModel"), 1))
    shape = Tree.of(pipeline("UNet2DConditionModel").denoiser).shape
    odd = Tree("UNet2DConditionModel", {**shape, "up_blocks": shape["up_blocks"][:1]})
    with pytest.raises(ValueError, match=r"the decoder of unet takes 3 skip connections, and its encoder gives 6"):
        DepthSpace().genes(target_of(pipeline("UNet2DConditionModel"), tree=odd))


def test_experiments_search_what_the_works_do():
    found = {}
    for name in ("deepcache", "faster_diffusion"):
        config = Config.check(compose_config(normalise_overrides([f"+experiment={name}"])))
        found[name] = instantiate(config.space["depth"])
        assert config.model["name"] == "sd" and list(config.space) == ["depth"]
    assert found == {"deepcache": DepthSpace(strengths=[]), "faster_diffusion": DepthSpace(ahead=4)}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            {"strengths": [0.1, 0]},
            r"strengths has 0; give numbers above 0, at most 1, .* space.depth.strengths=\[0.003\]",
        ),
        ({"strengths": [True]}, r"strengths has True"),
        ({"below": [1001]}, r"below has 1001; give numbers above 0, at most 1000, .* space.depth.below=\[500\]"),
        ({"below": [500, 500]}, r"below=\[500, 500\] has a value twice"),
        ({"below": []}, r"below is empty; use space.depth.below=\[500\], or space.depth.strengths=\[\]"),
    ],
)
def test_wrong_arguments_are_named(arguments, told):
    with pytest.raises(ValueError, match=told):
        DepthSpace(**arguments)
