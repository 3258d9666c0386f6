"""The architecture of PixArt-XL/2 at its real size, without weights: what a user with the checkpoint will meet."""

import pytest
import torch
from diffusers import PixArtTransformer2DModel

from search import Schedule
from search.calibration import count_costs
from search.schedule.apply import model_part
from search.schedule.nodes import Tree
from search.spaces.cache import CacheSpace
from search.target import Target

# sample size, tokens, caption length, micro-conditioning: PixArt-alpha 256 and 1024-MS, PixArt-Sigma 512
SIZES = {"alpha 256": (32, 256, 120, False), "alpha 1024": (128, 4096, 120, True), "sigma 512": (64, 1024, 300, False)}


def denoiser(sample_size: int, micro: bool) -> PixArtTransformer2DModel:
    with torch.device("meta"):
        return PixArtTransformer2DModel(
            num_attention_heads=16,
            attention_head_dim=72,
            in_channels=4,
            out_channels=8,
            num_layers=28,
            cross_attention_dim=1152,
            sample_size=sample_size,
            patch_size=2,
            caption_channels=4096,
            use_additional_conditions=micro,
        ).to(torch.float16)


def call(model: PixArtTransformer2DModel, tokens: int, sample_size: int, micro: bool):
    half = {"device": "meta", "dtype": torch.float16}
    size = {"resolution": torch.empty(2, 2, **half), "aspect_ratio": torch.empty(2, 1, **half)}
    return model(
        torch.empty(2, 4, sample_size, sample_size, **half),
        encoder_hidden_states=torch.empty(2, tokens, 4096, **half),
        encoder_attention_mask=torch.empty(2, tokens, **half),
        timestep=torch.empty(2, device="meta"),
        added_cond_kwargs=size if micro else {"resolution": None, "aspect_ratio": None},
        return_dict=False,
    )


@pytest.mark.parametrize("name", SIZES)
def test_nodes_shapes_macs_and_memory(name):
    sample_size, tokens, captions, micro = SIZES[name]
    model = denoiser(sample_size, micro)
    tree = Tree.of(model)
    assert tree.stacks == {"transformer_blocks": 28}
    assert len(tree.nodes) == 2 + 28 * 4
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(0.61e9, rel=0.02)
    costs = count_costs(model, tree, 20, lambda: call(model, captions, sample_size, micro))
    assert set(costs.kinds) == {"attn1", "attn2", "ff"} and set(costs.kinds.values()) == {28}
    value = 2 * tokens * 1152 * 2  # CFG halves x tokens x width x bytes
    assert {costs.value_bytes[n] for n in costs.component_macs} == {value}
    assert costs.all_bytes == 84 * value
    assert costs.value_bytes["denoiser"] == 2 * 8 * sample_size**2 * 2
    feed_forward = costs.component_macs["transformer_blocks.0:ff"]
    assert feed_forward == 2 * tokens * 1152 * 4608 * 2
    if name == "alpha 256":  # 5.8 TMACs for 20 steps with guidance follow from ECAD's published latency fit
        assert costs.teacher_macs == pytest.approx(5.8e12, rel=0.05)


def test_the_default_space_has_few_genes_and_says_fora():
    model = denoiser(32, False)
    target = Target("xl", Tree.of(model), 20, model_part(model), {})
    space = CacheSpace()
    assert len(space.genes(target)) == 19 * 8
    parts = space.decode(space.presets(target)["FORA N=3"], target)
    data = {k: v for k, v in target.schedule(parts).items() if k != "sampler"}
    schedule = Schedule.from_dict(data)
    assert [rule[0] for rule in schedule.to_dict()["plan"]["rules"]] == [
        "transformer_blocks.*:attn1",
        "transformer_blocks.*:attn2",
        "transformer_blocks.*:ff",
    ]
