import numpy as np
import pytest

from search import Schedule
from search.schedule.nodes import ROOT
from search.spaces.cache import CacheSpace
from tests.models import tiny_model
from tests.space_contract import SpaceContract


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


TARGET = tiny_model().target  # 3 blocks, 6 steps


def plan(space: CacheSpace, x: np.ndarray):
    return Schedule.from_dict(TARGET.schedule(space.decode(x, TARGET))).plan.tokens


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
    with pytest.raises(ValueError, match="a cache needs at least 2 steps, model.steps is 1"):
        CacheSpace().genes(tiny_model(steps=1).target)
