"""The guidance space: branches and scales of each step as genes, and the published rules."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from search import Schedule
from search.schedule.model.nodes import Tree
from search.spaces.cache import CacheSpace
from search.spaces.guidance import GuidanceSpace
from search.spaces.joint import JointSpace
from search.testing.models import tiny_family, tiny_model
from search.testing.space_contract import SpaceContract


class TestAll(SpaceContract):
    @pytest.fixture
    def space(self):
        return GuidanceSpace()


class TestBranchesAlone(SpaceContract):
    @pytest.fixture
    def space(self):
        return GuidanceSpace(scales=[], branches=["R", "O"])


class TestScalesAlone(SpaceContract):
    @pytest.fixture
    def space(self):
        return GuidanceSpace(scales=[0, 2], branches=[])


TARGET = tiny_model().target  # 6 steps, guidance scale 4


def row(space: GuidanceSpace, **levels: list[int]) -> np.ndarray:
    names = [g.name for g in space.genes(TARGET)]
    x = np.zeros(len(names), dtype=int)
    for kind, values in levels.items():
        for t, value in enumerate(values):
            x[names.index(f"{kind}@{t}")] = value
    return x


def test_genes_of_a_step_are_one_group():
    genes = GuidanceSpace().genes(TARGET)
    assert [(g.name, g.levels, g.group) for g in genes[2:4]] == [("branch@1", 5, "step 1"), ("scale@1", 5, "step 1")]
    assert len(genes) == 12 and not any(g.ordered for g in genes)


def test_decode_by_hand():
    space = GuidanceSpace(scales=[0.5, 1.5])
    x = row(space, branch=[0, 1, 2, 3, 0, 0], scale=[1, 2, 2, 1, 0, 0])
    # a scale below O is dead
    assert space.decode(x, TARGET) == {"guidance": {"call": 4.0, "scale": [2, 4, 6, 2, 4, 4], "branch": "CORMCC"}}
    assert space.decode(row(space, scale=[0, 1, 0, 0, 0, 0]), TARGET)["guidance"].keys() == {"call", "scale"}
    assert space.decode(row(space, branch=[0, 1, 0, 0, 0, 0]), TARGET)["guidance"].keys() == {"call", "branch"}


def test_reuse_before_both_halves_ran_computes_them():
    space = GuidanceSpace()
    decoded = space.decode(row(space, branch=[2, 2, 1, 2, 0, 2]), TARGET)
    assert decoded["guidance"]["branch"] == "CRORCR"
    assert space.decode(row(space, branch=[1, 3, 2, 2, 2, 2]), TARGET)["guidance"]["branch"] == "OMCRRR"
    assert space.decode(row(space, branch=[2, 0, 0, 0, 0, 0]), TARGET) == {}
    assert space.decode(row(space, branch=[4, 0, 0, 0, 0, 0]), TARGET) == {}


def on(timesteps: list[float], training: int = 1000):
    sigmas = [t / training for t in timesteps] + [0.0]
    config = {**TARGET.sampler["config"], "num_train_timesteps": training}
    sampler = {**TARGET.sampler, "config": config, "timesteps": timesteps, "sigmas": sigmas}
    return replace(TARGET, steps=len(timesteps), sampler=sampler)


@pytest.mark.parametrize("training", [1000, 100])
def test_the_weights_of_an_approximation_are_fastercaches(training):
    """1.1 times more at every step A since both halves ran: low frequencies in (99, 901), high ones in (-1, 301)."""
    space, target = GuidanceSpace(scales=[]), on([t * training / 1000 for t in (950, 900, 600, 300, 200, 99)], training)
    weights = space.decode(np.array([0, 4, 4, 4, 0, 4]), target)["guidance"]["approximate"]
    assert weights["low"] == pytest.approx([1, 1.1, 1.1**2, 1.1**3, 1, 1])
    assert weights["high"] == pytest.approx([1, 1, 1, 1.1, 1, 1.1])
    assert weights["radius"] == 0.2
    weights = space.decode(np.array([0, 4, 1, 4, 2, 4]), target)["guidance"]["approximate"]  # only A counts
    assert weights["low"] == pytest.approx([1, 1.1, 1, 1.1**2, 1, 1.1**2])
    plain = GuidanceSpace(scales=[], gain=1).decode(np.array([0, 4, 4, 4, 0, 4]), target)
    assert Schedule.from_dict(target.schedule(plain)).to_dict()["guidance"] == {
        "call": 4.0,
        "branch": "CAAACA",
        "approximate": {"low": 1.0, "high": 1.0},
    }


def test_fastercache_runs_both_halves_every_5th_step_below_timestep_641():
    target = on([1000 - 50 * t for t in range(20)])
    space = GuidanceSpace()
    branch = space.decode(space.presets(target)["FasterCache"], target)["guidance"]["branch"]
    assert branch == "CCCCCCCC" + "AACAAAACAAAA"


def test_joint_puts_the_parts_of_one_rule_together():
    space, target = JointSpace([GuidanceSpace(), CacheSpace()]), on([1000 - 50 * t for t in range(20)])
    presets = space.presets(target)
    parts = space.decode(presets["T-GATE m=8"], target)
    assert parts["guidance"] == {"call": 4.0, "branch": "C" * 8 + "O" * 12}
    tokens = Schedule.from_dict(target.schedule(parts)).plan.tokens
    assert {tokens[f"transformer_blocks.{i}:attn2"] for i in range(3)} == {tuple("C" * 8 + "R" * 12)}
    assert {"".join(t) for name, t in tokens.items() if ":attn2" not in name} == {"C" * 20}
    faster = space.decode(presets["FasterCache"], target)
    assert faster["guidance"]["branch"].count("A") == 10 and "F1" in faster["plan"]["rules"][0][1]
    alone = set(GuidanceSpace().presets(target)) | set(CacheSpace().presets(target))
    assert set(presets) == alone and {"T-GATE m=8", "T-GATE m=12", "FORA N=2", "FasterCache"} < alone
    for x in presets.values():
        assert space.decode(x, target) != {}


@pytest.mark.slow
def test_a_unet_is_guided_as_well():
    model = tiny_family("sd", steps=6)
    space = GuidanceSpace()
    for name, x in space.presets(model.target).items():
        with Schedule.from_dict(model.target.schedule(space.decode(x, model.target))).apply(model.pipe):
            assert torch.isfinite(model.sample(["red apple"], [0])).all(), name


def test_presets_by_hand():
    space = GuidanceSpace()
    decoded = {n: space.decode(x, TARGET)["guidance"]["branch"] for n, x in space.presets(TARGET).items()}
    assert decoded == {
        "CFG off in the last 25 %": "CCCCOO",
        "CFG off in the last 50 %": "CCCOOO",
        "guidance in the middle half": "OCCCCO",
        "CFG reuse every 2nd step": "CRCRCR",
        "FasterCache": "CCCCAC",  # the others of its steps lie above timestep 641
        "T-GATE m=2": "CCOOOO",
        "T-GATE m=4": "CCCCOO",
    }
    assert list(GuidanceSpace(branches=["R"]).presets(TARGET)) == ["CFG reuse every 2nd step"]
    assert GuidanceSpace(branches=[]).presets(TARGET) == {}


def test_genes_follow_the_step_where_the_grid_has_moved():
    sampler = dict(TARGET.sampler)
    fewer = {**sampler, "timesteps": sampler["timesteps"][::2], "sigmas": [*sampler["sigmas"][:-1:2], 0.0]}
    moved = TARGET.on({"steps": 3, "sampler": fewer})
    assert moved.at == (0, 2, 4)
    space = GuidanceSpace(scales=[0.5])
    parts = space.decode(row(space, branch=[0, 3, 1, 3, 2, 3], scale=[1, 0, 0, 0, 1, 1]), moved)
    assert parts == {"guidance": {"call": 4.0, "scale": [2, 4, 2], "branch": "COR"}}
    assert Schedule.from_dict(moved.schedule(parts)).steps == 3


def test_encode_says_none():
    assert GuidanceSpace().encode({"denoiser": list("CRCRCR")}, TARGET) is None


def test_what_does_not_fit_says_what_to_type():
    with pytest.raises(ValueError, match=r"runs without guidance \(model.guidance_scale=1\); .*model.guidance_scale=4"):
        GuidanceSpace().genes(replace(TARGET, guidance=1.0))
    wan = replace(TARGET, tree=Tree("WanTransformer3DModel", {"blocks": 2}))
    with pytest.raises(ValueError, match="a WanTransformer3DModel runs no two branches of guidance .*leave"):
        GuidanceSpace().genes(wan)
    dit = replace(TARGET, tree=Tree("DiTTransformer2DModel", {"transformer_blocks": 2}))
    with pytest.raises(ValueError, match=r"has no text states to merge.*space.guidance.branches=\[O,R\]"):
        GuidanceSpace(branches=["M"]).genes(dit)
    assert {gene.levels for gene in GuidanceSpace(scales=[]).genes(dit)} == {4}  # all but M
    assert GuidanceSpace(branches=["O", "R"]).genes(dit)
    with pytest.raises(ValueError, match="branches has 'C'; choose from O, R, M, A"):
        GuidanceSpace(branches=["C"])
    with pytest.raises(ValueError, match="scales has 11; give multiples of the teacher's scale from 0 to 10"):
        GuidanceSpace(scales=[11])
    with pytest.raises(ValueError, match="scales has 1, the teacher's own"):
        GuidanceSpace(scales=[0.5, 1.0])
    with pytest.raises(ValueError, match=r"branches=\['O', 'O'\] names one twice"):
        GuidanceSpace(branches=["O", "O"])
    with pytest.raises(ValueError, match="gain is 3; give 0 to 2, for example space.guidance.gain=1.1"):
        GuidanceSpace(gain=3)
    with pytest.raises(ValueError, match="branches and scales are both empty"):
        GuidanceSpace(scales=[], branches=[])
