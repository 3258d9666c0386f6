"""Layers at few bits: rounding against a loop by hand, exact removal, tables, and torchao beside the simulation."""

import gc
import importlib.util
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from search import Schedule, ScheduleError
from search.schedule.apply import handle as handle_module
from search.schedule.apply.admission import LAYER_HOOK
from search.schedule.apply.rounding import round_activation, round_weight
from search.schedule.apply.weights import CACHE_BYTES, ROUNDED_WEIGHTS, RoundedWeights, weight_states
from search.schedule.parts.bits import FormatPart
from search.schedule.parts.formats import FORMATS, formats_that_fit, packed_bytes
from tests.helpers import pipelines

TORCHAO = importlib.util.find_spec("torchao") is not None
QKV = [f"transformer_blocks.1.attn1.to_{k}" for k in "qkv"]
FF = ["transformer_blocks.0.ff.net.0.proj", "transformer_blocks.2.ff.net.2"]
TIME = [*(f"adaln_single.emb.timestep_embedder.linear_{i}" for i in (1, 2)), "adaln_single.linear"]
FORMS = {
    "w8": {"weight": 8},
    "w8a8d": {"weight": 8, "activation": 8},
    "w4g8": {"weight": 4, "group": 8},
    "w4g8a8d": {"weight": 4, "group": 8, "activation": 8},
    "w2": {"weight": 2},
    "elided": {"elided": True},
}


@pytest.fixture(scope="module")
def pipe():
    return pipelines.pixart()


def part(**layers: list[str]) -> dict:
    """`bits` of layers by format."""
    return {
        "formats": {f: FORMS[f] for f in layers},
        "layers": {name: f for f, names in layers.items() for name in names},
    }


def parameters(pipe) -> dict[str, nn.Parameter]:
    return dict(pipe.transformer.named_parameters())


def same_objects(pipe, before: dict[str, nn.Parameter]) -> bool:
    now = parameters(pipe)
    return list(now) == list(before) and all(now[n] is before[n] for n in before)


def hooks(denoiser: nn.Module) -> int:
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in denoiser.modules())


# Rounding.


def by_hand(weight: Tensor, count: int, group: int) -> Tensor:
    """Scalar loops in double precision."""
    out = weight.double().numpy().copy()
    top = 2**count - 1
    for row in out:
        for start in range(0, len(row), group):
            values = row[start : start + group].copy()
            if count == 8:
                scale = abs(values).max() / 127.5
                row[start : start + group] = [min(max(np.rint(v / scale), -128), 127) * scale for v in values]
                continue
            low, high, least = min(values.min(), 0), max(values.max(), 0), np.inf
            for shrink in (1.0, 0.9, 0.8, 0.7, 0.6):
                scale = (high - low) * shrink / top
                zero = np.rint(-low * shrink / scale)
                tried = np.array([(min(max(np.rint(v / scale) + zero, 0), top) - zero) * scale for v in values])
                if ((tried - values) ** 2).sum() < least:
                    least = ((tried - values) ** 2).sum()
                    row[start : start + group] = tried
    return torch.from_numpy(out)


@pytest.mark.parametrize(("count", "group"), [(8, None), (6, None), (4, 8), (3, 4), (2, 8)])
def test_weights_round_as_by_hand(count, group):
    weight = torch.randn(5, 24, generator=torch.Generator().manual_seed(count))
    found = round_weight(weight, FormatPart(weight=count, group=group))
    assert found.dtype == weight.dtype
    torch.testing.assert_close(found.double(), by_hand(weight, count, group or 24), atol=1e-5, rtol=1e-5)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(2, 8), group=st.sampled_from([None, 4, 8]))
def test_a_weight_has_at_most_so_many_values_a_group(seed, count, group):
    weight = torch.randn(4, 16, generator=torch.Generator().manual_seed(seed))
    form = FormatPart(weight=count, group=group)
    found = round_weight(weight, form)
    for values in found.reshape(-1, group or 16):
        assert len(values.unique()) <= 2**count
    assert (found - weight).abs().max() <= weight.abs().max()


