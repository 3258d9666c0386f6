"""Public checkpoints' architectures on the meta device: nodes, MACs and bytes of kept values, without weights.

MACs are compared exactly with an independent count: linear layers and convolutions by their shapes, and the two
products of each attention, queries x keys x width, by hand. Where a paper gives a number, that too.
"""

from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
import torch
from diffusers import (
    DiTTransformer2DModel,
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    WanTransformer3DModel,
)
from torch import nn

from search.profile.costs import Costs
from search.profile.count import count_costs
from search.schedule.model.nodes import Tree

BYTES = 2  # everything runs in bfloat16


@dataclass(frozen=True)
class Size:
    """One architecture: its configuration as far as it differs from the class's defaults, and what it should be.

    `attention` lists (layers, queries, keys, width); `kinds` how many components of each kind there are, the
    indices of lists left out; `values` are elements of all kept values of one picture in one branch.
    """

    model: type
    config: dict[str, Any]
    inputs: dict[str, tuple[int, ...]]
    parameters: float  # millions
    kinds: dict[str, int]
    attention: list[tuple[int, int, int, int]]
    values: int
    published: float | None = None  # GMACs
    whole: tuple[str, ...] = ()  # inputs that are integers
    added: dict[str, tuple[int, ...]] = field(default_factory=dict)


