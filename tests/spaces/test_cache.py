"""The cache space: genes by interval, component, block and step, forecasts, encoding, published rules."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from search import Schedule
from search.profile.target import Target
from search.schedule.model.nodes import ROOT, Tree
from search.spaces.cache import STEP_MASKS, CacheSpace
from search.testing.models import tiny_family, tiny_model
from search.testing.space_contract import SpaceContract


class TestInterval(SpaceContract):
    @pytest.fixture
    def space(self):
        return CacheSpace("interval", max_order=2, axis="logsnr")


class TestComponent(SpaceContract):
    @pytest.fixture
    def space(self):
        return CacheSpace("component", max_order=1)


class TestBlock(SpaceContract):
    @pytest.fixture
    def space(self):
        return CacheSpace("block", max_order=3, axis="timestep")


class TestStep(SpaceContract):
    @pytest.fixture
    def space(self):
        return CacheSpace("step", max_order=0)


@pytest.mark.slow
class TestUNetByInterval(SpaceContract):
    @staticmethod
    def make_model():
        return tiny_family("sd", steps=6)

    @pytest.fixture
    def space(self):
        return CacheSpace("interval", max_order=1)


class TestUNetByComponent(TestUNetByInterval):
    @pytest.fixture
    def space(self):
        return CacheSpace("component", max_order=2)


class TestUNetByBlock(TestUNetByInterval):
    @pytest.fixture
    def space(self):
        return CacheSpace("block", max_order=1)


@pytest.mark.slow
class TestFluxByInterval(SpaceContract):
    @staticmethod
    def make_model():
        return tiny_family("flux", steps=6)

    @pytest.fixture
    def space(self):
        return CacheSpace("interval", max_order=1)


TARGET = tiny_model().target  # 3 blocks, 6 steps
UNET = {
    "conv_in": [{}],
    "down_blocks": [
        {"resnets": 2, "attentions": 2, "attentions.0.transformer_blocks": 1, "attentions.1.transformer_blocks": 1}
        | {"downsamplers": 1},
        {"resnets": 2},
    ],
    "mid_block": [{"resnets": 2, "attentions": 1, "attentions.0.transformer_blocks": 2}],
    "up_blocks": [{"resnets": 3, "upsamplers": 1}, {"resnets": 3}],
}


def plan(space: CacheSpace, x: np.ndarray, target: Target = TARGET):
    return Schedule.from_dict(target.schedule(space.decode(x, target))).plan.tokens


def bare(model_class: str, shape: dict, steps: int) -> Target:
    """Without a model; timesteps fall evenly from 1000."""
    model = {"class": model_class, "stacks": shape}
    sampler = {"class": "DPMSolverMultistepScheduler", "timesteps": [1000 - t * 1000 / steps for t in range(steps)]}
    sampler["sigmas"] = [t / 1000 for t in sampler["timesteps"]] + [0.0]
    return Target("bare", Tree(model_class, shape), steps, model, sampler)


def preset(name: str, target: Target, granularity: str = "interval", max_order: int = 1) -> dict[str, str]:
    space = CacheSpace(granularity, max_order)
    return {n: "".join(t) for n, t in plan(space, space.presets(target)[name], target).items()}


def test_fora_by_hand():
    tokens = plan(space := CacheSpace(), space.presets(TARGET)["FORA N=3"])
    components = [t for name, t in tokens.items() if ":" in name]
    assert len(components) == 9
    assert set(components) == {tuple("CRRCRR")}
    assert tokens[ROOT] == tuple("CCCCCC")


def test_step_caching_by_hand():
    tokens = plan(space := CacheSpace("step"), space.presets(TARGET)["step caching N=2"])
    assert tokens[ROOT] == tuple("CRCRCR")


def test_taylorseer_computes_enough_before_it_forecasts():
    tokens = plan(space := CacheSpace(), space.presets(TARGET)["TaylorSeer N=3 O=1"])
    assert tokens["transformer_blocks.0:ff"] == ("C", "C", "F1", "F1", "C", "F1")


TWENTY = bare("PixArtTransformer2DModel", {"transformer_blocks": 2}, 20)  # timesteps 1000, 950, … 50


def test_pab_is_what_diffusers_does():
    """Its hook decides by a count of calls and by the timestep, which a pipeline tells it."""
    from diffusers.hooks import HookRegistry
    from diffusers.hooks.pyramid_attention_broadcast import PyramidAttentionBroadcastHook

    expected = {}
    for kind, interval in (("attn1", 2), ("attn2", 3)):
        module, now, ran = torch.nn.Identity(), [0.0], []
        module.register_forward_hook(lambda *_: None)
        hook = PyramidAttentionBroadcastHook((100, 800), interval, lambda now=now: now[0])
        original = module.forward
        module.forward = lambda x, ran=ran, original=original: ran.append(1) or original(x)
        HookRegistry.check_if_exists_or_initialize(module).register_hook(hook, "pab")
        tokens = ""
        for now[0] in TWENTY.sampler["timesteps"]:
            before = len(ran)
            module(torch.zeros(1))
            tokens += "C" if len(ran) > before else "R"
        expected[kind] = tokens
    for granularity in ("interval", "component"):
        found = preset("PAB", TWENTY, granularity)
        for kind, tokens in expected.items():
            assert found[f"transformer_blocks.1:{kind}"] == tokens and "R" in tokens
        assert found["transformer_blocks.1:ff"] == "C" * 20


def test_fastercache_forecasts_every_2nd_self_attention_below_timestep_681():
    found = preset("FasterCache", TWENTY)["transformer_blocks.0:attn1"]
    assert found == "C" * 7 + "F1CF1CF1CF1CF1CF1CF1"
    assert "FasterCache" not in CacheSpace(max_order=0).presets(TWENTY)


def test_t_gate_reuses_cross_attention_from_its_gate_on():
    found = preset("T-GATE m=12", TWENTY)
    assert found["transformer_blocks.0:attn2"] == "C" * 12 + "R" * 8
    assert {t for n, t in found.items() if ":attn2" not in n} == {"C" * 20}
    dit = bare("DiTTransformer2DModel", {"transformer_blocks": 2}, 20)
    assert not any("T-GATE" in name for name in CacheSpace().presets(dit))


def test_step_masks_are_those_of_cache_dit():
    published = {
        "slow": "1111111101110011100110010001",
        "medium": "1111110110001100011000110001",
        "fast": "1111110100010000100000100001",
        "ultra": "1111001000001000000100000001",
    }
    target = bare("PixArtTransformer2DModel", {"transformer_blocks": 2}, 28)
    for name, mask in published.items():
        for granularity in ("interval", "step"):
            found = preset(f"SCM {name}", target, granularity)[ROOT]
            assert found == mask.replace("1", "C").replace("0", "R")


@pytest.mark.parametrize("steps", [2, 6, 14, 20, 50, 100])
def test_step_masks_are_stretched_in_proportion(steps):
    target = bare("PixArtTransformer2DModel", {"transformer_blocks": 2}, steps)
    space = CacheSpace("step")
    for name, bins in STEP_MASKS.items():
        if (x := space.presets(target).get(f"SCM {name}")) is None:
            assert steps < 6
            continue
        found = plan(space, x, target)[ROOT]
        assert found[0] == found[-1] == "C"
        assert abs(found.count("C") - steps * sum(bins[::2]) / 28) <= len(bins) / 2 + 1


def test_a_stack_of_one_block_has_one_gene_a_kind():
    target = bare("UNet2DConditionModel", UNET, 2)
    levels = {g.name: g.levels for g in CacheSpace(max_order=0).genes(target)}
    assert levels == {
        "denoiser@1": 2,
        "reused down_blocks:resnets.0@1": 3,
        "first down_blocks:resnets.0@1": 3,
        "reused down_blocks:attentions.0@1": 2,  # in one of the two blocks
        "reused down_blocks:resnets.1@1": 3,
        "first down_blocks:resnets.1@1": 3,
        "reused down_blocks:attentions.1@1": 2,
        "reused down_blocks:downsamplers.0@1": 2,
        "reused mid_block:resnets.0@1": 2,
        "reused mid_block:attentions.0@1": 2,
        "reused mid_block:resnets.1@1": 2,
        **{f"{part} up_blocks:resnets.{i}@1": 3 for i in range(3) for part in ("reused", "first")},
        "reused up_blocks:upsamplers.0@1": 2,
    }
    flux = bare("FluxTransformer2DModel", {"transformer_blocks": 2, "single_transformer_blocks": 3}, 2)
    levels = {g.name: g.levels for g in CacheSpace(max_order=0).genes(flux)}
    assert levels["reused transformer_blocks:attn@1"] == 3 and levels["reused single_transformer_blocks:attn@1"] == 4


def test_a_kind_means_all_stacks_that_have_it():
    unet = bare("UNet2DConditionModel", UNET, 6)
    for granularity in ("interval", "component"):
        space = CacheSpace(granularity)
        found = plan(space, space.encode({"resnets.1": list("CRRRCR"), "downsamplers.0": list("CCRCRC")}, unet), unet)
        changed = {n: "".join(t) for n, t in found.items() if set(t) != {"C"}}
        blocks = ("down_blocks.0", "down_blocks.1", "mid_block.0", "up_blocks.0", "up_blocks.1")
        assert changed == {f"{b}:resnets.1": "CRRRCR" for b in blocks} | {"down_blocks.0:downsamplers.0": "CCRCRC"}
    flux = bare("FluxTransformer2DModel", {"transformer_blocks": 2, "single_transformer_blocks": 3}, 6)
    found = preset("FORA N=2", flux)
    assert {t for n, t in found.items() if ":" in n} == {"CRCRCR"} and sum(":" in n for n in found) == 15
    found = preset("PAB", flux)
    assert {n for n, t in found.items() if "R" in t} == {n for n in found if n.endswith(":attn")}


def test_components_inside_of_others_have_genes_of_their_own_by_component():
    unet = bare("UNet2DConditionModel", UNET, 20)
    found = preset("T-GATE m=8", unet, "component")
    inner = {n for n in found if n.endswith(".attn2")}
    assert len(inner) == 4 and {n for n, t in found.items() if "R" in t} == inner
    assert "T-GATE m=8" not in CacheSpace("interval").presets(unet)
    assert CacheSpace("interval").encode({"attentions.0.transformer_blocks.0.ff": ["C"] * 20}, unet) is None
    # where the component around it is reused, it does not run, and has no history to forecast from
    space, six = CacheSpace("component", max_order=1), bare("UNet2DConditionModel", UNET, 6)
    tokens = {"attentions.0": list("CRCCCC"), "attentions.0.transformer_blocks.0.ff": ["C", "C", "F1", "C", "F1", "C"]}
    found = plan(space, space.encode(tokens, six), six)
    assert found["mid_block.0:attentions.0.transformer_blocks.0.ff"] == ("C", "-", "R", "C", "F1", "C")


@pytest.mark.parametrize("granularity", ["interval", "component"])
def test_presets_run_on_a_unet(granularity):
    model, space = tiny_family("sd", steps=6), CacheSpace(granularity)
    bare = model.sample(["red apple"], [0])
    presets = space.presets(model.target)
    wanted = [
        "FORA N=2",
        "TaylorSeer N=3 O=1",
        *(["SCM ultra"] if granularity == "interval" else ["PAB", "T-GATE m=2"]),
    ]
    for name in wanted:
        with Schedule.from_dict(model.target.schedule(space.decode(presets[name], model.target))).apply(model.pipe):
            found = model.sample(["red apple"], [0])
        assert torch.isfinite(found).all() and not torch.equal(found, bare), name


def test_attn2_of_sd3_is_a_second_self_attention():
    shape = {"transformer_blocks": [{"attn": 1, "attn2": 1, "ff": 1, "ff_context": 1}, {"attn": 1, "ff": 1}]}
    found = preset("PAB", sd3 := bare("SD3Transformer2DModel", shape, 20))
    assert (
        found["transformer_blocks.0:attn"] == found["transformer_blocks.0:attn2"] == found["transformer_blocks.1:attn"]
    )
    assert not any("T-GATE" in name for name in CacheSpace().presets(sd3))


def test_published_timesteps_are_those_of_a_thousand():
    sampler = TWENTY.sampler | {"config": {"num_train_timesteps": 100}}
    sampler["timesteps"] = [t / 10 for t in TWENTY.sampler["timesteps"]]
    fewer = replace(TWENTY, sampler=sampler)
    assert preset("PAB", fewer) == preset("PAB", TWENTY)
    assert replace(TWENTY, sampler={}).timesteps == pytest.approx(TWENTY.sampler["timesteps"])


def test_an_interval_computes_neighbouring_blocks():
    space = CacheSpace(max_order=0)
    names = [g.name for g in space.genes(TARGET)]
    x = np.zeros(len(names), dtype=int)
    x[names.index("reused transformer_blocks:ff@2")] = 2
    x[names.index("first transformer_blocks:ff@2")] = 1
    tokens = plan(space, x)
    assert [tokens[f"transformer_blocks.{b}:ff"][2] for b in range(3)] == ["R", "C", "R"]
    assert all(set(t) == {"C"} for name, t in tokens.items() if not name.endswith(":ff"))


def test_a_forecast_without_history_is_lowered():
    space = CacheSpace("step", max_order=3)
    assert plan(space, np.array([4, 0, 4, 0, 4]))[ROOT] == ("C", "R", "C", "F1", "C", "F2")


@pytest.mark.parametrize("granularity", ["interval", "component"])
def test_encode_then_decode_says_the_same(granularity):
    space = CacheSpace(granularity)
    tokens = {"attn2": list("CRRRCR"), "ff": list("CCRRCC")}
    decoded = plan(space, space.encode(tokens, TARGET))
    for name, expected in tokens.items():
        assert decoded[f"transformer_blocks.1:{name}"] == tuple(expected)
    assert set(decoded["transformer_blocks.1:attn1"]) == {"C"}


def test_encode_says_none_for_what_the_genes_cannot_say():
    assert CacheSpace("step").encode({"ff": list("CRCRCR")}, TARGET) is None
    assert CacheSpace("component").encode({ROOT: list("CRCRCR")}, TARGET) is None
    assert CacheSpace(max_order=0).encode({ROOT: ["C", "C", "F1", "C", "C", "C"]}, TARGET) is None
    assert CacheSpace().encode({"ff": ["C", "C", "F1", "C", "C", "C"], "attn1": list("CCRCCC")}, TARGET) is None


def test_wrong_arguments_say_what_to_type():
    with pytest.raises(ValueError, match="granularity 'blok' is unknown; choose from interval, component"):
        CacheSpace("blok")
    with pytest.raises(ValueError, match="max_order 4 is out of range; use 0"):
        CacheSpace(max_order=4)
