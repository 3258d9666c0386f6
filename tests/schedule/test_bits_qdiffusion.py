"""Q-Diffusion (arXiv:2302.04304) on a UNet: convolutions at few bits, split shortcuts, time-aware calibration."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn.functional import conv2d

import search
from search import Schedule, ScheduleError
from search.calibrate.ranges import RangeObserver, observe_inputs, target_with_ranges, with_measured_ranges
from search.profile.bundled import bundled_model
from search.profile.count import count_costs
from search.profile.input_ranges import InputRanges, drawn_steps
from search.profile.target import Target
from search.schedule.apply.bits import LayerBits
from search.schedule.apply.clock import Clock
from search.schedule.apply.handle import Handle
from search.schedule.apply.hooking import add_hook, remove_hook
from search.schedule.apply.rounding import round_picture, round_static, round_weight
from search.schedule.model.identity import model_part
from search.schedule.model.layers import input_splits, layers_of
from search.schedule.model.nodes import Tree
from search.schedule.parts.bits import BitsPart, FormatPart
from search.schedule.parts.formats import FORMATS, formats_that_fit, packed_bytes
from search.schedule.schedulers import public_config, scheduler_grid
from search.spaces.bits import TIME, BitsSpace
from search.spaces.cache import CacheSpace
from search.spaces.joint import JointSpace
from tests.helpers import pipelines

STEPS = 6
DEEP = {  # of (8, 16) channels and two blocks: what the module before gives
    "up_blocks.0.resnets.0": 16,
    "up_blocks.0.resnets.1": 16,
    "up_blocks.1.resnets.0": 16,
    "up_blocks.1.resnets.1": 8,
}
SHORT = "up_blocks.1.resnets.0.conv_shortcut"
CONV = "down_blocks.0.resnets.0.conv1"
PLAIN = [CONV, "mid_block.resnets.1.conv2", "down_blocks.0.downsamplers.0.conv", "mid_block.attentions.0.proj_in"]


def unet(**config) -> UNet2DConditionModel:
    torch.manual_seed(0)
    arguments = {
        "sample_size": 8,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "cross_attention_dim": 12,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
    }
    return UNet2DConditionModel(**(arguments | config)).eval()


class Toy:
    """A pipeline of random weights with what a calibration takes of an adapter; its latents grow from 1 to about 3."""

    def __init__(self) -> None:
        self.denoiser = unet()
        self.denoiser.conv_out.weight.data *= 8
        scheduler = DDIMScheduler(prediction_type="sample", clip_sample=False, steps_offset=1)
        parts = (None, None, None, self.denoiser, scheduler, None, None)
        self.pipe = StableDiffusionPipeline(*parts, requires_safety_checker=False)
        self.pipe.set_progress_bar_config(disable=True)
        sampler = {
            "class": "DDIMScheduler",
            "config": public_config(scheduler),
            "timesteps": scheduler_grid(scheduler, STEPS)[0],
        }
        layers = layers_of(self.denoiser)
        self.target = Target("toy", Tree.of(self.denoiser), STEPS, model_part(self.denoiser), sampler, layers)

    @property
    def experts(self) -> tuple[torch.nn.Module, ...]:
        return (self.denoiser,)

    def apply(self, schedule: Schedule) -> Handle:
        return schedule.apply(self.pipe)

    def sample(self, conditions: Tensor, noise: Tensor) -> Tensor:
        """Final latents; the scheduler's own run of six steps."""
        empty = torch.zeros_like(conditions)
        return self.pipe(
            prompt_embeds=conditions,
            negative_prompt_embeds=empty,
            latents=noise,
            num_inference_steps=STEPS,
            guidance_scale=3.0,
            output_type="latent",
        ).images


