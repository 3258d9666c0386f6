"""Modular pipelines: of models that have no other, and of models that people run most."""

from typing import Any

import diffusers
import torch
from diffusers import modular_pipelines

from tests.helpers.zoo import images, parts, stable_diffusion, video
from tests.helpers.zoo.base import Sample, entry, lively, noise, picture

CALL = {"height": 16, "width": 16, "num_inference_steps": 4, "output_type": "latent"}
TEXT = {"prompt_embeds": noise(1, 4, 16), "negative_prompt_embeds": noise(1, 4, 16, seed=8)}
HEADS = {"num_attention_heads": 2, "attention_head_dim": 8}


def flow(**config: Any) -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(**config)


@entry("Flux3Transformer2DModel")
def flux3() -> Sample:
    small = {"in_channels": 16, "cond_in_channels": 16, "num_layers": 2, "num_single_layers": 2}
    wide = {"joint_attention_dim": 16, "timestep_channels": 8, "axes_dims_rope": (2, 2, 2, 2)}
    given = {
        "transformer": lively(diffusers.Flux3Transformer2DModel(**HEADS | small | wide)),
        "vae": images.flux2_vae(),
        "scheduler": flow(shift=3.0),
    }
    without = ("prompt_upsampler", "text_encoder")
    return parts.modular(modular_pipelines.Flux3AutoBlocks, given, TEXT | CALL, without)


@entry("MiniMaxH3Transformer3DModel")
def minimax_h3() -> Sample:
    """Text, sound and video are one sequence; the shortest video it makes takes five seconds."""
    small = {"hidden_size": 16, "num_layers": 2, "num_refiner_layers": 1, "ffn_dim": 32, "in_channels": 24}
    wide = {"audio_in_channels": 32, "text_dim": 16, "freq_dim": 8, "time_embed_hidden_dim": 16, "time_embed_dim": 16}
    given = {
        "transformer": lively(diffusers.MiniMaxH3Transformer3DModel(**HEADS | small | wide | {"rope_freq_dim": 1})),
        "scheduler": diffusers.MiniMaxH3Scheduler(),
        "audio_scheduler": diffusers.MiniMaxH3Scheduler(shift=3.0),
    }
    text = {"prompt_embeds": TEXT["prompt_embeds"], "text_token_tags": torch.ones(4, dtype=torch.long)}
    call = text | {"height": 32, "width": 32, "num_frames": 124, "num_inference_steps": 3}
    without = ("text_encoder", "decode")
    return parts.modular(modular_pipelines.MiniMaxH3Blocks, given, call, without, "latents,audio_latents")


@entry("WanAnimate2Transformer3DModel")
def wan_animate_2() -> Sample:
    """A first pass reads the driving video, the steps attend to what it kept."""
    from diffusers.guiders import ClassifierFreeGuidance

    small = {
        "text_len": 4,
        "in_dim": 12,
        "dim": 24,
        "ffn_dim": 32,
        "freq_dim": 16,
        "text_dim": 16,
        "out_dim": 4,
        "use_img_emb": False,
    }
    given = {
        "transformer": lively(diffusers.WanAnimate2Transformer3DModel(**small, num_heads=2, num_layers=2)),
        "vae": parts.wan_vae(4),
        "image_encoder": parts.clip_vision(size=224, projected=False),
        "scheduler": flow(shift=5.0),
        "guider": ClassifierFreeGuidance(guidance_scale=3.0),
    }
    videos = {"image": picture(32), "driving_video": [picture(32, seed=i) for i in range(5)]}
    call = TEXT | videos | {"prompt_ref_embeds": noise(1, 4, 16, seed=11), "segment_frame_length": 5}
    call |= {"height": 32, "width": 32, "num_inference_steps": 4, "output_type": "pt"}
    return parts.modular(modular_pipelines.WanAnimate2Blocks, given, call, latents="videos")


@entry("Krea2Transformer2DModel/modular")
def krea2() -> Sample:
    given = {"transformer": images.krea2_transformer(), "vae": images.qwen_vae(), "scheduler": images.dynamic()}
    text = {"prompt_embeds": noise(1, 4, 2, 8), "negative_prompt_embeds": noise(1, 4, 2, 8, seed=8)}
    masks = {name: value.bool() for name, value in images.MASKS.items()}
    call = text | masks | CALL | {"output_type": "pt"}
    return parts.modular(modular_pipelines.Krea2AutoBlocks, given, call)


@entry("LTX2VideoTransformer3DModel/modular")
def ltx2() -> Sample:
    given = video.ltx2_parts() | {"tokenizer": parts.tokenizer()}
    call = video.LTX2_TEXT | video.CALL | {"frame_rate": 25.0, "batch_size": 1, "dtype": torch.float32}
    without = ("text_encoder.text_encoder",)
    return parts.modular(modular_pipelines.LTX2AutoBlocks, given, call, without, "latents,audio_latents")


@entry("UNet2DConditionModel/xl-modular")
def stable_diffusion_xl() -> Sample:
    given = {
        "unet": stable_diffusion.unet(**stable_diffusion.XL),
        "vae": parts.vae(),
        "scheduler": stable_diffusion.scheduler("EulerDiscreteScheduler"),
    }
    call = stable_diffusion.TEXT | stable_diffusion.POOLED | CALL
    sample = parts.modular(modular_pipelines.StableDiffusionXLAutoBlocks, given, call)
    sample.denoisers = ("unet",)
    return sample


@entry("SD3Transformer2DModel/modular")
def sd3() -> Sample:
    given = {"transformer": images.sd3_transformer(), "vae": parts.flux_vae(), "scheduler": flow(shift=3.0)}
    call = images.TEXT | images.POOLED | CALL | {"output_type": "pt"}
    return parts.modular(modular_pipelines.StableDiffusion3AutoBlocks, given, call)


@entry("MiniMaxMusic3Transformer1DModel")
def minimax_music3() -> Sample:
    """From what a language model gave for every frame of a song to sound."""
    small = {"in_channels": 4, "condition_dim": 16, "num_layers": 2, "ff_inner_dim": 32, "rotary_dim": 4}
    conditions = diffusers.MiniMaxMusic3ConditionEncoder(condition_hidden_dim=8, num_condition_layers=2, out_dim=16)
    given = {
        "transformer": lively(diffusers.MiniMaxMusic3Transformer1DModel(**HEADS | small, fourier_embedding_dim=8)),
        "condition_encoder": lively(conditions),
        "scheduler": flow(num_train_timesteps=1, invert_sigmas=True),
    }
    without = ("semantic_generator", "decode")
    call = {"frame_hiddens": noise(1, 12, 16), "num_inference_steps": 4}
    return parts.modular(modular_pipelines.MiniMaxMusic3Blocks, given, call, without, "latent_chunks")


@entry("HunyuanVideo15Transformer3DModel/modular")
def hunyuan_video_15() -> Sample:
    call = video.HUNYUAN_15_TEXT | CALL | {"num_frames": 5, "batch_size": 1, "output_type": "pt"}
    return parts.modular(modular_pipelines.HunyuanVideo15AutoBlocks, video.hunyuan_15_parts(), call)
