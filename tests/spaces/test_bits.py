"""Genes for bits: how layers are tied, what a row says, and what is refused."""

import numpy as np
import pytest

from search import Schedule
from search.profile.target import Target
from search.schedule.model.nodes import Tree
from search.spaces.bits import TIME, BitsSpace
from search.testing.models import tiny_model
from search.testing.space_contract import SpaceContract


class TestDefault(SpaceContract):
    @pytest.fixture
    def space(self):
        return BitsSpace()


class TestWeightsOnly(SpaceContract):
    @pytest.fixture
    def space(self):
        return BitsSpace(
            ("w8", "w6", "w5", "w4g128", "w3g128", "w2g64"), protect=("transformer_blocks.0.*",), elide=False
        )


class TestTablesOnly(SpaceContract):
    @pytest.fixture
    def space(self):
        return BitsSpace(formats=())


TARGET = tiny_model().target  # 3 blocks of width 16
B1 = "transformer_blocks.1."


def bits(space: BitsSpace, x: np.ndarray, target: Target = TARGET):
    return Schedule.from_dict(target.schedule(space.decode(x, target))).bits


def row(space: BitsSpace, target: Target = TARGET, **levels: int) -> np.ndarray:
    names = [g.name for g in space.genes(target)]
    x = np.zeros(len(names), dtype=int)
    for name, level in levels.items():
        x[names.index(name)] = level
    return x


def test_layers_of_one_input_are_tied_and_blocks_are_groups():
    genes = BitsSpace().genes(TARGET)
    names = [g.name for g in genes if g.group == "block 1"]
    assert names == [
        B1 + "attn1.to_q+to_k+to_v",
        B1 + "attn1.to_out.0",
        B1 + "attn2.to_q",
        B1 + "attn2.to_k+to_v",
        B1 + "attn2.to_out.0",
        B1 + "ff.net.0.proj",
        B1 + "ff.net.2",
    ]
    assert len(genes) == 3 * 7 + 1
    assert [(g.name, g.levels, g.group) for g in genes[-1:]] == [(TIME, 2, TIME)]
    assert all(g.levels == 4 and g.ordered for g in genes[:-1])


def test_every_layer_in_blocks_has_one_gene_and_none_outside():
    names = [name for layers in BitsSpace().groups(TARGET).values() for name in layers]
    assert sorted(names) == sorted(n for n in TARGET.layers if n.startswith("transformer_blocks."))
    assert not {"proj_out", "caption_projection.linear_1", "adaln_single.linear"} & set(names)


def test_queries_of_another_width_are_apart():
    layers = {f"{B1}attn1.to_{k}": (16, 16 if k == "q" else 24) for k in "qkv"}
    target = Target("two widths", TARGET.tree, 6, layers=layers)
    assert list(BitsSpace().groups(target)) == [B1 + "attn1.to_q", B1 + "attn1.to_k+to_v"]


def test_a_row_by_hand():
    space = BitsSpace()
    x = row(space, **{B1 + "attn2.to_k+to_v": 2, B1 + "ff.net.2": 1, TIME: 1})
    found = {name: form.model_dump(exclude_defaults=True) for name, form in bits(space, x).items()}
    assert found == {
        B1 + "attn2.to_k": {"weight": 4, "group": 16, "activation": 8},  # of 16 inputs: 128 is no group of them
        B1 + "attn2.to_v": {"weight": 4, "group": 16, "activation": 8},
        B1 + "ff.net.2": {"weight": 8, "activation": 8},
        "adaln_single.emb.timestep_embedder.linear_1": {"elided": True},
        "adaln_single.emb.timestep_embedder.linear_2": {"elided": True},
        "adaln_single.linear": {"elided": True},
    }
    assert set(space.decode(x, TARGET)["bits"]["formats"]) == {"w4g16a8d", "w8a8d", "elided"}


def test_protected_layers_have_no_gene():
    groups = BitsSpace(protect=("transformer_blocks.[02].*", "*.ff.*")).groups(TARGET)
    assert len(groups) == 5
    assert all(name.startswith(B1) for name in groups)


