"""One denoiser of random weights for every class with a contract: two heads, width 16, 8x8 latents, text of width 16.

`config` overrides any argument of the class, so a test says only what it is about: `pixart(num_layers=1)`.
"""

from typing import Any

from diffusers import (
    DiTTransformer2DModel,
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    WanTransformer3DModel,
)

WIDTH = 16
HEADS = {"num_attention_heads": 2, "attention_head_dim": WIDTH // 2}


def pixart(**config: Any) -> PixArtTransformer2DModel:
    """Three blocks; `out_channels=8` for a model that predicts its variance too."""
    small = {
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 3,
        "cross_attention_dim": WIDTH,
        "caption_channels": WIDTH,
        "sample_size": 8,
        "patch_size": 2,
        "use_additional_conditions": False,
    }
    return PixArtTransformer2DModel(**(HEADS | small | config))


def dit(**config: Any) -> DiTTransformer2DModel:
    """Two blocks, 1000 classes and the empty one, a predicted variance."""
    small = {
        "in_channels": 4,
        "out_channels": 8,
        "num_layers": 2,
        "sample_size": 8,
        "patch_size": 2,
        "num_embeds_ada_norm": 1000,
        "norm_num_groups": 1,
    }
    return DiTTransformer2DModel(**(HEADS | small | config))


def flux(**config: Any) -> FluxTransformer2DModel:
    """One double and two single blocks."""
    small = {
        "patch_size": 1,
        "in_channels": 16,
        "num_layers": 1,
        "num_single_layers": 2,
        "joint_attention_dim": WIDTH,
        "pooled_projection_dim": WIDTH,
        "guidance_embeds": True,
        "axes_dims_rope": (4, 2, 2),
    }
    return FluxTransformer2DModel(**(HEADS | small | config))


def sd3(**config: Any) -> SD3Transformer2DModel:
    """Two blocks, the first with a second attention of the picture alone, as SD 3.5 medium has."""
    small = {
        "sample_size": 8,
        "patch_size": 2,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 2,
        "joint_attention_dim": WIDTH,
        "caption_projection_dim": WIDTH,
        "pooled_projection_dim": WIDTH,
        "pos_embed_max_size": 8,
        "dual_attention_layers": (0,),
    }
    return SD3Transformer2DModel(**(HEADS | small | config))


def wan(**config: Any) -> WanTransformer3DModel:
    """Two blocks, for latents of any number of frames."""
    small = {
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "in_channels": 4,
        "out_channels": 4,
        "text_dim": WIDTH,
        "freq_dim": WIDTH,
        "ffn_dim": 32,
        "num_layers": 2,
        "rope_max_seq_len": 32,
    }
    return WanTransformer3DModel(**(small | config))


def unet(**config: Any) -> UNet2DConditionModel:
    """Two resolutions, attention at the finer one."""
    small = {
        "sample_size": 8,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "cross_attention_dim": WIDTH,
        "attention_head_dim": 2,
        "norm_num_groups": 8,
    }
    return UNet2DConditionModel(**(small | config))
