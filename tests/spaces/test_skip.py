"""The skip space: blocks or components left out of a step."""

import numpy as np
import pytest

from search import Schedule
from search.spaces.skip import SkipSpace
from search.testing.models import tiny_family, tiny_model
from search.testing.space_contract import SpaceContract

TARGET = tiny_model().target  # 3 blocks of 3 components, 6 steps


class TestBlock(SpaceContract):
    @pytest.fixture
    def space(self):
        return SkipSpace()


class TestComponent(SpaceContract):
    @pytest.fixture
    def space(self):
        return SkipSpace("component")


class TestComponentsOfAUNet(SpaceContract):
    """Resnets cannot be left out: only what adds to its input, or passes it on, has genes."""

    @staticmethod
    def make_model():
        return tiny_family("sd", steps=4)

    @pytest.fixture
    def space(self):
        return SkipSpace("component")

    def test_every_gene_is_of_a_node_that_can_be_skipped(self, space, target):
        nodes = {gene.name.removeprefix("skip ").partition("@")[0] for gene in space.genes(target)}
        assert nodes and not [name for name in nodes if "resnets" in name]


def test_blocks_of_a_unet_cannot_be_skipped():
    message = "space=skip: no block of UNet2DConditionModel can be skipped; type space.skip.granularity=component"
    with pytest.raises(ValueError, match=message):
        SkipSpace().genes(tiny_family("sd", steps=4).target)


def test_a_gene_skips_its_block_at_its_step():
    space = SkipSpace()
    names = [g.name for g in space.genes(TARGET)]
    x = np.zeros(len(names), dtype=int)
    x[names.index("skip transformer_blocks.1@4")] = 1
    plan = Schedule.from_dict(TARGET.schedule(space.decode(x, TARGET))).plan
    assert plan.tokens["transformer_blocks.1"] == tuple("CCCCSC")
    assert plan.planned() == ["transformer_blocks.1"]


def test_genes_follow_the_steps_when_these_move():
    parts = {"steps": 3, "sampler": {**TARGET.sampler}}
    parts["sampler"]["timesteps"] = [TARGET.sampler["timesteps"][i] for i in (0, 3, 5)]
    parts["sampler"]["sigmas"] = [TARGET.sampler["sigmas"][i] for i in (0, 3, 5, 6)]
    moved = TARGET.on(parts)
    assert moved.at == (0, 3, 5)
    space = SkipSpace()
    x = np.zeros(18, dtype=int)
    x[3 * 3] = 1  # block 0 at the teacher's step 3
    assert space.decode(x, moved)["plan"]["rules"] == [["transformer_blocks.0", "CSC"]]


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="granularity 'x' is unknown; choose from block, component"):
        SkipSpace("x")
