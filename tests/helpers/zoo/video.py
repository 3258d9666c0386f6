"""Video transformers: HunyuanVideo, LTX, CogVideoX, Mochi, Allegro, Latte, EasyAnimate and others."""

from typing import Any

import diffusers
import torch
from diffusers.guiders import ClassifierFreeGuidance

from tests.helpers.zoo.base import Sample, assemble, entry, lively, noise, picture

CALL = {"height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 4, "output_type": "latent"}
TEXT = {"prompt_embeds": noise(1, 4, 16), "negative_prompt_embeds": noise(1, 4, 16, seed=8)}
POOLED = {"pooled_prompt_embeds": noise(1, 16, seed=9), "negative_pooled_prompt_embeds": noise(1, 16, seed=10)}
ONES = torch.ones(1, 4, dtype=torch.long)
ATTENTION = {"prompt_attention_mask": ONES, "negative_prompt_attention_mask": ONES}
HEADS = {"num_attention_heads": 2, "attention_head_dim": 8}
CHANNELS = {"in_channels": 4, "out_channels": 4}


def scheduler(name: str = "FlowMatchEulerDiscreteScheduler", **config: Any) -> Any:
    return getattr(diffusers, name)(**config)


def hunyuan_config(**changes: Any) -> dict[str, Any]:
    small = {"num_layers": 2, "num_single_layers": 2, "num_refiner_layers": 1, "mlp_ratio": 2.0}
    text = {"text_embed_dim": 16, "pooled_projection_dim": 16, "rope_axes_dim": (2, 4, 2)}
    return HEADS | CHANNELS | small | text | changes


def hunyuan_vae(**config: Any) -> Any:
    small = {"latent_channels": 4, "block_out_channels": (4, 4, 4, 4), "layers_per_block": 1, "norm_num_groups": 2}
    return diffusers.AutoencoderKLHunyuanVideo(**small | {"mid_block_add_attention": False} | config)


def hunyuan(kind: str, transformer: Any, call: dict[str, Any] | None = None, **given: Any) -> Sample:
    usual = {"transformer": lively(transformer), "vae": hunyuan_vae(), "scheduler": scheduler(shift=7.0)}
    pipe = assemble(getattr(diffusers, kind), **usual | given)
    text = {"prompt_embeds": TEXT["prompt_embeds"], "pooled_prompt_embeds": POOLED["pooled_prompt_embeds"]}
    return Sample(pipe, text | {"prompt_attention_mask": ONES} | CALL | (call or {}), "frames")


@entry("HunyuanVideoTransformer3DModel")
def hunyuan_video() -> Sample:
    return hunyuan("HunyuanVideoPipeline", diffusers.HunyuanVideoTransformer3DModel(**hunyuan_config()))


@entry("HunyuanVideoTransformer3DModel/skyreels-image-to-video")
def hunyuan_skyreels() -> Sample:
    transformer = diffusers.HunyuanVideoTransformer3DModel(**hunyuan_config(in_channels=8))
    return hunyuan("HunyuanSkyreelsImageToVideoPipeline", transformer, {"image": picture(32)})


@entry("HunyuanVideoFramepackTransformer3DModel")
def framepack() -> Sample:
    config = hunyuan_config(has_image_proj=True, image_proj_dim=16, has_clean_x_embedder=True)
    transformer = diffusers.HunyuanVideoFramepackTransformer3DModel(**config)
    call = {"image": picture(32), "latent_window_size": 2}
    return hunyuan("HunyuanVideoFramepackPipeline", transformer, call, **siglip())


def hunyuan_15_parts(**transformer: Any) -> dict[str, Any]:
    text = {"text_embed_dim": 16, "text_embed_2_dim": 16, "image_embed_dim": 16, "rope_axes_dim": (2, 4, 2)}
    small = {"in_channels": 9, "out_channels": 4, "num_layers": 2, "num_refiner_layers": 1, "mlp_ratio": 2.0}
    config = HEADS | text | small | {"target_size": 16, "task_type": "t2v"} | transformer
    vae = diffusers.AutoencoderKLHunyuanVideo15(
        latent_channels=4,
        block_out_channels=(16, 16),
        layers_per_block=1,
        spatial_compression_ratio=4,
        temporal_compression_ratio=2,
        downsample_match_channel=False,
        upsample_match_channel=False,
    )
    made = lively(diffusers.HunyuanVideo15Transformer3DModel(**config))
    return {"transformer": made, "vae": vae, "scheduler": scheduler(shift=7.0)}


def hunyuan_15(kind: str = "HunyuanVideo15Pipeline", call: Any = None, given: Any = None, **guidance: Any) -> Sample:
    guider = ClassifierFreeGuidance(guidance_scale=3.0, **guidance)
    pipe = assemble(getattr(diffusers, kind), **hunyuan_15_parts() | {"guider": guider} | (given or {}))
    return Sample(pipe, HUNYUAN_15_TEXT | CALL | {"height": 16, "width": 16} | (call or {}), "frames")


HUNYUAN_15_TEXT = TEXT | {
    "prompt_embeds_2": noise(1, 3, 16, seed=11),
    "negative_prompt_embeds_2": noise(1, 3, 16, seed=12),
    "prompt_embeds_mask": ONES,
    "negative_prompt_embeds_mask": ONES,
    "prompt_embeds_mask_2": ONES[:, :3],
    "negative_prompt_embeds_mask_2": ONES[:, :3],
}


@entry("HunyuanVideo15Transformer3DModel")
def hunyuan_video_15() -> Sample:
    return hunyuan_15()


@entry("HunyuanVideo15Transformer3DModel/guidance-stops")
def hunyuan_video_15_guidance_stops() -> Sample:
    """Two calls at the first steps, one at the last."""
    return hunyuan_15(stop=0.5)


@entry("HunyuanVideo15Transformer3DModel/image-to-video")
def hunyuan_video_15_image() -> Sample:
    given = hunyuan_15_parts(task_type="i2v", target_size=32) | siglip()
    call = {"image": picture(16)}
    sample = hunyuan_15("HunyuanVideo15ImageToVideoPipeline", call, given)
    for name in ("height", "width"):
        sample.call.pop(name)
    return sample


def siglip() -> dict[str, Any]:
    """A SigLIP image encoder of one layer, and what scales pictures for it."""
    from transformers import SiglipImageProcessorPil, SiglipVisionConfig, SiglipVisionModel

    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = SiglipVisionModel(SiglipVisionConfig(**small, image_size=16, patch_size=8))
    return {"image_encoder": vision, "feature_extractor": SiglipImageProcessorPil(size={"height": 16, "width": 16})}


@entry("LTXVideoTransformer3DModel")
def ltx() -> Sample:
    return ltx_sample("LTXPipeline")


@entry("LTXVideoTransformer3DModel/image-to-video")
def ltx_image_to_video() -> Sample:
    return ltx_sample("LTXImageToVideoPipeline", image=picture(32))


def ltx_vae() -> Any:
    return diffusers.AutoencoderKLLTXVideo(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        decoder_inject_noise=(False,) * 5,
        upsample_residual=(False,) * 4,
        upsample_factor=(1,) * 4,
        patch_size=1,
        patch_size_t=1,
    )


def ltx_sample(kind: str, **call: Any) -> Sample:
    config = HEADS | CHANNELS | {"cross_attention_dim": 16, "num_layers": 2, "caption_channels": 16}
    given = {"transformer": lively(diffusers.LTXVideoTransformer3DModel(**config)), "vae": ltx_vae()}
    pipe = assemble(getattr(diffusers, kind), **given, scheduler=scheduler(use_dynamic_shifting=True))
    return Sample(pipe, TEXT | ATTENTION | CALL | call, "frames")


def ltx2_parts(kind: Any = None) -> dict[str, Any]:
    """The denoiser of video and audio side by side, and what joins text to both."""
    from diffusers.pipelines.ltx2 import LTX2TextConnectors

    audio = {
        "audio_in_channels": 4,
        "audio_out_channels": 4,
        "audio_num_attention_heads": 2,
        "audio_attention_head_dim": 4,
        "audio_cross_attention_dim": 8,
    }
    rope = {"rope_double_precision": False, "rope_type": "split"}
    small = {"cross_attention_dim": 16, "num_layers": 3, "caption_channels": 16}
    connectors = LTX2TextConnectors(
        caption_channels=16,
        text_proj_in_factor=2,
        video_connector_num_attention_heads=2,
        video_connector_attention_head_dim=8,
        video_connector_num_layers=1,
        video_connector_num_learnable_registers=None,
        audio_connector_num_attention_heads=2,
        audio_connector_attention_head_dim=8,
        audio_connector_num_layers=1,
        audio_connector_num_learnable_registers=None,
        connector_rope_base_seq_len=16,
        causal_temporal_positioning=False,
        **rope,
    )
    vae = diffusers.AutoencoderKLLTX2Video(
        latent_channels=4,
        block_out_channels=(8,),
        decoder_block_out_channels=(8,),
        layers_per_block=(1,),
        decoder_layers_per_block=(1, 1),
        spatio_temporal_scaling=(True,),
        decoder_spatio_temporal_scaling=(True,),
        decoder_inject_noise=(False, False),
        downsample_type=("spatial",),
        upsample_residual=(False,),
        upsample_factor=(1,),
        patch_size=4,
        patch_size_t=1,
    )
    audio_vae = diffusers.AutoencoderKLLTX2Audio(
        base_channels=4,
        output_channels=2,
        ch_mult=(1,),
        num_res_blocks=1,
        in_channels=2,
        resolution=32,
        latent_channels=2,
        norm_type="pixel",
        causality_axis="height",
        mel_bins=8,
    )
    transformer = (kind or diffusers.LTX2VideoTransformer3DModel)(**HEADS | CHANNELS | audio | rope | small)
    return {
        "transformer": lively(transformer),
        "connectors": lively(connectors),
        "vae": vae,
        "audio_vae": audio_vae,
        "scheduler": scheduler(use_dynamic_shifting=True),
    }


LTX2_TEXT = {"prompt_embeds": noise(1, 16, 32), "negative_prompt_embeds": noise(1, 16, 32, seed=8)}
LTX2_TEXT |= {name: torch.ones(1, 16, dtype=torch.long) for name in ATTENTION}
LTX2_PLAIN = {"stg_scale": 0.0, "modality_scale": 1.0, "audio_stg_scale": 0.0, "audio_modality_scale": 1.0}


def ltx2(kind: str, **call: Any) -> Sample:
    pipe = assemble(getattr(diffusers, kind), **ltx2_parts())
    usual = CALL | {"frame_rate": 25.0, "spatio_temporal_guidance_blocks": [1]}
    return Sample(pipe, LTX2_TEXT | usual | call, "frames,audio")


@entry("LTX2VideoTransformer3DModel")
def ltx2_text_to_video() -> Sample:
    return ltx2("LTX2Pipeline", **LTX2_PLAIN)


@entry("LTX2VideoTransformer3DModel/four-branches")
def ltx2_four_branches() -> Sample:
    """With guidance, without text, with a block perturbed, with the streams apart."""
    return ltx2("LTX2Pipeline")


@entry("LTX2VideoTransformer3DModel/distilled")
def ltx2_distilled() -> Sample:
    return ltx2("LTX2Pipeline", **LTX2_PLAIN, guidance_scale=1.0, audio_guidance_scale=1.0)


@entry("LTX2VideoTransformer3DModel/image-to-video")
def ltx2_image_to_video() -> Sample:
    return ltx2("LTX2ImageToVideoPipeline", **LTX2_PLAIN, image=picture(32), image_crf=0)
