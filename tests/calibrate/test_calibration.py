"""Cost tables against counted runs, drifts against recorded outputs, fitted latencies, thresholds of a cache."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from search import Schedule
from search.calibrate.drifts import Drifts, record_drifts
from search.calibrate.latency import fit_latency
from search.calibrate.propose.cache import threshold_mask
from search.kernels.pairwise import pairwise
from search.models.base import to_schedule
from search.profile.count import count_costs
from search.spaces.cache import CacheSpace
from search.testing.models import tiny_model

MODEL = tiny_model()
TARGET = MODEL.target
COSTS = count_costs(MODEL.denoiser, TARGET.tree, TARGET.steps, MODEL.once)


def random_schedule(seed: int, granularity: str) -> Schedule:
    rng = np.random.default_rng(seed)
    space = CacheSpace(granularity, max_order=2)
    levels = np.array([g.levels for g in space.genes(TARGET)])
    x = rng.integers(0, levels)
    x[rng.random(len(x)) > rng.random()] = 0
    return to_schedule(MODEL, space.decode(x, TARGET))


@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 10_000), granularity=st.sampled_from(["interval", "component", "block", "step"]))
def test_macs_equal_a_counted_run(seed, granularity):
    schedule = random_schedule(seed, granularity)
    prompts, seeds = ["red apple"], [0]
    MODEL.begin(prompts, seeds)  # the text is encoded
    with schedule.apply(MODEL.pipe), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        MODEL.sample(prompts, seeds)
    assert counter.get_total_flops() // 2 == COSTS.macs(schedule)


@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 10_000), granularity=st.sampled_from(["interval", "component", "block", "step"]))
def test_peak_bytes_equal_an_applied_run(seed, granularity):
    schedule = random_schedule(seed, granularity)
    with schedule.apply(MODEL.pipe) as handle:
        MODEL.sample(["red apple"], [0])
        assert handle.stats()["peak_bytes"] == COSTS.peak_bytes(schedule)
        assert handle.memory.now == 0


def test_the_teacher_costs_all_of_it():
    off = to_schedule(MODEL, {})
    assert COSTS.macs(off) == COSTS.teacher_macs == 6 * COSTS.call_macs
    assert COSTS.peak_bytes(off) == 0


def test_drifts_equal_errors_of_recorded_outputs():
    prompts, seeds = ["red apple", "blue boat"], [0, 1]
    name, outputs = "transformer_blocks.1:attn2", []
    module = TARGET.tree.module(MODEL.denoiser, TARGET.tree.nodes[name])
    remover = module.register_forward_hook(lambda m, a, out: outputs.append(out.double()))
    MODEL.sample(prompts, seeds)
    remover.remove()
    places = [0.0, 1.0, 2.5, 3.0, 4.0, 7.0]
    # a limit of one byte records every node in a run of its own
    drifts = record_drifts(
        [MODEL.denoiser], TARGET.tree, places, lambda: MODEL.sample(prompts, seeds), 1, COSTS.value_bytes
    )
    reuse = drifts.reuse([name])
    expected = (outputs[1] - outputs[4]).norm() / outputs[4].norm()
    assert reuse[1, 4] == pytest.approx(float(expected), rel=1e-6)
    assert np.tril(reuse).max() == 0
    line = outputs[1] + (outputs[2] - outputs[1]) / 1.5 * 6.0
    expected = (line - outputs[5]).norm() / outputs[5].norm()
    assert drifts.forecast([name])[1, 2, 5] == pytest.approx(float(expected), rel=1e-6)


def test_latency_fit_recovers_known_times():
    kinds = ["attn1", "ff"]
    rows = np.array([[1, 6, 18, 18], [1, 3, 9, 9], [1, 1, 3, 3], [1, 6, 3, 18], [1, 6, 18, 3]])
    true = np.array([5.0, 2.0, 0.5, 0.25])
    fitted = fit_latency(rows, (rows @ true).tolist(), kinds)
    assert list(fitted) == ["run", "denoiser", *kinds]
    assert list(fitted.values()) == pytest.approx(true.tolist(), rel=1e-6)


def test_threshold_mask_by_hand():
    reuse = np.zeros((6, 6))
    reuse[0] = [0, 0.1, 0.2, 0.4, 0.5, 0.6]
    reuse[3] = [0, 0, 0, 0, 0.1, 0.1]
    assert threshold_mask(reuse, 0.3) == list("CRRCRR")
    assert threshold_mask(np.zeros((6, 6)), 0.3, longest=2) == list("CRCRCR")


def test_forecast_of_a_straight_line_is_exact():
    places = [0.0, 1.0, 3.0, 4.0]
    values = torch.tensor([[1 + 2 * p, 4 - p] for p in places], dtype=torch.float64)
    drifts = Drifts({"a": pairwise(values)}, places)
    assert drifts.forecast(["a"]).max() < 1e-7