def inputs(seed: int, pictures: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(pictures, 5, 12, generator=generator), torch.randn(pictures, 4, 8, 8, generator=generator)


@pytest.fixture(scope="module")
def toy() -> Toy:
    return Toy()


def schedule(toy: Toy, layers: dict[str, FormatPart], ranges=None) -> Schedule:
    formats = {f"f{i}": form.model_dump(exclude_defaults=True) for i, form in enumerate(layers.values())}
    bits = {"formats": formats, "layers": dict(zip(layers, formats, strict=True))}
    found = Schedule.from_dict(pipelines.content(toy.pipe, steps=STEPS, bits=bits))
    return found.with_ranges(ranges) if ranges else found


# Convolutions.


def loop(value: Tensor, weight: Tensor, bits: int, activation: int | None, split: int | None = None) -> Tensor:
    """A 3 x 3 convolution with padding 1 by scalar loops in double precision, each half of the channels on its own."""
    total = 0.0
    sides = [slice(None)] if split is None else [slice(0, split), slice(split, None)]
    for side in sides:
        x, w = value[:, side].double().numpy().copy(), weight[:, side].double().numpy().copy()
        for row in w:  # one output channel
            if bits == 8:
                scale = np.float32(abs(row).max() / 127.5)  # in single precision: its own extremes are ties
                row[:] = np.clip(np.rint(row.astype(np.float32) * (1 / scale)), -128, 127) * scale
                continue
            low, high, least, whole = min(row.min(), 0), max(row.max(), 0), np.inf, row.copy()
            for shrink in (1.0, 0.9, 0.8, 0.7, 0.6):
                tried = levels(whole, low * shrink, high * shrink, bits)
                if ((tried - whole) ** 2).sum() < least:
                    least = ((tried - whole) ** 2).sum()
                    row[:] = tried
        for picture in x if activation else ():
            picture[:] = levels(picture, min(picture.min(), 0), max(picture.max(), 0), activation)
        padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
        out = np.zeros((len(x), len(w), *x.shape[2:]))
        for b, o, i, j in np.ndindex(out.shape):
            out[b, o, i, j] = (padded[b, :, i : i + 3, j : j + 3] * w[o]).sum()
        total = total + out
    return torch.from_numpy(total)


def levels(values: np.ndarray, low: float, high: float, bits: int) -> np.ndarray:
    scale = (high - low) / (2**bits - 1)
    zero = np.rint(-low / scale)
    return (np.clip(np.rint(values / scale) + zero, 0, 2**bits - 1) - zero) * scale


@pytest.mark.parametrize("bits", [8, 4, 3])
@pytest.mark.parametrize("activation", [None, 8, 4])
@pytest.mark.parametrize("split", [None, 5])
def test_a_convolution_is_that_of_a_hand_written_loop(bits, activation, split):
    torch.manual_seed(bits)
    net = nn.Sequential(nn.Conv2d(8, 6, 3, padding=1, bias=False))
    value = torch.randn(2, 8, 5, 4) * torch.tensor([1.0, 10.0])[:, None, None, None]
    form = FormatPart(weight=bits, activation=activation, split=split)
    with rounded(net, {"0": form}), torch.no_grad():
        found = net(value)
    torch.testing.assert_close(
        found.double(), loop(value, net[0].weight.detach(), bits, activation, split), atol=1e-4, rtol=1e-4
    )


def rounded(net: nn.Module, layers: dict[str, FormatPart], ranges=None):
    """The formats at work on any module while the context lasts."""
    from contextlib import contextmanager

    @contextmanager
    def work() -> Iterator[None]:
        part = BitsPart(formats=layers, layers={name: name for name in layers}, ranges=ranges or {})
        hooked: list = []
        try:
            LayerBits(part, net, "simulate").install(
                Clock(), lambda *pair: hooked.append(pair) or add_hook(*pair), list, lambda: None
            )
            yield
        finally:
            for pair in hooked:
                remove_hook(*pair)

    return work()


def test_a_split_convolution_is_the_sum_of_two():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(8, 6, 3, padding=1))
    value, weight = torch.randn(2, 8, 6, 6), net[0].weight.detach()
    with rounded(net, {"0": FormatPart(weight=4, activation=8, split=3)}), torch.no_grad():
        found = net(value)
    whole = FormatPart(weight=4)
    sides = ((value[:, :3], weight[:, :3]), (value[:, 3:], weight[:, 3:]))
    both = [conv2d(round_picture(x, 8), round_weight(w, whole), padding=1) for x, w in sides]
    torch.testing.assert_close(found, both[0] + both[1] + net[0].bias.detach()[:, None, None])


def bimodal() -> tuple[Tensor, Tensor]:
    """Deep channels a hundred times as strong as those of the skip, and their weights the other way round."""
    generator = torch.Generator().manual_seed(3)
    value, weight = torch.randn(4, 16, 8, 8, generator=generator), torch.randn(12, 16, 3, 3, generator=generator)
    value[:, :8], weight[:, :8] = value[:, :8] * 100, weight[:, :8] / 100
    return value, weight


def observed(values: list[Tensor], split: int | None = None) -> list[tuple[float, float]]:
    """The ranges of inputs that were observed at one step each."""
    observer = RangeObserver(split)
    for step, value in enumerate(values):
        observer(value, step)
    return InputRanges(tuple(range(len(values))), {"0": observer.ranges(len(values))}).over("0")


