"""Size and bit operations equal hand counts on the tiny model."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from search import Schedule
from search.evaluate.evaluator import Evaluator
from search.evaluate.memo import Memo
from search.models.base import to_schedule
from search.objectives.bops import Bops
from search.objectives.size import Size
from search.profile.costs import Costs
from search.profile.count import count_costs
from search.schedule.model.layers import layers_of
from search.spaces.bits import BitsSpace
from search.testing.models import tiny_model

MODEL = tiny_model()
TARGET = MODEL.target
COSTS = count_costs(MODEL.denoiser, TARGET.tree, TARGET.steps, MODEL.once)
OFF = to_schedule(MODEL, {})
FF = "transformer_blocks.1.ff.net.2"  # 64 inputs, 16 outputs, 16 tokens
TIME = "adaln_single.linear"  # 16 inputs, 96 outputs, one row a picture


def schedule(rules=(), **layers: dict) -> Schedule:
    """Formats by layer, with dots written as double underscores."""
    forms = {f"f{i}": form for i, form in enumerate(layers.values())}
    names = {name.replace("__", "."): f"f{i}" for i, name in enumerate(layers)}
    parts = {"bits": {"formats": forms, "layers": names}}
    return to_schedule(MODEL, parts | ({"plan": {"rules": [list(r) for r in rules]}} if rules else {}))


def of(layer: str, rules=(), **form) -> Schedule:
    return schedule(rules, **{layer.replace(".", "__"): form})


def test_the_teacher_is_its_own_worst():
    assert Bops()(OFF, COSTS) == 1.0 == Bops().worst(COSTS)
    assert Size()(OFF, COSTS) == Size().worst(COSTS)
    assert COSTS.size(OFF) == sum(p.numel() * 4 for p in MODEL.denoiser.parameters())


def test_layer_tables_by_hand():
    assert COSTS.layer_macs[FF] == 2 * 16 * 64 * 16  # both halves, 4 x 4 patches
    assert COSTS.layer_macs[TIME] == 2 * 16 * 96
    assert COSTS.layer_macs["transformer_blocks.0.attn2.to_k"] == 2 * 8 * 16 * 16  # 8 text tokens
    assert COSTS.layer_shapes[FF] == (16, 64)
    assert COSTS.layer_bytes[FF] == (16 * 64 * 4, 16 * 4)
    assert COSTS.layer_shapes == layers_of(MODEL.denoiser)
    assert COSTS.layer_shapes["pos_embed.proj"] == (16, 4 * 2 * 2)
    assert COSTS.layer_macs["pos_embed.proj"] == 2 * 16 * 16 * 16  # both halves, 4 x 4 patches
    inner = sum(m for n, m in COSTS.layer_macs.items() if n.startswith("transformer_blocks.1.ff."))
    assert inner == COSTS.component_macs["transformer_blocks.1:ff"]


def test_size_by_hand():
    full = COSTS.size(OFF)
    assert full - COSTS.size(of(FF, weight=8)) == 4096 - (1024 + 16 * 2)
    assert full - COSTS.size(of(FF, weight=8, activation=8)) == 4096 - (1024 + 16 * 2)
    assert full - COSTS.size(of(FF, weight=4, group=32)) == 4096 - (512 + 32 * 4)
    assert full - COSTS.size(of(FF, weight=3)) == 4096 - (384 + 16 * 4)
    assert full - COSTS.size(of(TIME, elided=True)) == 16 * 96 * 4 + 96 * 4 - 6 * 96 * 2
    assert Size()(of(FF, weight=8), COSTS) == COSTS.size(of(FF, weight=8)) / 2**20


def test_bops_by_hand():
    macs, total = COSTS.layer_macs[FF], COSTS.teacher_macs * 256
    assert COSTS.bops(OFF) == total == COSTS.teacher_bops
    assert COSTS.bops(of(FF, weight=8, activation=8)) == total - 6 * macs * (256 - 64)
    assert COSTS.bops(of(FF, weight=4, group=64)) == total - 6 * macs * (256 - 4 * 16)
    assert COSTS.bops(of(TIME, elided=True)) == total - 6 * COSTS.layer_macs[TIME] * 256
    assert Bops()(of(FF, weight=8, activation=8), COSTS) == pytest.approx(1 - 6 * macs * 192 / total)


def test_bops_follow_the_plan():
    macs = COSTS.layer_macs[FF]
    for rules, computed in (
        ([["transformer_blocks.1:ff", "CRRCRR"]], 2),
        ([["transformer_blocks.1", "CRCRCR"]], 3),
        ([["denoiser", "CRCCCC"], ["transformer_blocks.1:ff", "CCRCCC"]], 4),
        ([["transformer_blocks.0:ff", "CRRCRR"]], 6),
    ):
        plan = to_schedule(MODEL, {"plan": {"rules": rules}})
        both = of(FF, rules, weight=4, activation=8)
        assert COSTS.bops(plan) == COSTS.macs(plan) * 256
        assert COSTS.macs(both) == COSTS.macs(plan)
        assert COSTS.bops(plan) - COSTS.bops(both) == computed * macs * (256 - 32)
        assert COSTS.size(both) == COSTS.size(of(FF, weight=4))
    skipped = of(TIME, [["denoiser", "CRRCRR"]], elided=True)
    assert COSTS.macs(skipped) == 2 * (COSTS.call_macs - COSTS.layer_macs[TIME])


def test_steps_that_compute_half_a_batch_count_half():
    macs, guidance = COSTS.layer_macs[FF], {"call": 4.0, "branch": "CCOOCC"}
    bits = {"formats": {"w4a8": {"weight": 4, "activation": 8}}, "layers": {FF: "w4a8"}}
    narrow, both = to_schedule(MODEL, {"guidance": guidance}), to_schedule(MODEL, {"guidance": guidance, "bits": bits})
    assert COSTS.bops(narrow) == COSTS.macs(narrow) * 256 < COSTS.teacher_bops
    assert COSTS.bops(narrow) - COSTS.bops(both) == 5 * macs * (256 - 32)


def test_elided_macs_equal_a_counted_run_with_a_filled_table():
    elided = to_schedule(MODEL, BitsSpace().decode(BitsSpace().presets(TARGET)["time embedding tabulated"], TARGET))
    prompts, seeds = ["red apple"], [0]
    with elided.apply(MODEL.pipe):
        MODEL.sample(prompts, seeds)
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            MODEL.sample(prompts, seeds)
    assert counter.get_total_flops() // 2 == COSTS.macs(elided) < COSTS.teacher_macs


def test_elided_layers_cost_nothing_at_any_step(tmp_path):
    elided = to_schedule(MODEL, BitsSpace().decode(BitsSpace().presets(TARGET)["time embedding tabulated"], TARGET))
    saved = sum(COSTS.layer_macs[name] for name, form in elided.bits.items() if form.elided)
    assert COSTS.macs_by_step(elided) == [COSTS.call_macs - saved] * 6
    assert sum(COSTS.macs_by_step(elided)) == COSTS.macs(elided) == 2_801_664 < COSTS.teacher_macs == 2_872_320
    reused = of(TIME, [["denoiser", "CRCCRR"]], elided=True)
    call = COSTS.call_macs - COSTS.layer_macs[TIME]
    assert COSTS.macs_by_step(reused) == [call, 0, call, call, 0, 0]
    evaluator = Evaluator(MODEL, ["red apple"], [0], {}, COSTS, Memo(tmp_path / "memo.sqlite"))
    evaluator.latents(elided)
    both = COSTS.macs(elided) + COSTS.teacher_macs  # the teacher ran as well
    assert evaluator.block_executions == pytest.approx(both / COSTS.block_macs)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_every_genome_costs_no_more_than_the_teacher_and_equals_a_sum_over_layers(seed):
    rng, space = np.random.default_rng(seed), BitsSpace()
    x = rng.integers(0, [g.levels for g in space.genes(TARGET)])
    found = to_schedule(MODEL, space.decode(x, TARGET))
    modules = dict(MODEL.denoiser.named_modules())
    size = bops = 0.0
    for name, form in found.bits.items():
        weight: nn.Linear = modules[name]
        outputs, inputs = weight.weight.shape
        full = outputs * inputs * 4
        if form.elided:
            size -= full + outputs * 4 - 6 * outputs * 2
            bops -= 6 * 256 * COSTS.layer_macs[name]
        else:
            scales = outputs * inputs / (form.group or inputs) * (2 if form.weight == 8 else 4)
            size += outputs * inputs * form.weight / 8 + scales - full
            bops -= 6 * COSTS.layer_macs[name] * (256 - form.weight * form.activation)
    assert COSTS.size(found) == COSTS.size(OFF) + size <= COSTS.size(OFF)
    assert COSTS.bops(found) == COSTS.teacher_bops + bops <= COSTS.teacher_bops


def test_more_bits_cost_more():
    rows = BitsSpace().presets(TARGET)
    found = [to_schedule(MODEL, BitsSpace().decode(rows[n], TARGET)) for n in ("W3A8", "W4A8", "W8A8")]
    for cost in (COSTS.size, COSTS.bops):
        values = [cost(s) for s in [*found, OFF]]
        assert values == sorted(set(values))


def test_costs_without_tables_say_so():
    bare = Costs(6, COSTS.component_macs, COSTS.floor_macs, COSTS.value_bytes)
    assert bare.bops(OFF) == bare.teacher_bops
    with pytest.raises(ValueError, match="weights were not counted; make the tables with count_costs"):
        bare.size(OFF)
    with pytest.raises(ValueError, match="bits.layers.*net.2 was not counted; the tables have 0 layers"):
        bare.bops(of(FF, weight=8))


def test_counting_leaves_no_hooks():
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in MODEL.denoiser.modules())