@pytest.mark.parametrize("group", [None, 16])
def test_the_error_falls_with_bits_and_groups(group):
    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    errors = [float((round_weight(weight, FormatPart(weight=b, group=group)) - weight).norm()) for b in range(2, 9)]
    assert errors == sorted(errors, reverse=True)
    assert errors[2] < float((round_weight(weight, FormatPart(weight=4)) - weight).norm()) or group is None


@pytest.mark.parametrize("value", [0.0, 3.0, -2.5])
@pytest.mark.parametrize("count", [2, 4, 8])
def test_constant_rows_survive(value, count):
    weight = torch.full((2, 8), value)
    torch.testing.assert_close(round_weight(weight, FormatPart(weight=count)), weight, atol=0.02, rtol=0.005)


def test_activations_have_a_scale_for_each_token():
    tokens = torch.tensor([[[100.0, -50.0, 0.3], [0.01, 0.002, -0.004]]])
    found = round_activation(tokens, 8)
    scale = tokens.abs().amax(-1, keepdim=True) / 127.5
    torch.testing.assert_close(found, (tokens / scale).round().clamp(-128, 127) * scale)
    assert round_activation(tokens.bfloat16(), 8).dtype == torch.bfloat16
    assert torch.equal(round_activation(torch.zeros(2, 4), 8), torch.zeros(2, 4))


@pytest.mark.parametrize(("name", "bits"), [("w4a8d", 8), ("w4a6d", 6), ("w4a4d", 4)])
def test_a_token_has_at_most_so_many_values_and_no_error_beyond_half_a_step(name, bits):
    tokens = torch.randn(16, 512, generator=torch.Generator().manual_seed(0))
    assert FORMATS[name].activation == bits and FORMATS[name].weight == 4
    found = round_activation(tokens, bits)
    step = tokens.abs().amax(-1, keepdim=True) * 2 / (2**bits - 1)
    assert all(len(token.unique()) <= 2**bits for token in found)
    assert ((found - tokens).abs() <= step * 0.501).float().mean() > 0.99  # the greatest one may be clipped
    assert ((found - tokens).abs() > step * 0.2).any()


def test_a_group_becomes_a_divisor_of_the_inputs():
    assert formats_that_fit("w4g128", 1152) == ("w4g128", FORMATS["w4g128"])
    assert formats_that_fit("w4g128", 64) == ("w4g64", FormatPart(weight=4, group=64))
    assert formats_that_fit("w4a8d", 192) == ("w4g96a8d", FormatPart(weight=4, group=96, activation=8))
    assert formats_that_fit("w4a4d", 96) == ("w4g48a4d", FormatPart(weight=4, group=48, activation=4))
    assert formats_that_fit("w2g64", 8) == ("w2g8", FormatPart(weight=2, group=8))
    assert formats_that_fit("w4g128", 257) == (
        "w4",
        FormatPart(weight=4),
    )  # a prime: groups of one would be scales only
    assert formats_that_fit("w8a8d", 257) == ("w8a8d", FORMATS["w8a8d"])


def test_packed_bytes_by_hand():
    assert packed_bytes(FORMATS["w8"], 10, 64) == 640 + 10 * 2
    assert packed_bytes(FormatPart(weight=4, group=32), 10, 64) == 320 + 20 * 4
    assert packed_bytes(FormatPart(weight=3), 1, 3) == 2 + 4


# On a pipeline.


@pytest.mark.parametrize("form", ["w8", "w8a8d", "w4g8", "w4g8a8d", "w2"])
def test_a_run_is_that_of_a_pipeline_with_the_same_weights(pipe, form):
    layers = [*QKV, *FF]
    with pipelines.schedule(pipe, bits=part(**{form: layers})).apply(pipe):
        found = pipelines.run(pipe)
    other = pipelines.pixart()
    for name in layers:
        module, wanted = other.transformer.get_submodule(name), FormatPart(**FORMS[form])
        module.weight.data = round_weight(module.weight, wanted)
        if wanted.activation:
            module.register_forward_pre_hook(lambda m, args: (round_activation(args[0], 8),))
    assert torch.equal(found, pipelines.run(other))
    assert not torch.equal(found, pipelines.run(pipe))