@pytest.mark.parametrize("weight_bits", [4, 8])
@pytest.mark.parametrize("static", [False, True])
def test_a_split_quantiser_beats_the_joint_one_on_a_bimodal_concatenation(weight_bits, static):
    value, weight = bimodal()
    exact, errors = conv2d(value, weight, padding=1), {}
    for split in (None, 8):
        net = nn.Sequential(nn.Conv2d(16, 12, 3, padding=1, bias=False))
        net[0].weight.data = weight.clone()
        form = FormatPart(weight=weight_bits, activation=8, static=static, split=split)
        with rounded(net, {"0": form}, {"0": observed([value], split)} if static else None), torch.no_grad():
            errors[split] = float((net(value) - exact).norm() / exact.norm())
    assert errors[8] < errors[None] / 5


def test_where_both_sides_are_alike_a_split_changes_little():
    torch.manual_seed(0)
    value, weight = torch.randn(4, 16, 8, 8), torch.randn(12, 16, 3, 3)
    errors = [float((round_weight(weight, FormatPart(weight=4, split=s)) - weight).norm()) for s in (None, 8)]
    assert errors[1] == pytest.approx(errors[0], rel=0.2)
    assert float((round_picture(value, 8) - value).abs().max()) <= float(value.max() - value.min()) / 255 / 2 + 1e-6


def test_each_picture_has_a_range_of_its_own():
    value = (
        torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(0))
        * torch.tensor([1, 50, 0])[:, None, None, None]
    )
    found = round_picture(value, 8)
    for picture, alone in zip(value, found, strict=True):
        assert torch.equal(round_picture(picture[None], 8)[0], alone)
    assert torch.equal(found[2], value[2])
    assert round_picture(value.bfloat16(), 4).dtype == torch.bfloat16


def test_static_values_are_clipped_and_keep_their_zero():
    value = torch.tensor([-9.0, -1.0, 0.0, 0.2, 3.0, 99.0])
    found = round_static(value, 4, (-1.0, 3.0))
    assert found[2] == 0
    assert found.min() == found[0] == found[1]
    assert found.max() == found[4] == found[5]
    assert len(found.unique()) == 4
    torch.testing.assert_close(found[1:5], value[1:5], atol=4 / 15, rtol=0)


# On a UNet.


def test_a_run_is_that_of_a_pipeline_with_the_same_weights(toy):
    forms = {name: FORMATS["w8a8d"] for name in PLAIN[:2]} | {name: FORMATS["w4"] for name in PLAIN[2:]}
    forms[SHORT] = FormatPart(weight=4, activation=8, split=16)
    given = inputs(0)
    bare = toy.sample(*given)
    with schedule(toy, forms).apply(toy.pipe):
        found = toy.sample(*given)
    other = Toy()
    for name, form in forms.items():
        module = other.denoiser.get_submodule(name)
        module.weight.data = round_weight(module.weight, form)
        if form.activation:
            module.register_forward_pre_hook(lambda m, args, s=form.split: (by_sides(args[0], s),))
    assert torch.equal(found, other.sample(*given))
    assert not torch.equal(found, bare)
    assert torch.equal(toy.sample(*given), bare)


def by_sides(value: Tensor, split: int | None) -> Tensor:
    sides = [value] if split is None else [value[:, :split], value[:, split:]]
    return torch.cat([round_picture(side, 8) for side in sides], 1)


def test_without_layers_a_run_is_exact_and_everything_comes_back_after_an_error(toy):
    given, before = inputs(0), dict(toy.denoiser.named_parameters())
    bare = toy.sample(*given)
    with schedule(toy, {}).apply(toy.pipe):
        assert torch.equal(toy.sample(*given), bare)
    forms = {CONV: FORMATS["w4a8s"], SHORT: FORMATS["w8a8d"]}
    with pytest.raises(KeyboardInterrupt), schedule(toy, forms, {CONV: [(-1.0, 1.0)]}).apply(toy.pipe):
        toy.sample(*given)
        raise KeyboardInterrupt
    after = dict(toy.denoiser.named_parameters())
    assert all(after[name] is before[name] for name in before)
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in toy.denoiser.modules())
    assert pipelines.traces(toy.denoiser) == []
    assert torch.equal(toy.sample(*given), bare)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("middle", ["UNetMidBlock2DCrossAttn", None])