def dit(side: int, published: float) -> Size:
    """DiT-XL/2; GFLOPs of arXiv:2212.09748, table 4, are multiply-adds."""
    tokens, width = (side // 2) ** 2, 1152
    return Size(
        DiTTransformer2DModel,
        {"num_layers": 28, "out_channels": 8, "sample_size": side, "num_embeds_ada_norm": 1000},
        {"hidden_states": (1, 4, side, side), "timestep": (1,), "class_labels": (1,)},
        749.8,  # 675 published: diffusers has the embeddings of time and class once in every block
        {"attn1": 28, "ff": 28},
        [(28, tokens, tokens, width)],
        56 * tokens * width,
        published,
        ("timestep", "class_labels"),
    )


def pixart() -> Size:
    tokens, width, words = 256, 1152, 120
    return Size(
        PixArtTransformer2DModel,
        {
            "caption_channels": 4096,
            "cross_attention_dim": width,
            "num_layers": 28,
            "out_channels": 8,
            "sample_size": 32,
        },
        {"hidden_states": (1, 4, 32, 32), "timestep": (1,), "encoder_hidden_states": (1, words, 4096)},
        611,
        {"attn1": 28, "attn2": 28, "ff": 28},
        [(28, tokens, tokens, width), (28, tokens, words, width)],
        84 * tokens * width,
        whole=("timestep",),
        added={"resolution": (), "aspect_ratio": ()},
    )


def unet_values(levels: list[tuple[int, int, int]], places: list[int]) -> int:
    """Elements of what resnets, attentions with their inner layers, and samplers give.

    `levels` are (width, resnets in the down block, transformer layers of each attention), `places` latents a level.
    """
    total = 0
    for i, ((width, resnets, layers), area) in enumerate(zip(levels, places, strict=True)):
        attention = 1 + 3 * layers if layers else 0
        total += (2 * resnets + 1) * (1 + attention) * width * area  # down, and up with one more
        if i + 1 < len(levels):
            total += width * places[i + 1] + levels[i + 1][0] * area  # down here, up from below
    deepest = next(layers for _, _, layers in reversed(levels) if layers)
    return total + (2 + 1 + 3 * deepest) * levels[-1][0] * places[-1]  # the middle


def stable_diffusion(side: int, words: int, heads: Any, parameters: float, **config: Any) -> Size:
    areas = [(side // 2**i) ** 2 for i in range(4)]
    widths = (320, 640, 1280, 1280)
    layers = [(5, areas[0], 320), (5, areas[1], 640), (5, areas[2], 1280), (1, areas[3], 1280)]
    return Size(
        UNet2DConditionModel,
        {"sample_size": side, "cross_attention_dim": words, "attention_head_dim": heads, **config},
        {"sample": (1, 4, side, side), "timestep": (), "encoder_hidden_states": (1, 77, words)},
        parameters,
        {"resnets": 22, "attentions": 16, "attn1": 16, "attn2": 16, "ff": 16, "downsamplers": 3, "upsamplers": 3},
        [(n, area, keys, width) for n, area, width in layers for keys in (area, 77)],
        unet_values([(w, 2, 1 if i < 3 else 0) for i, w in enumerate(widths)], areas),
        whole=("timestep",),
    )


def sdxl() -> Size:
    areas = [128**2, 64**2, 32**2]
    layers = [(4 + 6, areas[1], 640), (20 + 10 + 30, areas[2], 1280)]
    return Size(
        UNet2DConditionModel,
        {
            "sample_size": 128,
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "cross_attention_dim": 2048,
            "attention_head_dim": (5, 10, 20),
            "transformer_layers_per_block": (1, 2, 10),
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        {"sample": (1, 4, 128, 128), "timestep": (), "encoder_hidden_states": (1, 77, 2048)},
        2567.5,
        {"resnets": 17, "attentions": 11, "attn1": 70, "attn2": 70, "ff": 70, "downsamplers": 2, "upsamplers": 2},
        [(n, area, keys, width) for n, area, width in layers for keys in (area, 77)],
        unet_values([(320, 2, 0), (640, 2, 2), (1280, 2, 10)], areas),
        whole=("timestep",),
        added={"text_embeds": (1, 1280), "time_ids": (1, 6)},
    )


def flux() -> Size:
    """1024x1024 pixels and 512 words; 74.4 TFLOPs a step are 3719.5 for 50 steps (arXiv:2503.06923)."""
    tokens, words, width = 4096, 512, 3072
    both = tokens + words
    return Size(
        FluxTransformer2DModel,
        {"guidance_embeds": True},
        {
            "hidden_states": (1, tokens, 64),
            "timestep": (1,),
            "guidance": (1,),
            "pooled_projections": (1, 768),
            "encoder_hidden_states": (1, words, 4096),
            "txt_ids": (words, 3),
            "img_ids": (tokens, 3),
        },
        11901.4,
        {"attn": 19 + 38, "ff": 19, "ff_context": 19, "proj_mlp": 38, "proj_out": 38},
        [(57, both, both, width)],
        19 * 2 * both * width + 38 * (1 + 4 + 1) * both * width,
        3719.5e3 / 50 / 2,
    )


def sd3(parameters: float, dual: int = 0, **config: Any) -> Size:
    """1024x1024 pixels, 77 words of CLIP and 256 of T5. The last block leaves the text as it is."""
    tokens, words, width = 4096, 77 + 256, 1536
    both = tokens + words
    return Size(
        SD3Transformer2DModel,
        {
            "sample_size": 128,
            "num_layers": 24,
            "num_attention_heads": 24,
            "caption_projection_dim": width,
            "joint_attention_dim": 4096,
            "pooled_projection_dim": 2048,
            "pos_embed_max_size": 192,
            "dual_attention_layers": tuple(range(dual)),
            **config,
        },
        {
            "hidden_states": (1, 16, 128, 128),
            "timestep": (1,),
            "pooled_projections": (1, 2048),
            "encoder_hidden_states": (1, words, 4096),
        },
        parameters,
        {"attn": 24, "ff": 24, "ff_context": 23} | ({"attn2": dual} if dual else {}),
        [(24, both, both, width), (dual, tokens, tokens, width)],
        (24 * both + 24 * tokens + 23 * words + dual * tokens) * width,
    )


def wan(parameters: float, frames: int, height: int, width: int, channels: int, heads: int, hidden: int) -> Size:
    """One call, of one branch: latents [C, frames, h, w] in patches of 2x2, and 512 words."""
    tokens, words, dim = frames * height * width // 4, 512, 128 * heads
    return Size(
        WanTransformer3DModel,
        {
            "num_attention_heads": heads,
            "in_channels": channels,
            "out_channels": channels,
            "ffn_dim": hidden,
            "num_layers": 30,
        },
        {
            "hidden_states": (1, channels, frames, height, width),
            "timestep": (1,),
            "encoder_hidden_states": (1, words, 4096),
        },
        parameters,
        {"attn1": 30, "attn2": 30, "ffn": 30},
        [(30, tokens, tokens, dim), (30, tokens, words, dim)],
        90 * tokens * dim,
    )


SIZES = {
    "DiT-XL/2 256": lambda: dit(32, 118.64),
    "DiT-XL/2 512": lambda: dit(64, 524.60),
    "PixArt-XL 256": pixart,
    "SD 1.5": lambda: stable_diffusion(64, 768, 8, 859.5),
    "SD 2.1": lambda: stable_diffusion(96, 1024, (5, 10, 20, 20), 865.9, use_linear_projection=True),
    "SDXL": sdxl,
    "FLUX.1 dev": flux,
    "SD3 medium": lambda: sd3(2028.3),
    "SD3.5 medium": lambda: sd3(2243.2, 13, qk_norm="rms_norm", pos_embed_max_size=384),
    "Wan 2.1 1.3B": lambda: wan(1419.0, 21, 60, 104, 16, 12, 8960),
    "Wan 2.2 5B": lambda: wan(4999.8, 31, 44, 80, 48, 24, 14336),
}

FAST = ("PixArt-XL 256",)  # others take seconds to build
ALL = [pytest.param(name, marks=[] if name in FAST else [pytest.mark.slow]) for name in SIZES]


@cache
def counted(name: str) -> tuple[Size, nn.Module, Tree, Costs, int]:
    """The architecture, its tree and cost tables, and MACs of its linear layers and convolutions by their shapes."""
    size = SIZES[name]()
    by_shape = Counter()

    def multiply(module: Any, _: Any, output: torch.Tensor) -> None:
        by_shape["macs"] += output.numel() * module.weight[0].numel()

    with torch.device("meta"):
        denoiser = size.model(**size.config).eval()
        for parameter in denoiser.parameters():
            parameter.data = parameter.data.to(torch.bfloat16)
        given: dict[str, Any] = {k: _input(shape, k in size.whole) for k, shape in size.inputs.items()}
        if size.added:
            added = {k: _input(shape) if shape else None for k, shape in size.added.items()}
            given["added_cond_kwargs"] = added
    for module in denoiser.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d):
            module.register_forward_hook(multiply)
    tree = Tree.of(denoiser)
    return size, denoiser, tree, count_costs(denoiser, tree, 20, lambda: denoiser(**given)), by_shape["macs"]


def _input(shape: tuple[int, ...], whole: bool = False) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.int64 if whole else torch.bfloat16)


@pytest.mark.parametrize("name", ALL)
def test_the_nodes_are_those_of_the_public_checkpoint(name):
    size, denoiser, tree, _, _ = counted(name)
    assert sum(p.numel() for p in denoiser.parameters()) / 1e6 == pytest.approx(size.parameters, rel=1e-3)
    kinds = Counter()
    for node in tree:
        if node.kind == "component":
            kinds[[part for part in node.component.split(".") if not part.isdigit()][-1]] += 1
            assert tree.module(denoiser, node) is not None
    assert kinds == size.kinds


@pytest.mark.parametrize("name", ALL)
def test_macs_are_those_of_a_count_by_hand(name):
    size, _, tree, costs, by_shape = counted(name)
    attention = sum(2 * layers * queries * keys * width for layers, queries, keys, width in size.attention)
    assert costs.call_macs == by_shape + attention
    assert costs.teacher_macs == 20 * costs.call_macs
    assert all(macs > 0 for macs in costs.component_macs.values())
    if size.published:
        assert costs.call_macs / 1e9 == pytest.approx(size.published, rel=1e-3)


@pytest.mark.parametrize("name", ALL)
def test_bytes_of_all_kept_values_and_the_row_of_the_page(name):
    """What a cache runtime holds that keeps the output of every component: for one picture, in one branch."""
    from tests.models.public_sizes import PAGE, row_by_hand  # which reads this module

    size, denoiser, _, costs, _ = counted(name)
    assert costs.all_bytes == BYTES * size.values
    assert costs.weight_bytes == BYTES * sum(p.numel() for p in denoiser.parameters())
    assert row_by_hand(name) in PAGE.read_text(encoding="utf-8").splitlines()


@pytest.mark.slow
def test_the_figures_that_people_meet():
    """GB with both branches of guidance where there are two: what a card must have beside the weights."""
    held = {name: counted(name)[3].all_bytes / 1e9 for name in SIZES}
    assert 2 * held["DiT-XL/2 256"] == pytest.approx(0.066, abs=0.001)
    assert 2 * held["SD3 medium"] == pytest.approx(1.30, abs=0.01)
    assert held["FLUX.1 dev"] == pytest.approx(7.53, abs=0.01)  # 4.3 of them are proj_mlp's
    assert 2 * held["Wan 2.1 1.3B"] == pytest.approx(18.1, abs=0.1)