def test_without_layers_nothing_changes(pipe):
    bare, before = pipelines.run(pipe), parameters(pipe)
    schedule = pipelines.schedule(pipe, bits={"formats": FORMS, "layers": {}})
    assert schedule == pipelines.schedule(pipe)
    with schedule.apply(pipe):
        assert same_objects(pipe, before)
        assert torch.equal(pipelines.run(pipe), bare)


def test_removal_gives_the_same_parameters_back_also_after_an_error(pipe):
    bare, before = pipelines.run(pipe), parameters(pipe)
    schedule = pipelines.schedule(pipe, bits=part(w8a8d=QKV, w2=FF, elided=TIME))
    with pytest.raises(KeyboardInterrupt), schedule.apply(pipe):
        assert not torch.equal(pipelines.run(pipe), bare)
        assert same_objects(pipe, before)
        raise KeyboardInterrupt
    assert same_objects(pipe, before)
    assert pipelines.traces(pipe.transformer) == []
    assert hooks(pipe.transformer) == 0
    assert torch.equal(pipelines.run(pipe), bare)


def test_an_error_on_the_way_in_leaves_nothing(pipe, monkeypatch):
    before, scheduler = parameters(pipe), pipe.scheduler
    get, calls = RoundedWeights.get, []

    def failing(self, *args):
        calls.append(args)
        if len(calls) == 4:
            raise MemoryError
        return get(self, *args)

    monkeypatch.setattr(RoundedWeights, "get", failing)
    schedule = pipelines.schedule(pipe, bits=part(elided=TIME, w8a8d=[*QKV, *FF]))
    with pytest.raises(MemoryError), schedule.apply(pipe):
        pipelines.run(pipe)
    calls.clear()
    add, hooked = handle_module.add_hook, []

    def failing_to_hook(module, hook):
        if len(hooked) == 5:
            raise MemoryError
        hooked.append(module)
        add(module, hook)

    monkeypatch.setattr(handle_module, "add_hook", failing_to_hook)
    with pytest.raises(MemoryError):
        schedule.apply(pipe)
    assert same_objects(pipe, before)
    assert pipe.scheduler is scheduler
    assert (pipelines.traces(pipe.transformer), hooks(pipe.transformer)) == ([], 0)


@pytest.mark.parametrize("rules", [[["denoiser", "CRCRCR"]], [["transformer_blocks.*:*", "CCF1CRR"]]])
def test_bits_and_a_plan_compose(pipe, rules):
    """Rounding beneath the hooks: the plan on a pipeline that has the rounded weights already."""
    with pipelines.schedule(pipe, rules, bits=part(w4g8=QKV, w2=FF, elided=TIME)).apply(pipe) as handle:
        first, second = pipelines.run(pipe), pipelines.run(pipe)
        assert handle.stats()["runs"] == 2
    other = pipelines.pixart()
    for names, form in ((QKV, "w4g8"), (FF, "w2")):
        for name in names:
            module = other.transformer.get_submodule(name)
            module.weight.data = round_weight(module.weight, FormatPart(**FORMS[form]))
    with pipelines.schedule(other, rules, bits=part(elided=TIME)).apply(other):
        assert torch.equal(pipelines.run(other), first)
    assert torch.equal(first, second)


def test_bits_and_guidance_compose(pipe):
    guidance = {"call": 3.0, "branch": "CCORCO"}
    with pipelines.schedule(pipe, guidance=guidance, bits=part(elided=TIME)).apply(pipe):
        tabulated = pipelines.run(pipe)
        assert torch.equal(tabulated, pipelines.run(pipe))
    with pipelines.schedule(pipe, guidance=guidance).apply(pipe):
        bare = pipelines.run(pipe)
    assert float((tabulated - bare).norm() / bare.norm()) < 1e-5
    with pipelines.schedule(pipe, guidance=guidance, bits=part(w4g8a8d=[*QKV, *FF], elided=TIME)).apply(pipe):
        found = pipelines.run(pipe)
        assert torch.equal(found, pipelines.run(pipe))
    assert not torch.equal(found, tabulated)