def test_seams_are_where_the_blocks_concatenate(layers, middle, monkeypatch):
    """Deep and skip channels as the blocks themselves hand them to torch.cat."""
    net = unet(layers_per_block=layers, mid_block_type=middle, block_out_channels=(8, 24))
    pairs: list[tuple[int, int]] = []
    cat = torch.cat

    def record(tensors, dim=0):
        if dim == 1:
            pairs.append((tensors[0].shape[1], tensors[1].shape[1]))
        return cat(tensors, dim=dim)

    from diffusers.models.unets import unet_2d_blocks

    monkeypatch.setattr(unet_2d_blocks.torch, "cat", record)
    with torch.no_grad():
        net(torch.zeros(1, 4, 8, 8), 5, torch.zeros(1, 5, 12))
    monkeypatch.undo()
    found = input_splits(layers_of(net))
    names = [f"up_blocks.{i}.resnets.{j}" for i in (0, 1) for j in range(layers + 1)]
    assert len(pairs) == len(names)
    for name, (deep, skip) in zip(names, pairs, strict=True):
        assert found[f"{name}.conv1"] == found[f"{name}.conv_shortcut"] == deep
        assert net.get_submodule(f"{name}.conv1").in_channels == deep + skip
    assert len(found) == 2 * len(names)


def test_layers_and_their_shapes(toy):
    layers = layers_of(toy.denoiser)
    assert layers["conv_in"] == (8, 4 * 9)
    assert layers[SHORT] == (8, 16 + 8)
    assert layers["time_embedding.linear_1"] == (32, 8)
    assert input_splits(layers) == {f"{n}.{c}": deep for n, deep in DEEP.items() for c in ("conv1", "conv_shortcut")}
    assert input_splits(tiny_transformer()) == {}


def tiny_transformer() -> dict[str, tuple[int, int]]:
    return layers_of(pipelines.pixart().transformer)


def test_a_group_divides_both_sides_of_a_split():
    assert formats_that_fit("w4a8d", 40 * 9, 24) == (
        "w4g24a8d/24",
        FormatPart(weight=4, group=24, activation=8, split=24),
    )
    assert formats_that_fit("w4a8s", 40 * 9, 24) == ("w4a8s/24", FORMATS["w4a8s"].model_copy(update={"split": 24}))
    assert formats_that_fit("w4a8d", 40 * 9, 7)[1].group is None
    assert formats_that_fit("elided", 40, 8) == ("elided", FORMATS["elided"])
    assert formats_that_fit("w4a8s", 360) == ("w4a8s", FORMATS["w4a8s"])


# Sizes and bit operations.


