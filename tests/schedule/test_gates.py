"""Gates against loops written by hand, diffusers' own caches, and identities."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import FirstBlockCacheConfig, MagCacheConfig
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from search import Schedule, ScheduleError
from search.evaluate.evaluator import Evaluator
from search.evaluate.execute.prefix import step_keys
from search.evaluate.fit.solver import Fitter
from search.evaluate.memo import Memo
from search.models.base import to_schedule
from search.objectives.drift import Drift
from search.objectives.macs import Macs
from search.profile.count import count_costs
from search.schedule.apply.handle import apply_document
from search.schedule.model.nodes import Tree
from search.testing.models import tiny_model
from tests.helpers import denoiser_loops, pipelines

PIXART, DIT, FLUX = "PixArtTransformer2DModel", "DiTTransformer2DModel", "FluxTransformer2DModel"
STEPS = 6
ALL = {
    PIXART: "transformer_blocks.*",
    DIT: "transformer_blocks.*",
    FLUX: "transformer_blocks.*+single_transformer_blocks.*",
}
REST = {
    PIXART: "transformer_blocks.[1-2]",
    DIT: "transformer_blocks.[1-2]",
    FLUX: "transformer_blocks.1+single_transformer_blocks.*",
}


def gate(group: str, actions: str = "CCGGGC", **rule: Any) -> dict[str, Any]:
    return {"group": group, "actions": actions, **rule}


def gated(pipe: Any, *gates: dict[str, Any], steps: int = STEPS, rules: Any = (), **parts: Any) -> Schedule:
    return pipelines.schedule(pipe, rules, steps, gates=list(gates), **parts)


def change(actual: Tensor, expected: Tensor, base: Tensor) -> float:
    """Relative L1, sample by sample."""
    each = [(a - e).abs().mean() / b.abs().mean() for a, e, b in zip(actual, expected, base, strict=True)]
    return float(max(each))


class ByHand(nn.Module):
    """Takes the place of a run of blocks, runs them one by one, and decides as the paper of the signal says."""

    def __init__(self, denoiser: nn.Module, rest: bool, actions: str, rule: dict[str, Any]) -> None:
        super().__init__()
        self.blocks, self.actions, self.rule = list(self.take(denoiser, rest)), actions, rule
        self.step, self.values, self.signals, self.total = 0, [], [], 0.0
        self.changes: list[float] = []
        self.decided = ""
        self.seen: Tensor | None = None
        if rule["signal"] == "model_input":
            denoiser.register_forward_pre_hook(self.see, with_kwargs=True)
        if rule["signal"] == "first_block_residual":
            denoiser.transformer_blocks[0].register_forward_pre_hook(self.see, with_kwargs=True)

    def take(self, denoiser: nn.Module, rest: bool) -> Any:
        """The blocks that the group has; what stays in the denoiser is the first one, if it is not of the group."""
        blocks = list(denoiser.transformer_blocks)
        if hasattr(blocks[0], "norm1"):
            self.norm1 = blocks[0].norm1  # which DiT's forward asks the first block for
        kept = nn.ModuleList(blocks[:rest])
        if hasattr(denoiser, "single_transformer_blocks"):
            blocks += denoiser.single_transformer_blocks
            denoiser.single_transformer_blocks = nn.ModuleList([self])
        else:
            kept.append(self)
        denoiser.transformer_blocks = kept
        return blocks[rest:]

    def see(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self.seen = args[0] if args else kwargs["hidden_states"]

    def modulated(self, hidden: Tensor, kwargs: dict[str, Any]) -> Tensor:
        block = self.blocks[0]
        if hasattr(block, "scale_shift_table") and block.scale_shift_table is not None:  # PixArt
            shift, scale, *_ = (block.scale_shift_table[None] + kwargs["timestep"].reshape(len(hidden), 6, -1)).chunk(
                6, 1
            )
            return block.norm1(hidden) * (1 + scale) + shift
        if "temb" in kwargs:
            return block.norm1(hidden, emb=kwargs["temb"])[0]
        return block.norm1(hidden, kwargs["timestep"], kwargs["class_labels"], hidden_dtype=hidden.dtype)[0]

    def signal(self, hidden: Tensor, kwargs: dict[str, Any]) -> Tensor:
        return {
            "first_block_forecast": lambda: hidden,
            "first_block_residual": lambda: hidden - self.seen,
            "modulated_input": lambda: self.modulated(hidden, kwargs),
            "model_input": lambda: self.seen.clone(),
        }[self.rule["signal"]]()

    def forecast(self, known: list[tuple[int, Tensor]]) -> Tensor:
        """By hand for orders 0 and 1, on the index axis."""
        if self.rule.get("then", "R") == "R":
            return known[-1][1]
        (a, x), (b, y) = known[-2:]
        return y + (y - x) * (self.step - b) / (b - a)

    def passes(self, signal: Tensor) -> bool:
        if self.rule["signal"] == "first_block_forecast":
            needed = 1 + (self.rule.get("then") == "F1")
            if len(self.signals) < needed:
                return False
            found = change(signal, self.forecast(self.signals), signal)
        else:
            found = change(signal, self.signals[-1][1], self.signals[-1][1])
        self.changes.append(found)
        self.total += found
        return (self.total if self.rule.get("accumulate") else found) < self.rule["threshold"]

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **kwargs: Any) -> Any:
        streams = {"hidden_states": hidden_states, "encoder_hidden_states": encoder_hidden_states}
        signal = self.signal(hidden_states, kwargs)
        two = "temb" in kwargs  # of Flux both streams change
        entered = [encoder_hidden_states, hidden_states] if two else [hidden_states]
        computes = self.actions[self.step] == "C" or not self.passes(signal)
        if computes:
            for block in self.blocks:
                found = block(**streams, **kwargs)
                streams |= dict(zip(("encoder_hidden_states", "hidden_states"), found, strict=True)) if two else {
                    "hidden_states": found
                }  # fmt: skip
            value = [streams["encoder_hidden_states"], streams["hidden_states"]] if two else [streams["hidden_states"]]
            out, self.total = value, 0.0
            if self.rule.get("value") == "residual":
                value = [o - i for o, i in zip(value, entered, strict=True)]
            self.values.append((self.step, value))
        else:
            out = [self.forecast([(s, v[i]) for s, v in self.values]) for i in range(len(entered))]
            if self.rule.get("value") == "residual":
                out = [o + i for o, i in zip(out, entered, strict=True)]
        stepwise = self.rule.get("accumulate") and self.rule["signal"] != "first_block_forecast"
        if computes or stepwise:
            self.signals.append((self.step, signal))
        self.decided += "C" if computes else "-"
        self.step += 1
        return tuple(out) if two else out[0]


RULES = [
    {"signal": "first_block_forecast", "then": "F1"},
    {"signal": "first_block_forecast", "then": "R", "value": "residual", "accumulate": True},
    {"signal": "first_block_residual", "then": "R", "value": "residual"},
    {"signal": "first_block_residual", "then": "F1", "accumulate": True},
    {"signal": "modulated_input", "then": "R", "value": "residual", "accumulate": True},
    {"signal": "modulated_input", "then": "F1"},
    {"signal": "model_input", "then": "R", "value": "residual"},
    {"signal": "model_input", "then": "R", "accumulate": True},
]


def by_hand(name: str, rest: bool, actions: str, rule: dict[str, Any]) -> tuple[Tensor, ByHand]:
    pipe = denoiser_loops.pipeline(name)
    hand = ByHand(pipe.denoiser, rest, actions, rule)
    return denoiser_loops.run(pipe, len(actions)), hand


@pytest.mark.parametrize("rule", RULES, ids=lambda r: "-".join(str(v) for v in r.values()))
@pytest.mark.parametrize("name", [PIXART, DIT, FLUX])
def test_decisions_and_outputs_are_those_of_a_loop_by_hand(name: str, rule: dict[str, Any]) -> None:
    actions, pipe = "CCGGGGGC", denoiser_loops.pipeline(name)
    rest = rule["signal"] != "modulated_input"
    _, every = by_hand(name, rest, actions, rule | {"threshold": 0.0})
    middle = sorted(every.changes)[len(every.changes) // 2]
    threshold = middle * (1.6 if rule.get("accumulate") else 1.01)
    expected, hand = by_hand(name, rest, actions, rule | {"threshold": threshold})
    assert {"C", "-"} <= set(hand.decided[2:7])  # some pass and some do not
    schedule = gated(pipe, gate((REST if rest else ALL)[name], actions, threshold=threshold, **rule), steps=8)
    with schedule.apply(pipe) as handle:
        found = denoiser_loops.run(pipe, 8)
        (decided,) = handle.stats()["gates"]
    assert "".join("C" if share else "-" for share in decided["computed"]) == hand.decided
    assert torch.equal(found, expected) or (rule["then"] == "F1" and torch.allclose(found, expected, atol=1e-4))
    assert (decided["passed"], decided["refused"]) == (hand.decided.count("-"), hand.decided[2:7].count("C"))


def one(pipe: Any) -> Callable[..., Any]:
    """Calls of the denoiser with the first sample alone, as a batch of one."""

    def call(step: int, sample: Tensor, **given: Any) -> Any:
        whole = {"img_ids", "txt_ids"}
        cut = {k: v[:1] if isinstance(v, Tensor) and k not in whole else v for k, v in given.items()}
        with pipe.denoiser.cache_context("one"):
            return tuple(v.expand(len(sample), *v.shape[1:]) for v in pipe.denoiser(sample[:1], **cut))

    return call


@pytest.mark.parametrize("threshold", [0.05, 0.3, 0.6, 1.0])
def test_first_block_cache_is_that_of_diffusers(threshold: float) -> None:
    pipe = denoiser_loops.pipeline(FLUX)
    pipe.denoiser.enable_cache(FirstBlockCacheConfig(threshold))
    expected = denoiser_loops.run(pipe, 8, one(pipe))
    pipe = denoiser_loops.pipeline(FLUX)
    rule = {"signal": "first_block_residual", "value": "residual", "threshold": threshold}
    with gated(pipe, gate(REST[FLUX], "C G*7", **rule), steps=8).apply(pipe):
        assert torch.allclose(denoiser_loops.run(pipe, 8, one(pipe)), expected, atol=1e-5)


@pytest.mark.parametrize("longest", [1, 2, 4])
def test_a_table_is_mag_cache_of_diffusers_and_static(longest: int) -> None:
    ratios = [1.0, 1.02, 0.97, 0.99, 1.01, 0.95, 0.98, 1.05]
    pipe = denoiser_loops.pipeline(PIXART)
    from diffusers.hooks import apply_mag_cache

    config = MagCacheConfig(
        threshold=0.06, max_skip_steps=longest, retention_ratio=0.25, num_inference_steps=8, mag_ratios=ratios
    )
    apply_mag_cache(pipe.denoiser, config)
    expected = denoiser_loops.run(pipe, 8)
    pipe = denoiser_loops.pipeline(PIXART)
    rule = {"signal": "table", "table": ratios, "threshold": 0.06, "max_run": longest, "value": "residual"}
    schedule = gated(pipe, gate(ALL[PIXART], "CC G*6", **rule), steps=8)
    (found,) = schedule.gates
    assert found.is_static and "R" in found.tokens and "table" not in schedule.to_dict()["gates"][0]
    assert Schedule.from_dict(schedule.to_dict()) == schedule
    with schedule.apply(pipe) as handle:
        assert torch.allclose(denoiser_loops.run(pipe, 8), expected, atol=1e-5)
        assert handle.stats()["nodes"]["transformer_blocks.*"]["C"] == found.tokens.count("C")


# Identities


@pytest.mark.parametrize("name", [PIXART, DIT, FLUX])
def test_off_is_off(name: str) -> None:
    pipe = denoiser_loops.pipeline(name)
    off, bare = pipelines.schedule(pipe), denoiser_loops.run(pipe)
    for rule in ({"threshold": 0.0}, {"threshold": [9, 9, 0, 0, 0, 9.0]}, {"threshold": 0.0, "max_run": 2}):
        schedule = gated(pipe, gate(REST[name], signal="first_block_residual", **rule))
        assert schedule == off and schedule.gates == () and "gates" not in schedule.to_dict()
    near = gated(pipe, gate(REST[name], signal="first_block_residual", threshold=1e-9))
    assert near != off
    with near.apply(pipe) as handle:
        assert torch.equal(denoiser_loops.run(pipe), bare)
        assert handle.stats()["gates"][0]["refused"] == 3


@pytest.mark.parametrize("value", ["out", "residual"])
@pytest.mark.parametrize("actions", ["CRCRRC", "CCF1 R F1C", "CRRRRR"])
def test_a_static_group_is_a_plan_of_its_stack(actions: str, value: str) -> None:
    pipe = denoiser_loops.pipeline(PIXART)
    group = gated(pipe, gate(ALL[PIXART], actions, value=value))
    rules = pipelines.content(pipe, [["transformer_blocks", actions]])
    rules["plan"]["value"] = value
    with group.apply(pipe) as handle:
        first, bytes_ = denoiser_loops.run(pipe), handle.stats()["peak_bytes"]
    with Schedule.from_dict(rules).apply(pipe) as handle:
        assert torch.equal(first, denoiser_loops.run(pipe))
        assert handle.stats()["peak_bytes"] == bytes_


@pytest.mark.parametrize("name", [PIXART, FLUX, "SD3Transformer2DModel"])
def test_the_residual_of_a_block_is_added_to_what_enters_it(name: str) -> None:
    pipe, steps = denoiser_loops.pipeline(name), 4
    content = pipelines.content(pipe, [["transformer_blocks.1", "CRCF1"]], steps)
    content["plan"]["value"] = "residual"
    assert Schedule.from_dict(content) != pipelines.schedule(pipe, [["transformer_blocks.1", "CRCF1"]], steps)
    with Schedule.from_dict(content).apply(pipe):
        found = denoiser_loops.run(pipe, steps)
    block, kept = pipe.denoiser.transformer_blocks[1], []
    original, calls = block.forward, iter(range(steps))

    def forward(hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **kwargs: Any) -> Any:
        step, two = next(calls), name != PIXART
        entered = [encoder_hidden_states, hidden_states] if two else [hidden_states]
        if step in (0, 2):
            out = original(hidden_states=hidden_states, encoder_hidden_states=encoder_hidden_states, **kwargs)
            kept.append([o - i for o, i in zip(out if two else [out], entered, strict=True)])
            return out
        value = kept[-1] if step == 1 else [y + (y - x) / 2 for x, y in zip(*kept, strict=True)]
        out = [v + i for v, i in zip(value, entered, strict=True)]
        return tuple(out) if two else out[0]

    block.forward = forward
    assert torch.allclose(found, denoiser_loops.run(pipe, steps), atol=1e-5)


def test_the_value_of_a_plan_matters_for_blocks_alone() -> None:
    pipe = pipelines.pixart()
    components = [["transformer_blocks.*:ff", "CRRRRR"], ["denoiser", "CCCRCC"]]
    for rules, same in ((components, True), ([["transformer_blocks.1", "CRCCCC"]], False)):
        content = pipelines.content(pipe, rules)
        residual = content | {"plan": content["plan"] | {"value": "residual"}}
        assert (Schedule.from_dict(content) == Schedule.from_dict(residual)) == same


def test_what_is_spent_passes_and_what_is_certain_is_static() -> None:
    pipe = pipelines.pixart()
    rule = {"signal": "first_block_residual", "threshold": 0.1}
    (none,) = gated(pipe, gate("transformer_blocks.[1-2]", "CCGGGC", most=0, **rule)).gates
    assert "".join(none.tokens) == "CCRRRC"
    (first,) = gated(pipe, gate("transformer_blocks.[1-2]", "G*6", then="F1", **rule)).gates
    assert "".join(first.tokens) == "CCGGGG"  # nothing to forecast from before
    (whole,) = gated(pipe, gate("transformer_blocks.[1-2]", "C*2 G*4", **rule), rules=[["denoiser", "CCCRCC"]]).gates
    assert "".join(whole.tokens) == "CCG-GG"
    plain = gated(pipe, gate("transformer_blocks.[1-2]", **rule))
    same = gated(pipe, gate("transformer_blocks.[2,1]", "C*2 G*3 C", most=3, max_run=6, poly=[1.0, 0.0], **rule))
    assert plain == same and plain.digest == same.digest
    listed = gate("transformer_blocks.[1-2]", **(rule | {"threshold": [0, 9, 0.1, 0.1, 0.1, 3.0]}))
    assert gated(pipe, listed) == plain
    assert gated(pipe, gate("transformer_blocks.[1-2]", **(rule | {"threshold": 0.2}))) != plain


# Bounds


@pytest.mark.parametrize("signal", ["first_block_forecast", "first_block_residual", "modulated_input", "model_input"])
def test_a_higher_threshold_never_computes_more_on_a_fixed_seed(signal: str) -> None:
    pipe, computed = denoiser_loops.pipeline(DIT), []
    for threshold in (1e-6, 0.02, 0.1, 0.3, 0.6, 1.0, 5.0, 100.0):
        with gated(pipe, gate(REST[DIT], "C G*9", signal=signal, threshold=threshold), steps=10).apply(pipe) as handle:
            denoiser_loops.run(pipe, 10)
            computed.append(handle.stats()["nodes"][REST[DIT]]["C"])
    assert computed == sorted(computed, reverse=True)
    assert (computed[0], computed[-1]) == (10, 1) and len(set(computed)) > 2


PIPE = denoiser_loops.pipeline(PIXART)


@settings(max_examples=40, deadline=None)
@given(
    thresholds=st.lists(st.floats(0, 2), min_size=10, max_size=10),
    most=st.integers(0, 8),
    longest=st.integers(1, 5) | st.none(),
    signal=st.sampled_from(["first_block_forecast", "first_block_residual", "modulated_input", "model_input"]),
    accumulate=st.booleans(),
    order=st.integers(0, 2),
)
def test_no_run_computes_more_than_the_bound(
    thresholds: list[float], most: int, longest: int | None, signal: str, accumulate: bool, order: int
) -> None:
    then = f"F{order}" if order else "R"
    rule = {"signal": signal, "threshold": thresholds, "accumulate": accumulate, "then": then, "most": most}
    rule |= {"max_run": longest} if longest else {}
    schedule = gated(PIPE, gate(REST[PIXART], "C*3 G*7", **rule), steps=10)
    assert Schedule.from_dict(schedule.to_dict()) == schedule
    worst = COSTS.macs(schedule)
    with schedule.apply(PIPE) as handle:
        for _ in range(2):  # the bound is of a run
            denoiser_loops.run(PIPE, 10)
        stats = handle.stats()
    computed = 10 if not schedule.gates else stats["nodes"][REST[PIXART]]["C"] / 2
    assert computed <= 3 + most
    executed = COSTS.floor_macs * 10 + sum(
        macs * (10 if ".0" in name else computed) for name, macs in COSTS.component_macs.items()
    )
    assert (
        executed
        <= worst
        == COSTS.floor_macs * 10
        + sum(macs * (10 if ".0" in name else 3 + min(most, 7)) for name, macs in COSTS.component_macs.items())
    )
    shares = {g["group"]: g["computed"] for g in stats["gates"]}
    assert COSTS.measured(shares).macs(schedule) == round(executed)
    assert stats["peak_bytes"] <= COSTS.peak_bytes(schedule)
    assert handle.memory.now == 0


def costs(pipe: Any, steps: int = 10) -> Any:
    def once() -> None:
        denoiser_loops.run(pipe, 1)

    return count_costs(pipe.denoiser, Tree.of(pipe.denoiser), steps, once)


COSTS = costs(PIPE)


@pytest.mark.parametrize("order", [0, 1, 2])
def test_memory_does_not_grow_with_depth(order: int) -> None:
    peaks = []
    for blocks in (3, 7):
        pipe = pipelines.pixart(blocks)
        rule = {"signal": "first_block_forecast", "then": f"F{order}" if order else "R", "threshold": 1e-9}
        schedule = gated(pipe, gate(f"transformer_blocks.[1-{blocks - 1}]", "C*3 G*3", **rule))
        with schedule.apply(pipe) as handle:
            pipelines.run(pipe, batch=1)
            peaks.append(handle.stats()["peak_bytes"])
    one = 2 * 16 * pipelines.WIDTH * 4  # both halves, 16 tokens, float32
    assert peaks == [2 * (order + 1) * one] * 2


@pytest.mark.parametrize("signal", ["first_block_forecast", "modulated_input"])
@pytest.mark.parametrize("name", [PIXART, DIT])
def test_peak_bytes_are_the_bound_where_the_gate_always_computes(name: str, signal: str) -> None:
    pipe = denoiser_loops.pipeline(name)
    table = costs(pipe)
    schedule = gated(pipe, gate(REST[name], "C*2 G*3 C", signal=signal, then="F1", threshold=1e-9))
    with schedule.apply(pipe) as handle:
        denoiser_loops.run(pipe)
        assert handle.stats()["peak_bytes"] == table.peak_bytes(schedule) > 0
        assert handle.memory.now == 0


def test_a_passing_gate_adds_up_with_the_plan_around_it() -> None:
    pipe = denoiser_loops.pipeline(PIXART)
    rules = [["denoiser", "CCCRCC"], ["transformer_blocks.0:ff", "CRCCRC"]]
    static = gated(pipe, gate(REST[PIXART], "CRCCF1R", value="residual"), rules=rules)
    with static.apply(pipe) as handle:
        denoiser_loops.run(pipe)
        stats = handle.stats()
    assert stats["peak_bytes"] == COSTS.peak_bytes(static)
    assert stats["nodes"]["denoiser"] == {"C": 5, "R": 1}
    assert stats["nodes"][REST[PIXART]] == {"C": 2, "R": 2, "F1": 1}
    assert stats["block_executions"] == 5 + 2 * 2
    names, tokens = static.table()
    table = dict(zip(names, map("".join, tokens), strict=True))
    assert table["transformer_blocks.1"] == "CRC-F1R" and table["transformer_blocks.2:ff"] == "C-C---"
    assert table["transformer_blocks.0:ff"] == "CRC-RC"


# Branches of guidance, runs, exceptions


def test_branches_of_guidance_are_kept_apart() -> None:
    pipe = denoiser_loops.pipeline("WanTransformer3DModel")
    rule = {"signal": "first_block_residual", "threshold": 0.5, "value": "residual"}

    def twice(step: int, sample: Tensor, **given: Any) -> Any:
        first = pipe.denoiser(sample, **given)
        second = pipe.denoiser(sample, **given)
        assert torch.equal(first[0], second[0])
        pipe.denoiser(sample * 2, **given)
        return first

    with gated(pipe, gate("blocks.[1-2]", "C G*5", **rule)).apply(pipe) as handle:
        alone, before = denoiser_loops.run(pipe), handle.stats()["gates"][0]
        assert torch.equal(denoiser_loops.run(pipe, call=twice), alone)
        after = handle.stats()["gates"][0]
    assert before["passed"] and before["refused"]
    assert after["passed"] + after["refused"] == 4 * 5


@pytest.mark.parametrize("value", ["out", "residual"])
@pytest.mark.parametrize("branch", ["CCOCRC", "COCCCO", "CCMOOC"])
def test_halves_of_guidance_are_kept_apart(branch: str, value: str) -> None:
    pipe = pipelines.pixart()
    parts = {"guidance": {"call": 3.0, "branch": branch}}
    group = gated(pipe, gate("transformer_blocks.*", "CRCCRR", value=value), **parts)
    rules = pipelines.content(pipe, [["transformer_blocks", "CRCCRR"]], **parts)
    rules["plan"]["value"] = value
    with group.apply(pipe) as handle:
        found = pipelines.run(pipe, batch=1)
        assert handle.stats()["peak_bytes"] <= TINY.peak_bytes(group)
        assert handle.memory.now == 0
    with Schedule.from_dict(rules).apply(pipe):
        assert torch.equal(found, pipelines.run(pipe, batch=1))


TINY = count_costs(
    (_pipe := pipelines.pixart()).transformer,
    Tree.of(_pipe.transformer),
    6,
    lambda: pipelines.run(_pipe, steps=2, batch=1),
)


@pytest.mark.parametrize("signal", ["first_block_forecast", "first_block_residual", "modulated_input", "model_input"])
def test_gates_and_narrow_guidance(signal: str) -> None:
    pipe = pipelines.pixart()
    parts = {"guidance": {"call": 3.0, "branch": "COCCOC"}}
    outcomes = []
    for threshold in (1e-9, 1e9):
        schedule = gated(pipe, gate("transformer_blocks.[1-2]", "C G*5", signal=signal, threshold=threshold), **parts)
        with schedule.apply(pipe) as handle:
            outcomes.append(pipelines.run(pipe, batch=1))
            stats = handle.stats()
            assert stats["peak_bytes"] <= TINY.peak_bytes(schedule) and handle.memory.now == 0
            computed = stats["nodes"]["transformer_blocks.[1-2]"]["C"]
        shares = {g["group"]: g["computed"] for g in stats["gates"]}
        # the steps O cost half: five steps G are worth 4, all steps 5
        assert TINY.macs(schedule) - TINY.measured(shares).macs(schedule) == (0 if computed == 6 else 4) * sum(
            m for n, m in TINY.component_macs.items() if ".0" not in n
        )
        assert computed == (6 if threshold < 1 else 1)
    with pipelines.schedule(pipe, **parts).apply(pipe):
        assert torch.equal(outcomes[0], pipelines.run(pipe, batch=1))
    assert not torch.equal(*outcomes)


def test_a_batch_passes_only_if_every_sample_does() -> None:
    pipe = pipelines.pixart()
    rule = {"signal": "first_block_residual", "threshold": 0.25}
    passed = []
    for batch in (1, 2, 3):
        with gated(pipe, gate("transformer_blocks.[1-2]", "C G*9", **rule), steps=10).apply(pipe) as handle:
            pipelines.run(pipe, steps=10, batch=batch)
            passed.append(handle.stats()["gates"][0]["passed"])
    assert passed[0] >= passed[1] >= passed[2]


@pytest.mark.parametrize("signal", ["first_block_forecast", "first_block_residual", "modulated_input", "model_input"])
def test_runs_are_alike_exceptions_forget_and_nothing_is_left(signal: str) -> None:
    pipe = pipelines.pixart()
    bare = pipelines.run(pipe)
    hooks = [len(m._forward_pre_hooks) for m in pipe.transformer.modules()]
    rule = {"signal": signal, "threshold": 0.5, "accumulate": True, "value": "residual"}
    with gated(pipe, gate("transformer_blocks.[1-2]", **rule)).apply(pipe) as handle:
        first = pipelines.run(pipe)
        assert torch.equal(pipelines.run(pipe), first)
        ff, calls = pipe.transformer.transformer_blocks[2].ff, []

        def fail(*_: Any) -> None:
            calls.append(1)
            if len(calls) == 2:
                raise RuntimeError("on purpose")

        remover = ff.register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="on purpose"):
            pipelines.run(pipe)
        remover.remove()
        (group,) = handle.groups
        assert handle.memory.now == 0 and group.inputs is None and group.recorded is None and not group.probing
        assert torch.equal(pipelines.run(pipe), first)
        pipelines.run(pipe, batch=3)
    assert pipelines.traces(pipe.transformer) == []
    assert [len(m._forward_pre_hooks) for m in pipe.transformer.modules()] == hooks
    assert torch.equal(pipelines.run(pipe), bare)


def test_a_switch_of_models_is_a_barrier() -> None:
    pipe, other = pipelines.pixart(), pipelines.pixart()
    part = pipelines.content(pipe)["model"]
    models = {"names": {"S": part}, "at": "LLSSLL"}
    rule = {"signal": "first_block_residual", "threshold": 1e9, "value": "residual"}
    schedule = gated(pipe, gate("transformer_blocks.[1-2]", "C G*5", **rule), models=models)
    assert "".join(schedule.gates[0].tokens) == "CG--CG"  # the first step behind it has nothing to read
    with schedule.apply(pipe, models={"S": other}) as handle:
        pipelines.run(pipe)
        assert handle.stats()["gates"][0]["computed"] == [1, 0, 0, 0, 1, 0]
        assert handle.memory.now == 0
    with pytest.raises(
        ScheduleError, match=r"at step 4 is R, which reads 1 computed value\(s\), but 0 certainly came before"
    ):
        gated(pipe, gate("transformer_blocks.[1-2]", "CRRRRR"), models=models)


def test_compiled_components_are_the_same() -> None:
    pipe = pipelines.pixart()
    rule = {"signal": "modulated_input", "threshold": 0.5, "value": "residual"}
    schedule = gated(pipe, gate("transformer_blocks.*", **rule))
    with schedule.apply(pipe):
        expected = pipelines.run(pipe)
    compiled: list[Any] = []
    with schedule.apply(pipe, compile=lambda forward: compiled.append(forward) or forward):
        assert torch.equal(pipelines.run(pipe), expected)
    assert len(compiled) == 9


def test_a_controlnet_is_refused() -> None:
    pipe = denoiser_loops.pipeline(FLUX)
    added = torch.zeros(denoiser_loops.BATCH, 16, 16)
    schedule = gated(pipe, gate(REST[FLUX], signal="first_block_residual", threshold=0.1))
    with (
        schedule.apply(pipe),
        pytest.raises(ScheduleError, match="transformer_blocks.1.* drop controlnet_block_samples"),
    ):
        denoiser_loops.run(pipe, call=lambda i, x, **g: pipe.denoiser(x, **g, controlnet_block_samples=[added] * 2))


# Searching


def test_costs_of_gated_schedules_are_measured_once(tmp_path: Any) -> None:
    model = tiny_model()
    table = count_costs(model.denoiser, model.target.tree, 6, model.once)
    memo, objectives = Memo(tmp_path / "memo.sqlite"), {"drift": Drift(), "macs": Macs()}
    evaluator = Evaluator(model, ["red apple", "blue boat", "flat style"], [0, 1, 2], objectives, table, memo, batch=2)
    rule = {"signal": "first_block_residual", "threshold": 0.3, "value": "residual"}
    schedule = to_schedule(model, {"gates": [gate("transformer_blocks.[1-2]", "C G*5", **rule)]})
    before, runs = evaluator.block_executions, evaluator.runs
    (macs,) = evaluator.values(schedule)["macs"]
    assert evaluator.runs == runs + 3
    with schedule.apply(model.pipe) as handle:
        for prompt, seed in zip(evaluator.prompts, evaluator.seeds, strict=True):  # one by one
            model.sample([prompt], [seed])
        (decided,) = handle.stats()["gates"]
    assert decided["passed"] > 0 and decided["passed"] + decided["refused"] == 3 * 5
    inner = sum(m for name, m in table.component_macs.items() if ".0" not in name)
    assert macs * table.teacher_macs == pytest.approx(
        table.teacher_macs - inner * (6 - sum(decided["computed"])), abs=1
    )
    assert evaluator.block_executions - before == pytest.approx(3 * macs * table.teacher_macs / table.block_macs)
    assert table.macs(schedule) == table.teacher_macs  # the worst case
    latents = evaluator.latents(schedule)
    runs = evaluator.runs
    again = evaluator.values(schedule)
    assert latents.shape[0] == 3 and again["macs"] == [macs] and evaluator.runs == runs
    assert Evaluator.costs_of(evaluator, to_schedule(model, {})) is table


def test_solvers_are_fitted_under_gates() -> None:
    model = tiny_model()
    prompts, seeds = ["red apple", "blue boat"], [0, 1]
    fitter = Fitter(model, prompts, seeds)
    rule = {"signal": "first_block_residual", "threshold": 0.3}
    schedule = fitter.fit(to_schedule(model, {"gates": [gate("transformer_blocks.[1-2]", "C G*5", **rule)]}))
    assert schedule.gates and "coefficients" in schedule.sampler
    with schedule.apply(model.pipe):
        assert torch.allclose(model.sample(prompts, seeds), fitter.latents[schedule.digest], atol=1e-4)


def test_what_cannot_be_shared_is_refused() -> None:
    pipe = pipelines.pixart()
    schedule = gated(pipe, gate("transformer_blocks.[1-2]", signal="first_block_residual", threshold=0.1))
    with pytest.raises(ValueError, match=r"transformer_blocks.\[1-2\] is a group whose gate depends on the prompts"):
        step_keys(schedule)
    with pytest.raises(ScheduleError, match="step by step .* know no groups"):
        apply_document(schedule.document, pipe, keep={})
    assert pipelines.traces(pipe.transformer) == []


# Mistakes

RESIDUAL = {"signal": "first_block_residual", "threshold": 0.1}


@pytest.mark.parametrize(
    ("gates", "told"),
    [
        ([gate("transformer_blocks.[0,2]", "CRCRCR")], "are not blocks that follow each other; give a run of blocks"),
        (
            [gate("transformer_blocks.1:ff", "CRCRCR")],
            r"gates\[0\]: transformer_blocks.1:ff is a component; a group is made of blocks",
        ),
        ([gate("denoiser", "CRCRCR")], "denoiser is a denoiser; a group is made of blocks"),
        ([gate("transformer_blocks.7", "CRCRCR")], "matches no node"),
        ([gate("transformer_blocks.1", "CRCRC")], r"gates\[0\].actions: 5 actions for 6 steps"),
        ([gate("transformer_blocks.1", "CSCRCR")], "'SCRCR' is not an action; use C, R, G, F1..F9"),
        (
            [gate("transformer_blocks.1", "CF1CRCR")],
            "at step 1 is F1, which reads 2 .*, but 1 certainly came .* put 1 more C",
        ),
        ([gate("transformer_blocks.1", "CGF1CRC", **RESIDUAL)], "at step 2 is F1, .* 1 certainly came before"),
        (
            [gate("transformer_blocks.1", "CGGGGG")],
            r"gates\[0\]: the gate decides at steps G; give signal, .* and threshold",
        ),
        ([gate("transformer_blocks.1", "CGGGGG", signal="model_input")], "give signal, .* and threshold"),
        ([gate("transformer_blocks.1", "C G*5", signal="model_input", threshold=[0.1])], "1 entries; 6 steps need 6"),
        ([gate("transformer_blocks.1", "C G*5", signal="table", threshold=0.1)], "table and signal 'table' belong"),
        ([gate("transformer_blocks.1", "C G*5", signal="table", threshold=0.1, table=[1.0])], "table has 1 entries"),
        ([gate("transformer_blocks.[0-1]", **RESIDUAL)], "begins with transformer_blocks.0, the first block; signal"),
        ([gate("transformer_blocks.1", "G*6", most=2, **RESIDUAL)], "most is 2, but at step 0 .* put 1 more C"),
        (
            [gate("transformer_blocks.1", **RESIDUAL), gate("transformer_blocks.[1-2]", "CRCRCR")],
            r"gates transformer_blocks.1 and transformer_blocks.\[1-2\] share transformer_blocks.1",
        ),
        (
            [gate("transformer_blocks.1", "CRCRCR"), gate("transformer_blocks.2", **RESIDUAL)],
            "signal of transformer_blocks.2 reads transformer_blocks.1, which the gate of",
        ),
        ([gate("transformer_blocks.1", then="S", **RESIDUAL)], r"gates.0.then is 'S'"),
        ([gate("transformer_blocks.1", signal="magic", threshold=1.0)], "gates.0.signal is 'magic'"),
        ([gate("transformer_blocks.1", signal="model_input", threshold=-1.0)], "gates.0.threshold.* is '-1.0'"),
        ([gate("transformer_blocks.1", max_run=0, **RESIDUAL)], "gates.0.max_run is '0'"),
    ],
)
def test_mistakes_are_named(gates: list[dict[str, Any]], told: str) -> None:
    with pytest.raises(ScheduleError, match=told):
        gated(pipelines.pixart(), *gates)


@pytest.mark.parametrize(
    ("rules", "told"),
    [
        (
            [["transformer_blocks.2:ff", "CRCCCC"]],
            "the plan has a rule for transformer_blocks.2:ff, and the gate decides",
        ),
        ([["transformer_blocks.2", "CRCCCC"]], "rule for transformer_blocks.2, and the gate"),
        ([["transformer_blocks", "CRCCCC"]], "rule for transformer_blocks, and the gate"),
        ([["transformer_blocks.0", "CCCRCC"]], r"reads transformer_blocks.0, which the plan does not .* step 3 \(R\)"),
    ],
)
def test_conflicts_with_the_plan_are_named(rules: list[list[str]], told: str) -> None:
    with pytest.raises(ScheduleError, match=told):
        gated(pipelines.pixart(), gate("transformer_blocks.[1-2]", **RESIDUAL), rules=rules)
    gated(
        pipelines.pixart(), gate("transformer_blocks.[1-2]", **RESIDUAL), rules=[["transformer_blocks.0:ff", "CRCRCR"]]
    )


def test_blocks_of_a_unet_make_no_group() -> None:
    pipe = denoiser_loops.pipeline("UNet2DConditionModel")
    with pytest.raises(ScheduleError, match="the blocks of down_blocks are not a chain"):
        gated(pipe, gate("down_blocks.0", "CRCRCR"))
    content = pipelines.content(pipe, [["down_blocks.0", "CRCRCR"]])
    content["plan"]["value"] = "residual"
    with pytest.raises(ScheduleError, match="plan.value is 'residual', but what enters down_blocks.0 is not what it"):
        Schedule.from_dict(content)


def test_steps_are_needed() -> None:
    pipe = pipelines.pixart()
    with pytest.raises(ScheduleError, match="steps is missing; plan, gates"):
        gated(pipe, gate("transformer_blocks.1", "CRCRCR"), steps=None)


def test_a_forecast_of_a_gate_is_on_the_plan_s_axis() -> None:
    pipe = pipelines.pixart()
    results = []
    for axis in ("index", "logsnr"):
        content = pipelines.content(pipe, gates=[gate("transformer_blocks.[1-2]", "CCCF2F2C")])
        schedule = Schedule.from_dict(content | {"plan": {"axis": axis, "rules": []}})
        assert Schedule.from_dict(schedule.to_dict()) == schedule
        with schedule.apply(pipe):
            results.append((pipelines.run(pipe), schedule.digest))
    assert not torch.equal(results[0][0], results[1][0]) and results[0][1] != results[1][1]


def test_a_polynomial_rescales_highest_power_first() -> None:
    pipe = denoiser_loops.pipeline(PIXART)
    rule = {"signal": "model_input"}
    _, every = by_hand(PIXART, True, "CGGGGG", rule | {"threshold": 0.0})
    squares = sorted(2 * c * c + 3 for c in every.changes)
    for at, passed in ((squares[0] - 1e-4, 0), (squares[0] + 1e-4, 1)):
        rules = gate(REST[PIXART], "C G*5", **rule, poly=[2.0, 0.0, 3.0], threshold=at)
        with gated(pipe, rules).apply(pipe) as handle:
            denoiser_loops.run(pipe)
            assert bool(handle.stats()["gates"][0]["passed"]) == bool(passed)


def test_no_more_than_max_run_steps_in_a_row_pass() -> None:
    pipe = denoiser_loops.pipeline(FLUX)
    rule = {"signal": "modulated_input", "threshold": 1e9, "max_run": 2}
    with gated(pipe, gate(ALL[FLUX], "C G*8", **rule), steps=9).apply(pipe) as handle:
        denoiser_loops.run(pipe, 9)
        assert handle.stats()["gates"][0]["computed"] == [1, 0, 0, 1, 0, 0, 1, 0, 0]