def test_compiled_components_round_too(pipe):
    schedule = pipelines.schedule(pipe, [["transformer_blocks.1:ff", "CRCRCR"]], bits=part(w8a8d=[*QKV, *FF]))
    with schedule.apply(pipe):
        eager = pipelines.run(pipe)
    with schedule.apply(pipe, compile=lambda forward: torch.compile(forward, backend="eager")):
        assert torch.equal(pipelines.run(pipe), eager)
    assert pipelines.traces(pipe.transformer) == []


# Tables.


def test_elided_layers_equal_the_untouched_run_and_repeat_exactly(pipe):
    bare = pipelines.run(pipe)
    with pipelines.schedule(pipe, bits=part(elided=TIME)).apply(pipe):
        first, second = pipelines.run(pipe), pipelines.run(pipe)
    assert torch.equal(first, second)
    assert float((first - bare).norm() / bare.norm()) < 1e-5


def test_a_table_is_filled_once_for_any_batch_and_guidance(pipe):
    rows = []
    linear = pipe.transformer.adaln_single.linear
    schedule = pipelines.schedule(pipe, bits=part(elided=TIME))
    with schedule.apply(pipe):
        reference = linear._diffusers_hook.get_hook("diffusion-schedule-search").fn_ref
        forward = reference.original_forward
        reference.original_forward = lambda x: rows.append(len(x)) or forward(x)
        pipelines.run(pipe, batch=2)
        pipelines.run(pipe, batch=3)
        pipelines.run(pipe, batch=1, guidance=1.0)
        reference.original_forward = forward
    assert rows == [1] * 6


def test_a_table_does_not_outlive_its_timesteps(pipe):
    schedule = pipelines.schedule(pipe, steps=None, bits=part(elided=TIME))
    with schedule.apply(pipe):
        found = [pipelines.run(pipe, steps=n) for n in (6, 4, 6)]
    assert torch.equal(found[0], found[2])
    for latents, n in zip(found, (6, 4, 6), strict=True):
        bare = pipelines.run(pipe, steps=n)
        assert float((latents - bare).norm() / bare.norm()) < 1e-5


def test_a_table_does_not_outlive_the_resolution():
    pipe = pipelines.pixart(
        use_additional_conditions=True, sample_size=128, num_attention_heads=3, cross_attention_dim=24
    )
    schedule = pipelines.schedule(pipe, bits=part(elided=["adaln_single.linear"]))
    with schedule.apply(pipe):
        small, large, again = (pipelines.run(pipe, size=n) for n in (8, 12, 8))
    assert torch.equal(small, again)
    for latents, n in ((small, 8), (large, 12)):
        bare = pipelines.run(pipe, size=n)
        assert float((latents - bare).norm() / bare.norm()) < 1e-5


def test_pictures_of_different_times_are_refused(pipe):
    with pipelines.schedule(pipe, bits=part(elided=TIME)).apply(pipe):
        pipe.scheduler.set_timesteps(6)
        given = pipelines.embeddings(2)
        with pytest.raises(ScheduleError, match="linear_1 is elided, but its input differs between pictures by"):
            pipe.transformer(
                torch.zeros(2, 4, 8, 8),
                encoder_hidden_states=given["prompt_embeds"],
                encoder_attention_mask=given["prompt_attention_mask"],
                timestep=torch.tensor([900, 100]),
                added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            )


def test_dit_elides_its_time_embedders():
    pipe = pipelines.dit()
    bare = pipelines.classes(pipe)
    layers = [f"transformer_blocks.{b}.norm1.emb.timestep_embedder.linear_{i}" for b in (0, 1) for i in (1, 2)]
    with pipelines.schedule(pipe, bits=part(elided=layers)).apply(pipe):
        found = pipelines.classes(pipe)
    assert float((found - bare).norm() / bare.norm()) < 1e-5
    with pytest.raises(ScheduleError, match="norm1.linear is elided, but its outputs do not depend on the timestep"):
        pipelines.schedule(pipe, bits=part(elided=["transformer_blocks.0.norm1.linear"])).apply(pipe)