def test_size_and_bit_operations_by_hand(toy):
    def once() -> Tensor:
        return toy.denoiser(torch.zeros(2, 4, 8, 8), 5, torch.zeros(2, 5, 12)).sample

    costs = count_costs(toy.denoiser, toy.target.tree, STEPS, once)
    assert costs.layer_macs[CONV] == 2 * 8 * 8 * 8 * (8 * 9)  # both halves, 8 x 8 pixels, 8 outputs, 8 inputs
    assert costs.layer_macs[SHORT] == 2 * 8 * 8 * 8 * 24
    assert costs.layer_macs["down_blocks.0.downsamplers.0.conv"] == 2 * 4 * 4 * 8 * (8 * 9)
    assert costs.layer_bytes[CONV] == (8 * 72 * 4, 8 * 4)
    assert costs.layer_shapes == toy.target.layers
    inner = sum(m for n, m in costs.layer_macs.items() if n.startswith("down_blocks.0.resnets.0."))
    assert inner == costs.component_macs["down_blocks.0:resnets.0"]
    off = schedule(toy, {})
    w4 = schedule(toy, {CONV: FormatPart(weight=4, activation=8)})
    assert costs.size(off) - costs.size(w4) == 8 * 72 * 4 - (8 * 72 // 2 + 8 * 4)
    assert costs.bops(off) - costs.bops(w4) == STEPS * costs.layer_macs[CONV] * (256 - 32)
    split = schedule(toy, {SHORT: FormatPart(weight=4, split=16)})
    assert costs.size(off) - costs.size(split) == 8 * 24 * 4 - (8 * 24 // 2 + 2 * 8 * 4)  # scales of both sides
    assert packed_bytes(FormatPart(weight=8, split=16), 8, 24) == 8 * 24 + 2 * 8 * 2
    assert packed_bytes(FormatPart(weight=4, group=8, split=16), 8, 24) == 8 * 24 // 2 + 3 * 8 * 4


# Ranges.


def test_observed_ranges_are_those_of_a_run_with_hooks_by_hand(toy):
    given, seen = inputs(1), []
    handle = toy.denoiser.get_submodule(SHORT).register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    toy.sample(*given)
    handle.remove()
    assert len(seen) == STEPS
    off = schedule(toy, {})
    found = observe_inputs(toy, off, {SHORT: 16, CONV: None}, *given)
    assert list(found.timesteps) == toy.target.sampler["timesteps"]
    for steps in (range(6), (0, 2, 4), (1, 5), (0,), (5,)):
        wanted = [
            (min(0, float(torch.stack(s).min())), max(0, float(torch.stack(s).max())))
            for s in ([seen[i][:, :16] for i in steps], [seen[i][:, 16:] for i in steps])
        ]
        assert np.allclose(found.over(SHORT, steps), wanted, rtol=1e-5)
        assert len(found.over(CONV, steps)) == 1
    assert found.over(SHORT) == found.over(SHORT, range(6))
    assert not any(m._forward_pre_hooks for m in toy.denoiser.modules())


def test_ranges_of_all_steps_beat_those_of_one_step_on_inputs_that_change():
    """Inputs that grow fourfold over the steps, as those of some layers do."""
    generator = torch.Generator().manual_seed(0)
    steps = [torch.randn(4, 8, 6, 6, generator=generator) * scale for scale in (1, 1.5, 2, 3, 4)]
    new = [torch.randn(4, 8, 6, 6, generator=generator) * scale for scale in (1, 1.5, 2, 3, 4)]
    errors = {}
    for name, chosen in (("all", steps), ("every second", steps[::2]), ("first", steps[:1]), ("last", steps[-1:])):
        parts = [(round_static(value, 6, observed(chosen)[0]) - value).square().sum() for value in new]
        errors[name] = float(torch.stack(parts).sum().sqrt())
    assert errors["all"] < errors["first"] / 2
    assert errors["every second"] < errors["first"] / 2


def test_time_aware_calibration_beats_one_step_in_a_run(toy):
    """On other pictures than those that were calibrated on; the last step's range clips what comes before it."""
    names = [n for n in layers_of(toy.denoiser) if n.endswith(("conv1", "conv2", "proj_in", "to_q", "conv_in"))]
    wanted = schedule(toy, {name: FormatPart(weight=8, activation=8, static=True) for name in names})
    bare = toy.sample(*inputs(9, 4))
    drift = {}
    for name, steps in {"all": None, "second": (0, 2, 4), "one": (0,)}.items():
        ready = with_measured_ranges(toy, wanted, *inputs(1, 4), steps)
        with ready.apply(toy.pipe):
            drift[name] = float((toy.sample(*inputs(9, 4)) - bare).norm() / bare.norm())
    assert drift["all"] < drift["one"] / 2
    assert drift["second"] < drift["one"] / 2


def test_calibration_follows_the_schedule_without_its_bits(toy):
    forms = {
        CONV: FORMATS["w4a8s"],
        SHORT: FormatPart(weight=4, activation=8, static=True, split=16),
        PLAIN[1]: FORMATS["w8"],
    }
    rules = [["down_blocks.0:resnets.0", "CRRCRR"]]
    bits = {"formats": {f"f{i}": f.model_dump(exclude_defaults=True) for i, f in enumerate(forms.values())}}
    bits["layers"] = {name: f"f{i}" for i, name in enumerate(forms)}
    planned = Schedule.from_dict(pipelines.content(toy.pipe, rules, steps=STEPS, bits=bits))
    ready = with_measured_ranges(toy, planned, *inputs(1))
    off = Schedule.from_dict(pipelines.content(toy.pipe, rules, steps=STEPS))
    found = observe_inputs(toy, off, {CONV: None, SHORT: 16}, *inputs(1))
    assert np.isnan(found.layers[CONV]).any((1, 2)).tolist() == [token == "R" for token in "CRRCRR"]
    assert not np.isnan(found.layers[SHORT]).any()
    assert ready == planned.with_ranges({CONV: found.over(CONV), SHORT: found.over(SHORT)})
    assert ready.to_dict()["bits"]["ranges"][CONV] == [list(found.over(CONV, (0, 3))[0])]
    assert Schedule.from_dict(ready.to_dict()) == ready != planned
    with ready.apply(toy.pipe):
        assert torch.isfinite(toy.sample(*inputs(2))).all()
    with pytest.raises(ValueError, match=rf"{CONV} ran at none of the steps 1, 2; give it all steps \(steps=None\)"):
        with_measured_ranges(toy, planned, *inputs(1), (1, 2))


# The law of the steps that are calibrated on (PTQ4DM, arXiv:2211.15736).


@pytest.mark.parametrize(("mean", "spread"), [(0.25, 0.1), (0.5, 0.2), (0.75, 0.4)])
def test_steps_are_drawn_by_a_normal_law_and_by_their_seed(mean, spread):
    steps, draws = 10, 4000
    drawn = [drawn_steps(mean, spread, steps, seed, count=1)[0] for seed in range(draws)]
    edges = np.array([-np.inf, *np.arange(1, steps) / steps, np.inf])  # what lies outside is clipped to the ends
    law = np.array([math.erf((edge - mean) / spread / math.sqrt(2)) / 2 for edge in edges])
    assert np.allclose(np.bincount(drawn, minlength=steps) / draws, np.diff(law), atol=0.03)
    assert drawn_steps(mean, spread, steps, 3) == drawn_steps(mean, spread, steps, 3)
    assert len({tuple(drawn_steps(mean, spread, 1000, seed)) for seed in range(9)}) == 9


def test_inputs_of_the_denoising_run_beat_noised_pictures(toy):
    """Ranges of what the denoiser is given in its own run, and of pictures to which noise was added."""
    names = [n for n in layers_of(toy.denoiser) if n.endswith(("conv1", "conv2", "proj_in", "to_q", "conv_in"))]
    wanted = schedule(toy, {name: FormatPart(weight=8, activation=8, static=True) for name in names})
    observers = {name: RangeObserver(None) for name in names}
    hooks = [
        toy.denoiser.get_submodule(name).register_forward_pre_hook(lambda _, args, o=observer: o(args[0], 0))
        for name, observer in observers.items()
    ]
    conditions, noise = inputs(1, 4)
    pictures = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    for timestep in toy.pipe.scheduler.timesteps:
        noised = toy.pipe.scheduler.add_noise(pictures, noise, timestep)
        with torch.no_grad():
            toy.denoiser(torch.cat([noised] * 2), timestep, torch.cat([torch.zeros_like(conditions), conditions]))
    for hook in hooks:
        hook.remove()
    noised_ranges = InputRanges((0.0,), {name: each.ranges(1) for name, each in observers.items()})
    ready = {
        "run": with_measured_ranges(toy, wanted, conditions, noise),
        "pictures": wanted.with_ranges({name: noised_ranges.over(name) for name in names}),
    }
    bare, drift = toy.sample(*inputs(9, 4)), {}
    for name, each in ready.items():
        with each.apply(toy.pipe):
            drift[name] = float((toy.sample(*inputs(9, 4)) - bare).norm() / bare.norm())
    assert drift["run"] < drift["pictures"] / 2


def test_the_law_is_a_choice_of_steps_of_one_run(target):
    """Level 0 of the mean is the space without a law; other levels take the ranges of the steps that are drawn."""
    plain, space = BitsSpace(("w8a8s",)), BitsSpace(("w8a8s",), law=True)
    genes = space.genes(target)
    assert [(gene.name, gene.levels) for gene in genes[-2:]] == [("law.mean", 4), ("law.spread", 3)]
    assert genes[:-2] == plain.genes(target)
    x = plain.presets(target)["Q-Diffusion W8A8"]
    off = plain.decode(x, target)
    assert all(space.decode([*x, 0, level], target) == off for level in range(3))
    assert space.decode([0] * len(x) + [2, 1], target) == {}
    drawn = drawn_steps(0.25, 0.1, STEPS)
    assert drawn == [1, 2]
    found = space.decode([*x, 1, 0], target)["bits"]
    assert found["ranges"][CONV] == [list(target.ranges.over(CONV, drawn)[0])] != off["bits"]["ranges"][CONV]
    assert found["layers"] == off["bits"]["layers"]
    preset = space.presets(target)["PTQ4DM W8A8"]
    assert preset.tolist() == [*x, 2, 2]
    assert space.presets(target)["time embedding tabulated"].tolist() == [0] * (len(x) - 1) + [1, 0, 0]


# The space.


@pytest.fixture(scope="module")
def target(toy) -> Target:
    return target_with_ranges(toy, *inputs(1))


def test_groups_of_a_unet(target):
    groups = BitsSpace().groups(target)
    assert list(groups) == [
        "conv_in+conv_out",
        "down_blocks.0:attentions",
        "down_blocks.0:resnets",
        "down_blocks.0:downsamplers",
        "down_blocks.1:resnets",
        "up_blocks.0:resnets",
        "up_blocks.0:upsamplers",
        "up_blocks.1:attentions",
        "up_blocks.1:resnets",
        "mid_block:attentions",
        "mid_block:resnets",
    ]
    genes = BitsSpace(("w8a8d", "w6", "w4a8d")).genes(target)
    assert [g.levels for g in genes] == [2] + 10 * [4] + [2]  # the first and last layer have no less than 8 bits
    assert genes[-1].name == TIME
    assert {g.group for g in genes} == {
        "ends",
        "down_blocks 0",
        "down_blocks 1",
        "up_blocks 0",
        "up_blocks 1",
        "mid_block 0",
        TIME,
    }
    rest = set(target.layers) - {name for layers in groups.values() for name in layers}
    assert rest == {"time_embedding.linear_1", "time_embedding.linear_2"}
    assert "conv_in+conv_out" not in BitsSpace(("w4",)).groups(target)


def test_presets_of_a_unet_by_hand(toy, target):
    space = BitsSpace(("w8a8s", "w4", "w4a8s"))
    presets = space.presets(target)
    assert list(presets) == ["Q-Diffusion W8A8", "W4 weights only", "Q-Diffusion W4A8", "time embedding tabulated"]
    found = Schedule.from_dict(target.schedule(space.decode(presets["Q-Diffusion W4A8"], target)))
    assert found.bits["conv_in"] == found.bits["conv_out"] == FORMATS["w8a8s"]
    assert found.bits[CONV] == FORMATS["w4a8s"]
    assert {n: form.split for n, form in found.bits.items() if form.split} == input_splits(target.layers)
    with found.apply(toy.pipe):
        first = toy.sample(*inputs(2))
        assert torch.equal(toy.sample(*inputs(2)), first)
    plain = Schedule.from_dict(target.schedule(space.decode(presets["W4 weights only"], target)))
    assert {form.activation for form in plain.bits.values()} == {None}
    assert "conv_in" not in plain.bits
    assert list(BitsSpace(("w8", "w4")).presets(target)) == [
        "W8 weights only",
        "W4 weights only",
        "time embedding tabulated",
    ]


def test_only_static_formats_want_a_calibration():
    dynamic = BitsSpace(("w8a8d", "w4"))
    assert not dynamic.needs_input_ranges
    assert BitsSpace(("w8a8s", "w4")).needs_input_ranges
    assert JointSpace([CacheSpace(), BitsSpace(("w8a8s",))]).needs_input_ranges
    assert not JointSpace([CacheSpace(), dynamic]).needs_input_ranges


def test_without_split_ranges_are_those_of_the_whole(target):
    joint, apart = (BitsSpace(("w8a8s",), split=split) for split in (False, True))
    x = joint.presets(target)["Q-Diffusion W8A8"]
    whole, sides = (space.decode(x, target)["bits"]["ranges"][SHORT] for space in (joint, apart))
    assert len(whole) == 1
    assert len(sides) == 2
    assert whole[0] == [min(low for low, _ in sides), max(high for _, high in sides)]


def test_the_table_takes_its_layers_out_of_the_resnets(toy, target):
    space = BitsSpace(("w8a8d",))
    x = np.ones(len(space.genes(target)), dtype=int)
    found = Schedule.from_dict(target.schedule(space.decode(x, target)))
    elided = [name for name, form in found.bits.items() if form.elided]
    assert sum(name.endswith("time_emb_proj") for name in elided) == 8
    assert {name for name in elided if not name.endswith("time_emb_proj")} == {
        "time_embedding.linear_1",
        "time_embedding.linear_2",
    }
    alone = Schedule.from_dict(
        target.schedule({"bits": {"formats": {"e": {"elided": True}}, "layers": dict.fromkeys(elided, "e")}})
    )
    bare = toy.sample(*inputs(3))
    with alone.apply(toy.pipe):
        tabulated = toy.sample(*inputs(3))
        assert torch.equal(tabulated, toy.sample(*inputs(3)))
    assert float((tabulated - bare).norm() / bare.norm()) < 1e-5
    x[-1] = 0
    without = Schedule.from_dict(target.schedule(space.decode(x, target))).bits
    assert not any(form.elided for form in without.values())
    assert "down_blocks.0.resnets.0.time_emb_proj" in without


def test_where_text_enters_the_time_embedding_only_its_own_layers_are_tabulated(target):
    more = dict(target.layers) | {"add_embedding.linear_1": (32, 8)}
    sdxl = Target("sdxl", target.tree, STEPS, layers=more)
    found = BitsSpace().decode(BitsSpace().presets(sdxl)["time embedding tabulated"], sdxl)
    assert set(found["bits"]["layers"]) == {"time_embedding.linear_1", "time_embedding.linear_2"}


def test_every_genome_of_a_unet_runs(toy, target):
    space = BitsSpace(("w8a8s", "w4g128", "w4a8s"))
    rng, levels = np.random.default_rng(0), np.array([g.levels for g in space.genes(target)])
    before = dict(toy.denoiser.named_parameters())
    for _ in range(4):
        found = Schedule.from_dict(target.schedule(space.decode(rng.integers(0, levels), target)))
        with found.apply(toy.pipe):
            assert torch.isfinite(toy.sample(*inputs(4, 1))).all()
    after = dict(toy.denoiser.named_parameters())
    assert all(after[name] is before[name] for name in before)
    assert space.decode(np.zeros(len(levels), dtype=int), target) == {}


# What is refused.


def test_a_static_format_needs_ranges(toy):
    bare = BitsSpace(("w8a8s",))
    x = bare.presets(toy.target)["Q-Diffusion W8A8"]
    with pytest.raises(
        ValueError, match=r"the range of conv_in's input was not calibrated, .*space.bits.formats=\[w8a8d"
    ):
        bare.decode(x, toy.target)
    with pytest.raises(ScheduleError, match=f"bits.layers.{CONV} is static, and bits.ranges does not say"):
        schedule(toy, {CONV: FORMATS["w8a8s"]}).apply(toy.pipe)


@pytest.mark.parametrize(
    ("bits", "match"),
    [
        ({"formats": {"f": {"weight": 8, "static": True}}, "layers": {}}, "f is static, but only activations are"),
        ({"formats": {"f": {"elided": True, "split": 4}}, "layers": {}}, "f is elided and has bits"),
        (
            {"formats": {"f": {"weight": 8}}, "layers": {CONV: "f"}, "ranges": {CONV: [[-1, 1]]}},
            "no static format for it",
        ),
        (
            {
                "formats": {"f": {"weight": 8, "activation": 8, "static": True}},
                "layers": {CONV: "f"},
                "ranges": {CONV: 2 * [[-1, 1]]},
            },
            "has 2 ranges; its format needs 1",
        ),
        (
            {
                "formats": {"f": {"weight": 8, "activation": 8, "static": True}},
                "layers": {CONV: "f"},
                "ranges": {CONV: [[1, 2]]},
            },
            r"is 1.0 to 2.0; a range holds 0",
        ),
    ],
)
def test_wrong_parts_are_refused_by_name(toy, bits, match):
    with pytest.raises(ScheduleError, match=match):
        Schedule.from_dict(pipelines.content(toy.pipe, steps=STEPS, bits=bits))


def test_wrong_layers_are_refused_by_name(toy):
    query = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    for layers, match in (
        ({query: FormatPart(weight=8, split=4)}, "to_q is split after 4 channels, but is a linear layer"),
        ({SHORT: FormatPart(weight=8, split=24)}, "is split after 24 channels, but is a convolution of 24 channels"),
        ({SHORT: FormatPart(weight=4, group=16, split=8)}, "a group of 16 does not divide its 8 inputs"),
        ({CONV: FormatPart(weight=4, group=7)}, "a group of 7 does not divide its 72 inputs"),
        ({CONV: FORMATS["elided"]}, "conv1 is elided, but its outputs do not depend on the timestep alone"),
        ({"mid_block.resnets.0.norm1": FORMATS["w8"]}, r"GroupNorm, not a plain torch.nn.Linear or Conv2d"),
    ):
        with pytest.raises(ScheduleError, match=match):
            schedule(toy, layers).apply(toy.pipe)
    assert pipelines.traces(toy.denoiser) == []


def test_torchao_runs_no_convolutions(toy):
    pytest.importorskip("torchao")
    with pytest.raises(
        ScheduleError, match=f"bits.layers.{CONV} is a convolution, and torchao runs linear layers only"
    ):
        schedule(toy, {CONV: FORMATS["w8"]}).apply(toy.pipe, bits="torchao")


# The trained UNet.

TRAINED = bundled_model("sd")


@pytest.mark.slow
@pytest.mark.skipif(not (TRAINED / "model_index.json").exists(), reason="the sd checkpoint is not bundled")
def test_on_the_trained_unet_ranges_hold_those_of_a_step_and_errors_fall_with_bits():
    model = search.load_model("sd", "model.steps=8")
    known = ["red apple", "blue car", "green tree", "yellow star"]
    given, new = (known, range(4)), (known[::-1], range(50, 54))
    target = target_with_ranges(model, *given)
    ranges = target.ranges
    pairs = [(a, b) for name in ranges.layers for a, b in zip(ranges.over(name), ranges.over(name, [0]), strict=True)]
    assert all(a[0] <= b[0] and b[1] <= a[1] for a, b in pairs)
    assert any(a[0] < b[0] or b[1] < a[1] for a, b in pairs)
    assert input_splits(target.layers)
    space, bare, drift = BitsSpace(("w8a8s", "w4a8s")), model.sample(*new), {}
    for name in ("Q-Diffusion W8A8", "Q-Diffusion W4A8"):
        row = space.presets(target)[name]
        with Schedule.from_dict(target.schedule(space.decode(row, target))).apply(model.pipe):
            drift[name] = float((model.sample(*new) - bare).norm() / bare.norm())
    assert 0 < drift["Q-Diffusion W8A8"] < drift["Q-Diffusion W4A8"] < 1
