"""Pipelines of random weights, small enough to search in a test, and their adapters."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLWan,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
    UMT5Config,
    UMT5EncoderModel,
)

from search.models.dit import DiT
from search.models.flux import Flux
from search.models.pipeline import Pipeline
from search.models.pixart import PixArt
from search.models.sd3 import StableDiffusion3
from search.models.stable_diffusion import StableDiffusion, StableDiffusionXL
from search.models.wan import Wan

WORDS = ("red", "apple", "blue", "boat", "style", "3d", "flat")
CLASSES = {0: "apple", 1: "boat, sailing boat", 2: "cat face"}
WIDTH, TOKENS = 16, 8


def save_tiny(folder: Path, blocks: int = 3, scheduler: Any = None) -> Path:
    """Write a PixArt pipeline of 8x8 latents, `blocks` blocks of width 16."""
    torch.manual_seed(0)
    words, text, vae = tokenizer(), t5(), autoencoder()
    transformer = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        num_layers=blocks,
        cross_attention_dim=WIDTH,
        sample_size=8,
        patch_size=2,
        caption_channels=WIDTH,
        use_additional_conditions=False,
    )
    scheduler = scheduler or flow_solver()
    PixArtAlphaPipeline(words, text, vae, transformer, scheduler).save_pretrained(folder)
    return folder


@cache
def tiny_folder() -> Path:
    return save_tiny(Path(mkdtemp()) / "tiny")


def tiny_model(steps: int = 6, **arguments: object) -> PixArt:
    """A fresh adapter; tests that change the pipeline do not meet each other."""
    return PixArt(path=tiny_folder(), steps=steps, max_sequence_length=TOKENS, **arguments)  # type: ignore[arg-type]


def lively(model: PixArt) -> PixArt:
    """Every action shows in the latents."""
    torch.manual_seed(0)
    for parameter in model.denoiser.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def stable_diffusion(scheduler: Any = None, **config: Any) -> StableDiffusionPipeline:
    """Two resolutions, T5 states with their mask; 16x16 pictures."""
    parts = autoencoder(), t5(), tokenizer(), unet(**config)
    parts[1].config.use_attention_mask = True
    scheduler = scheduler or DPMSolverMultistepScheduler(
        beta_schedule="scaled_linear", prediction_type="v_prediction", timestep_spacing="trailing", steps_offset=1
    )
    return StableDiffusionPipeline(*parts, scheduler, None, None, requires_safety_checker=False)


def stable_diffusion_xl() -> StableDiffusionXLPipeline:
    network = unet(
        cross_attention_dim=2 * WIDTH,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + WIDTH,
    )
    encoders = clip(CLIPTextModel), clip(CLIPTextModelWithProjection), tokenizer(), tokenizer()
    scheduler = EulerDiscreteScheduler(beta_schedule="scaled_linear", timestep_spacing="leading", steps_offset=1)
    return StableDiffusionXLPipeline(autoencoder(), *encoders, network, scheduler)


def dit() -> DiTPipeline:
    transformer = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=1000,
        norm_num_groups=1,
    )
    pipe = DiTPipeline(transformer, autoencoder(), DDIMScheduler())
    pipe.register_to_config(id2label=CLASSES)  # which save_pretrained would leave out
    return pipe


def flux(guidance: bool = True, dynamic: bool = True) -> FluxPipeline:
    """One double and two single blocks."""
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=guidance,
        axes_dims_rope=(4, 2, 2),
    )
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=dynamic)
    encoders = clip(CLIPTextModel), tokenizer(), t5(), tokenizer()
    return FluxPipeline(scheduler, autoencoder(shift_factor=0.1), *encoders, transformer)


def stable_diffusion_3(dynamic: bool = False) -> StableDiffusion3Pipeline:
    """Two blocks, the first with a second attention of the picture alone, as SD 3.5 medium has."""
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        caption_projection_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        out_channels=4,
        pos_embed_max_size=8,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    small = [clip(CLIPTextModelWithProjection, WIDTH // 2) for _ in range(2)]
    encoders = small[0], tokenizer(), small[1], tokenizer(), t5(), tokenizer()
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=dynamic)
    return StableDiffusion3Pipeline(transformer, scheduler, autoencoder(shift_factor=0.1), *encoders)


def wan(**config: Any) -> WanPipeline:
    """32x32 videos of 5 frames: 2x4x4 latents."""
    text = UMT5EncoderModel(UMT5Config(**_t5_sizes()))
    vae = AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.5, 2.0, 2.5, 3.0],
    )
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    return WanPipeline(tokenizer(), text, vae, scheduler, wan_transformer(), **config)


def wan_transformer() -> WanTransformer3DModel:
    return WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=WIDTH,
        freq_dim=WIDTH,
        ffn_dim=32,
        num_layers=2,
        cross_attn_norm=True,
        rope_max_seq_len=32,
    )


# family: its adapter, how to build its pipeline, and the arguments of a small run
FAMILIES: dict[str, tuple[type[Pipeline], Callable[[], Any], dict[str, Any]]] = {
    "sd": (StableDiffusion, stable_diffusion, {}),
    "sdxl": (StableDiffusionXL, stable_diffusion_xl, {}),
    "dit": (DiT, dit, {}),
    "flux": (Flux, flux, {"max_sequence_length": TOKENS}),
    "sd3": (StableDiffusion3, stable_diffusion_3, {"max_sequence_length": TOKENS, "guidance_scale": 4.0}),
    "wan": (Wan, wan, {"max_sequence_length": TOKENS, "height": 32, "width": 32, "num_frames": 5}),
}


@cache
def family_folder(family: str) -> Path:
    """The tiny pipeline of a family, saved."""
    return saved(FAMILIES[family][1], Path(mkdtemp()) / family)


def saved(build: Callable[[], Any], folder: Path) -> Path:
    """Build a pipeline from one seed and write it."""
    torch.manual_seed(0)
    build().save_pretrained(folder)
    return folder


def tiny_family(family: str, steps: int = 5, **arguments: Any) -> Any:
    """A fresh adapter of any family but PixArt, which `tiny_model` gives."""
    adapter, _, small = FAMILIES[family]
    return adapter(**{"path": family_folder(family), "steps": steps, **small, **arguments})


def tokenizer() -> T5Tokenizer:
    vocabulary = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", -20.0),
        ("▁", -6.0),
        *((f"▁{w}", -4.0) for w in WORDS),
    ]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=TOKENS)


def t5() -> T5EncoderModel:
    return T5EncoderModel(T5Config(**_t5_sizes()))


def _t5_sizes() -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer()),
        "d_model": WIDTH,
        "d_kv": 8,
        "d_ff": 32,
        "num_layers": 1,
        "num_heads": 2,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
        "is_encoder_decoder": False,
    }


def clip(model: Any, width: int = WIDTH) -> Any:
    """A CLIP text encoder for the same tokenizer; two layers, of which some pipelines read the first."""
    return model(
        CLIPTextConfig(
            vocab_size=len(tokenizer()),
            hidden_size=width,
            intermediate_size=32,
            projection_dim=width,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=TOKENS,
            pad_token_id=0,
            bos_token_id=2,
            eos_token_id=1,
        )
    ).eval()


def autoencoder(**config: Any) -> AutoencoderKL:
    """A factor of 2 between pictures and latents."""
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        layers_per_block=1,
        sample_size=16,
        mid_block_add_attention=False,
        **config,
    )


def unet(**config: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        **{
            "sample_size": 8,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "block_out_channels": (16, 32),
            "layers_per_block": 1,
            "cross_attention_dim": WIDTH,
            "attention_head_dim": 2,
            "norm_num_groups": 8,
            **config,
        }
    )


def flow_solver() -> DPMSolverMultistepScheduler:
    return DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=2.0, lower_order_final=True
    )