def test_presets_by_hand():
    space = BitsSpace(("w8", "w8a8d", "w4g128", "w4a8d"))
    presets = space.presets(TARGET)
    mixed = "MixDQ-like: text and ff W4, rest W8"
    assert list(presets) == ["W8", "W8A8", "W4", "W4A8", mixed, "time embedding tabulated"]
    assert set(presets["W4A8"][:-1]) == {4}
    assert presets["W4A8"][-1] == 0
    found = bits(space, presets[mixed])
    assert {name: form.weight for name, form in found.items() if name.startswith(B1)} == (
        {f"{B1}attn1.{n}": 8 for n in ("to_q", "to_k", "to_v", "to_out.0")}
        | {f"{B1}attn2.{n}": 4 for n in ("to_q", "to_k", "to_v", "to_out.0")}
        | {f"{B1}ff.net.0.proj": 4, f"{B1}ff.net.2": 4}
    )
    assert {form.activation for form in found.values()} == {None}
    assert mixed not in BitsSpace(("w8", "w6")).presets(TARGET)


def test_genes_do_not_know_the_steps():
    space = BitsSpace()
    assert len(space.genes(tiny_model(steps=1).target)) == len(space.genes(TARGET))
    x = row(space, **{B1 + "ff.net.2": 2})
    assert space.decode(x, tiny_model(steps=2).target) == space.decode(x, TARGET)


def test_actions_per_step_say_nothing_about_layers():
    assert BitsSpace().encode({"denoiser": list("CRCRCR")}, TARGET) is None


def test_dit_has_genes_for_its_modulation_and_tables_for_its_time_embedders():
    layers = {"proj_out_1": (32, 16)}
    for b in range(2):
        layers[f"transformer_blocks.{b}.norm1.emb.timestep_embedder.linear_1"] = (16, 256)
        layers[f"transformer_blocks.{b}.norm1.linear"] = (96, 16)
        layers[f"transformer_blocks.{b}.ff.net.2"] = (16, 64)
    target = Target("dit", Tree("DiTTransformer2DModel", {"transformer_blocks": 2}), 6, layers=layers)
    names = [g.name for g in BitsSpace().genes(target)]
    assert names == [f"transformer_blocks.{b}.{n}" for b in (0, 1) for n in ("norm1.linear", "ff.net.2")] + [TIME]


def test_wrong_arguments_say_what_to_type():
    with pytest.raises(ValueError, match=r"formats has 'w7'; choose from w8, w8a8d, .*space.bits.formats=\[w8a8d"):
        BitsSpace(("w7",))
    with pytest.raises(ValueError, match="formats has 'elided'; choose from w8"):
        BitsSpace(("elided",))
    with pytest.raises(ValueError, match=r"do not fall from most to least bits; use space.bits.formats=\[w8,w4g128\]"):
        BitsSpace(("w4g128", "w8"))
    with pytest.raises(ValueError, match=r"law chooses .*, and none of w8a8d has one for all steps; type .*=\[w8a8s"):
        BitsSpace(("w8a8d",), law=True)
    with pytest.raises(ValueError, match=r"use space.bits.formats=\[w8\]"):
        BitsSpace(("w8", "w8"))
    with pytest.raises(ValueError, match=r"protect has 'blocks.0', which matches none of \d+ layers; they are called"):
        BitsSpace(protect=("blocks.0",)).genes(TARGET)
    with pytest.raises(ValueError, match=r"no genes on this PixArt.*space.bits.formats=\[w8a8d\]"):
        BitsSpace(formats=(), elide=False).genes(TARGET)


def test_lists_of_a_config_become_tuples():
    assert BitsSpace(["w8"], ["*.ff.*"]) == BitsSpace(("w8",), ("*.ff.*",))  # type: ignore[arg-type]
    assert BitsSpace("w8").formats == ("w8",)  # type: ignore[arg-type]
