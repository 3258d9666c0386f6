from dataclasses import replace

import numpy as np
import pytest

from search import Schedule
from search.schedule.nodes import Tree
from search.spaces.guidance import GuidanceSpace
from tests.models import tiny_model
from tests.space_contract import SpaceContract


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
    assert [(g.name, g.levels, g.group) for g in genes[2:4]] == [("branch@1", 4, "step 1"), ("scale@1", 5, "step 1")]
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


def test_presets_by_hand():
    space = GuidanceSpace()
    decoded = {n: space.decode(x, TARGET)["guidance"]["branch"] for n, x in space.presets(TARGET).items()}
    assert decoded == {
        "CFG off in the last 25 %": "CCCCOO",
        "CFG off in the last 50 %": "CCCOOO",
        "guidance in the middle half": "OCCCCO",
        "CFG reuse every 2nd step": "CRCRCR",
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
    dit = replace(TARGET, tree=Tree("DiTTransformer2DModel", {"transformer_blocks": 2}))
    with pytest.raises(ValueError, match=r"has no text states to merge.*space.guidance.branches=\[O,R\]"):
        GuidanceSpace().genes(dit)
    assert GuidanceSpace(branches=["O", "R"]).genes(dit)
    with pytest.raises(ValueError, match="branches has 'C'; choose from O, R, M"):
        GuidanceSpace(branches=["C"])
    with pytest.raises(ValueError, match="scales has 11; give multiples of the teacher's scale from 0 to 10"):
        GuidanceSpace(scales=[11])
    with pytest.raises(ValueError, match="scales has 1, the teacher's own"):
        GuidanceSpace(scales=[0.5, 1.0])
    with pytest.raises(ValueError, match=r"branches=\['O', 'O'\] names one twice"):
        GuidanceSpace(branches=["O", "O"])
    with pytest.raises(ValueError, match="branches and scales are both empty"):
        GuidanceSpace(scales=[], branches=[])