# The cache of rounded weights.


def rounded(cache: RoundedWeights, weight: nn.Parameter) -> Tensor:
    return cache.get(weight, FORMATS["w8"], "simulate", *weight_states([weight]))


def test_rounded_weights_are_made_once_and_go_with_their_parameter():
    cache = RoundedWeights(10_000)
    weight = nn.Parameter(torch.randn(8, 16))
    first = rounded(cache, weight)
    assert rounded(cache, weight) is first
    weight.data += 1  # an adapter is fused: torch's version counter does not see it
    second = rounded(cache, weight)
    assert second is not first
    assert torch.equal(second, round_weight(weight, FORMATS["w8"]))
    assert cache.bytes == 8 * 16 * 4
    del weight
    gc.collect()
    assert (len(cache.entries), cache.bytes) == (0, 0)


def test_rounded_weights_are_bounded():
    cache = RoundedWeights(3 * 8 * 16 * 4)
    weights = [nn.Parameter(torch.randn(8, 16)) for _ in range(5)]
    kept = [rounded(cache, w) for w in weights]
    assert len(cache.entries) == 3
    assert rounded(cache, weights[4]) is kept[4]
    assert rounded(cache, weights[0]) is not kept[0]


# torchao.


@pytest.mark.skipif(not TORCHAO, reason="torchao is not installed")
@pytest.mark.parametrize("form", ["w8", "w8a8d"])
def test_torchao_agrees_with_the_simulation_in_every_layer(pipe, form):
    schedule = pipelines.schedule(pipe, bits=part(**{form: [*QKV, *FF]}))
    for name in (*QKV, *FF):
        layer = pipe.transformer.get_submodule(name)
        given = torch.randn(2, 7, layer.in_features, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            bare = layer(given)
            with schedule.apply(pipe):
                simulated = layer(given)
            with schedule.apply(pipe, bits="torchao"):
                executed = layer(given)
        assert float((executed - simulated).norm() / bare.norm()) < 1e-6
        assert float((simulated - bare).norm() / bare.norm()) > 1e-3


@pytest.mark.skipif(not TORCHAO, reason="torchao is not installed")
@pytest.mark.parametrize("form", ["w8", "w8a8d"])
def test_torchao_agrees_with_the_simulation_in_a_run(pipe, form):
    """With rounded activations a last bit may move an int8 value, and then all that follows: no tighter than this."""
    before, bare = parameters(pipe), pipelines.run(pipe)
    schedule = pipelines.schedule(pipe, bits=part(**{form: [*QKV, *FF]}, elided=TIME))
    with schedule.apply(pipe):
        simulated = pipelines.run(pipe)
    with schedule.apply(pipe, bits="torchao"):
        executed = pipelines.run(pipe)
        hook = pipe.transformer.get_submodule(QKV[0])._diffusers_hook.get_hook(LAYER_HOOK)
        assert type(hook.weight.data).__name__ == "Int8Tensor"
        assert torch.equal(executed, pipelines.run(pipe))
    rounding = float((simulated - bare).norm() / bare.norm())
    assert float((executed - simulated).norm() / bare.norm()) < (1e-5 if form == "w8" else rounding)
    assert same_objects(pipe, before)
    assert pipelines.traces(pipe.transformer) == []
    assert not any("extra_repr" in m.__dict__ for m in pipe.transformer.modules())
    assert torch.equal(pipelines.run(pipe), bare)


@pytest.mark.skipif(not TORCHAO, reason="torchao is not installed")
def test_torchao_says_what_it_cannot_run(pipe):
    with pytest.raises(ScheduleError, match="bits.formats.w4g8 cannot run by torchao on cpu.*bits='simulate'"):
        pipelines.schedule(pipe, bits=part(w4g8=QKV)).apply(pipe, bits="torchao")


def test_without_torchao_the_error_says_what_to_install(pipe, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(ScheduleError, match=r'pip install "diffusion-schedule-search\[quant\]"'):
        pipelines.schedule(pipe, bits=part(w8=QKV)).apply(pipe, bits="torchao")
    with pipelines.schedule(pipe, bits=part(elided=TIME)).apply(pipe, bits="torchao"):
        assert torch.isfinite(pipelines.run(pipe)).all()  # tables need no library


# What is refused.


def refused(pipe, match: str, **arguments) -> None:
    before = parameters(pipe)
    with pytest.raises(ScheduleError, match=match):
        pipelines.schedule(pipe, **arguments).apply(pipe)
    assert same_objects(pipe, before)
    assert pipelines.traces(pipe.transformer) == []


def test_wrong_files_are_refused_by_name(pipe):
    refused(
        pipe,
        r"bits.layers names 'transformer_blocks.9.ff', which PixArtTransformer2DModel lacks; it has \d+ linear",
        bits=part(w8=[*QKV, "transformer_blocks.9.ff"]),
    )
    refused(pipe, r"attn1 is a diffusers.*Attention, not a plain", bits=part(w8=["transformer_blocks.0.attn1"]))
    refused(
        pipe,
        "bits.layers.transformer_blocks.1.attn1.to_q: a group of 5 does not divide its 16 inputs",
        bits={"formats": {"odd": {"weight": 4, "group": 5}}, "layers": {QKV[0]: "odd"}},
    )
    refused(
        pipe,
        "to_q is elided, but its outputs do not depend on the timestep alone; of a PixArt.* may be: adaln_single",
        bits=part(elided=QKV[:1]),
    )
    with pytest.raises(ScheduleError, match="bits='fast' is unknown; use .*bits='simulate'"):
        pipelines.schedule(pipe).apply(pipe, bits="fast")


def test_weights_that_are_not_plain_are_refused():
    pipe = pipelines.pixart()
    layer = pipe.transformer.get_submodule(QKV[0])
    own = layer.weight
    layer.weight = nn.Parameter(own.data.to("meta"))
    refused(pipe, "its weight is absent", bits=part(w8=QKV))
    layer.weight = nn.Parameter(own.data.to(torch.float8_e4m3fn), requires_grad=False)
    refused(pipe, "its weight is torch.float8_e4m3fn in a Tensor, and only plain", bits=part(w8=QKV))


def test_group_offloading_is_refused():
    pipe = pipelines.pixart()
    cpu = torch.device("cpu")
    pipe.transformer.enable_group_offload(onload_device=cpu, offload_device=cpu, offload_type="leaf_level")
    with pytest.raises(ScheduleError, match="is offloaded in groups, .* use pipe.enable_model_cpu_offload"):
        pipelines.schedule(pipe, bits=part(w8=QKV)).apply(pipe)


def test_adapters_are_named():
    pipe = pipelines.pixart()

    class Wrapped(nn.Linear):
        pass

    pipe.transformer.transformer_blocks[1].attn1.to_q.__class__ = Wrapped
    with pytest.raises(ScheduleError, match="to_q is a tests.schedule.test_bits.Wrapped, .* fuse and unload adapters"):
        pipelines.schedule(pipe, bits=part(w8=QKV)).apply(pipe)


@settings(max_examples=15, deadline=None)
@given(st.dictionaries(st.sampled_from([*QKV, *FF]), st.sampled_from(["w8", "w8a8d", "w4g8", "w4g8a8d", "w2"])))
def test_every_mix_runs_and_leaves_no_trace(pipe, layers):
    before = parameters(pipe)
    schedule = pipelines.schedule(pipe, steps=2, bits={"formats": FORMS, "layers": layers})
    assert Schedule.from_dict(schedule.to_dict()) == schedule
    assert set(schedule.bits) == set(layers)
    with schedule.apply(pipe):
        assert torch.isfinite(pipelines.run(pipe, steps=2, batch=1)).all()
    assert same_objects(pipe, before)
    assert (pipelines.traces(pipe.transformer), hooks(pipe.transformer)) == ([], 0)


def test_the_shared_cache_is_bounded():
    assert ROUNDED_WEIGHTS.bytes <= CACHE_BYTES
