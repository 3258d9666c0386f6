"""Transformers for pictures: PixArt, DiT, Sana, Lumina, CogView, AuraFlow, HunyuanDiT, HiDream and others."""

from typing import Any

import diffusers
import torch

from tests.helpers.zoo import parts
from tests.helpers.zoo.base import Sample, assemble, entry, lively, noise, picture

CALL = {"height": 32, "width": 32, "num_inference_steps": 4, "output_type": "latent"}
TEXT = {"prompt_embeds": noise(1, 4, 16), "negative_prompt_embeds": noise(1, 4, 16, seed=8)}
POOLED = {"pooled_prompt_embeds": noise(1, 16, seed=9), "negative_pooled_prompt_embeds": noise(1, 16, seed=10)}
ONES = torch.ones(1, 4, dtype=torch.long)
ATTENTION = {"prompt_attention_mask": ONES, "negative_prompt_attention_mask": ONES}
MASKS = {"prompt_embeds_mask": ONES, "negative_prompt_embeds_mask": ONES}
HEADS = {"num_attention_heads": 2, "attention_head_dim": 8}
CHANNELS = {"in_channels": 4, "out_channels": 4}
NO_BINS = {"use_resolution_binning": False}


def scheduler(name: str = "FlowMatchEulerDiscreteScheduler", **config: Any) -> Any:
    return getattr(diffusers, name)(**config)


def sample(kind: str, transformer: Any, call: dict[str, Any], scheduler_: Any = None, **given: Any) -> Sample:
    """A pipeline without text encoder and VAE: it scales latents by 8."""
    usual = {"transformer": lively(transformer), "scheduler": scheduler_ or scheduler()}
    return Sample(assemble(getattr(diffusers, kind), **usual | given), CALL | call)


def pixart_transformer(**config: Any) -> Any:
    small = {"num_layers": 3, "cross_attention_dim": 16, "caption_channels": 16, "sample_size": 8}
    wide = {"in_channels": 4, "out_channels": 8, "use_additional_conditions": False}
    return diffusers.PixArtTransformer2DModel(**HEADS | small | wide | config)


@entry("PixArtTransformer2DModel")
def pixart_alpha() -> Sample:
    call = TEXT | ATTENTION | NO_BINS | {"negative_prompt": None}
    return sample("PixArtAlphaPipeline", pixart_transformer(), call, scheduler("DPMSolverMultistepScheduler"))


@entry("PixArtTransformer2DModel/sigma")
def pixart_sigma() -> Sample:
    call = TEXT | ATTENTION | NO_BINS | {"negative_prompt": None}
    return sample("PixArtSigmaPipeline", pixart_transformer(), call, scheduler("DPMSolverMultistepScheduler"))


@entry("DiTTransformer2DModel")
def dit() -> Sample:
    small = {"in_channels": 4, "out_channels": 8, "num_layers": 2, "sample_size": 8, "norm_num_groups": 1}
    given = {"vae": parts.vae(), "transformer": lively(diffusers.DiTTransformer2DModel(**HEADS | small))}
    pipe = diffusers.DiTPipeline(**given, scheduler=diffusers.DDIMScheduler())
    return Sample(pipe, {"class_labels": [3], "num_inference_steps": 4, "output_type": "np"})


def sana_transformer(**config: Any) -> Any:
    cross = {"num_cross_attention_heads": 2, "cross_attention_head_dim": 8, "cross_attention_dim": 16}
    small = {"num_layers": 3, "caption_channels": 16, "sample_size": 8}
    return diffusers.SanaTransformer2DModel(**HEADS | CHANNELS | cross | small | config)


SANA = {"height": 64, "width": 64, "complex_human_instruction": None} | NO_BINS


@entry("SanaTransformer2DModel")
def sana() -> Sample:
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    solver = scheduler("DPMSolverMultistepScheduler", **flow)
    call = TEXT | ATTENTION | SANA | {"negative_prompt": None}
    return sample("SanaPipeline", sana_transformer(), call, solver)


@entry("SanaTransformer2DModel/sprint")
def sana_sprint() -> Sample:
    config = {"guidance_embeds": True, "qk_norm": "rms_norm_across_heads"}
    text = {"prompt_embeds": TEXT["prompt_embeds"], "prompt_attention_mask": ONES}
    call = text | SANA | {"num_inference_steps": 3, "intermediate_timesteps": None}
    return sample("SanaSprintPipeline", sana_transformer(**config), call, scheduler("SCMScheduler"))


@entry("SanaTransformer2DModel/controlnet")
def sana_controlnet() -> Sample:
    config = {"num_cross_attention_heads": 2, "cross_attention_head_dim": 8, "cross_attention_dim": 16}
    config |= {"num_layers": 1, "caption_channels": 16, "sample_size": 8}
    net = lively(diffusers.SanaControlNetModel(**HEADS | CHANNELS | config))
    vae = diffusers.AutoencoderDC(
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock",) * 2,
        decoder_block_types=("ResBlock",) * 2,
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
    )
    call = TEXT | ATTENTION | SANA | {"height": 32, "width": 32, "control_image": picture(32), "negative_prompt": None}
    return sample("SanaControlNetPipeline", sana_transformer(), call, controlnet=net, vae=vae)


@entry("LuminaNextDiT2DModel")
def lumina() -> Sample:
    small = {"sample_size": 8, "hidden_size": 16, "num_layers": 2, "num_attention_heads": 2, "num_kv_heads": 1}
    transformer = diffusers.LuminaNextDiT2DModel(**small, multiple_of=16, cross_attention_dim=16)
    return sample("LuminaPipeline", transformer, TEXT | ATTENTION)


@entry("Lumina2Transformer2DModel")
def lumina2() -> Sample:
    small = {"sample_size": 8, "hidden_size": 16, "num_layers": 2, "num_refiner_layers": 1, "num_attention_heads": 2}
    rope = {"num_kv_heads": 1, "multiple_of": 16, "axes_dim_rope": (4, 2, 2), "axes_lens": (64, 16, 16)}
    transformer = diffusers.Lumina2Transformer2DModel(**small | rope, in_channels=4, cap_feat_dim=16)
    return sample("Lumina2Pipeline", transformer, TEXT | ATTENTION)


@entry("CogView3PlusTransformer2DModel")
def cogview3() -> Sample:
    small = {"num_layers": 2, "text_embed_dim": 16, "time_embed_dim": 8, "condition_dim": 4, "sample_size": 8}
    transformer = diffusers.CogView3PlusTransformer2DModel(**HEADS | CHANNELS | small | {"pos_embed_max_size": 8})
    return sample("CogView3PlusPipeline", transformer, TEXT, scheduler("CogVideoXDDIMScheduler"))


@entry("CogView4Transformer2DModel")
def cogview4() -> Sample:
    small = {"num_layers": 2, "text_embed_dim": 16, "time_embed_dim": 8, "condition_dim": 4, "sample_size": 8}
    transformer = diffusers.CogView4Transformer2DModel(**HEADS | CHANNELS | small | {"rope_axes_dim": (16, 16)})
    flow = scheduler(base_shift=0.25, max_shift=0.75, base_image_seq_len=256, use_dynamic_shifting=True)
    return sample("CogView4Pipeline", transformer, TEXT, flow)


@entry("AuraFlowTransformer2DModel")
def aura_flow() -> Sample:
    small = {"num_mmdit_layers": 1, "num_single_dit_layers": 2, "joint_attention_dim": 16, "sample_size": 8}
    wide = {"caption_projection_dim": 16, "pos_embed_max_size": 16}
    transformer = diffusers.AuraFlowTransformer2DModel(**HEADS | CHANNELS | small | wide)
    return sample("AuraFlowPipeline", transformer, TEXT | ATTENTION)


@entry("HunyuanDiT2DModel")
def hunyuan_dit() -> Sample:
    small = {"num_layers": 4, "in_channels": 4, "sample_size": 8, "patch_size": 2, "hidden_size": 16}
    text = {"cross_attention_dim": 16, "cross_attention_dim_t5": 16, "pooled_projection_dim": 8}
    lengths = {"text_len": 4, "text_len_t5": 4}
    transformer = diffusers.HunyuanDiT2DModel(**HEADS | small | text | lengths)
    second = {"prompt_embeds_2": noise(1, 4, 16, seed=11), "negative_prompt_embeds_2": noise(1, 4, 16, seed=12)}
    masks = ATTENTION | {"prompt_attention_mask_2": ONES, "negative_prompt_attention_mask_2": ONES}
    given = {"requires_safety_checker": False}
    return sample(
        "HunyuanDiTPipeline", transformer, TEXT | second | masks | NO_BINS, scheduler("DDPMScheduler"), **given
    )


@entry("HiDreamImageTransformer2DModel")
def hidream() -> Sample:
    """A mixture of experts; two text streams and the layers of a language model."""
    small = {"patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 2, "num_single_layers": 2}
    text = {"caption_channels": (16, 16), "text_emb_dim": 16, "llama_layers": (0, 1, 0, 1)}
    rope = {"axes_dims_rope": (4, 2, 2), "max_resolution": (8, 8)}
    transformer = diffusers.HiDreamImageTransformer2DModel(**HEADS | small | text | rope | {"num_routed_experts": 2})
    embeds = {
        "prompt_embeds_t5": noise(1, 4, 16),
        "negative_prompt_embeds_t5": noise(1, 4, 16, seed=8),
        "prompt_embeds_llama3": noise(2, 1, 4, 16, seed=11),
        "negative_prompt_embeds_llama3": noise(2, 1, 4, 16, seed=12),
    }
    made = sample("HiDreamImagePipeline", transformer, embeds | POOLED)
    made.pipe.default_sample_size = 8  # pictures are scaled to as many pixels as this, squared
    return made


@entry("HunyuanImageTransformer2DModel")
def hunyuan_image() -> Sample:
    from diffusers.guiders import AdaptiveProjectedMixGuidance

    small = {"num_layers": 2, "num_single_layers": 2, "num_refiner_layers": 1, "mlp_ratio": 2.0}
    text = {"text_embed_dim": 16, "text_embed_2_dim": 16, "rope_axes_dim": (4, 4)}
    transformer = diffusers.HunyuanImageTransformer2DModel(**HEADS | CHANNELS | small | text)
    second = {"prompt_embeds_2": noise(1, 4, 16, seed=11), "negative_prompt_embeds_2": noise(1, 4, 16, seed=12)}
    masks = MASKS | {"prompt_embeds_mask_2": ONES, "negative_prompt_embeds_mask_2": ONES}
    guiders = {"guider": AdaptiveProjectedMixGuidance(), "ocr_guider": AdaptiveProjectedMixGuidance()}
    call = TEXT | second | masks | {"height": 128, "width": 128}
    return sample("HunyuanImagePipeline", transformer, call, scheduler(shift=5.0), **guiders)


@entry("PRXTransformer2DModel")
def prx() -> Sample:
    small = {"in_channels": 4, "context_in_dim": 16, "hidden_size": 16, "num_heads": 2, "depth": 2}
    transformer = diffusers.PRXTransformer2DModel(**small, axes_dim=[4, 4])
    masks = {name: value.bool() for name, value in ATTENTION.items()}
    return sample("PRXPipeline", transformer, TEXT | masks | NO_BINS | {"negative_prompt": None}, vae=parts.vae())


@entry("NucleusMoEImageTransformer2DModel")
def nucleus() -> Sample:
    small = {"in_channels": 16, "out_channels": 4, "num_layers": 5, "joint_attention_dim": 16}
    experts = {"num_experts": 2, "moe_intermediate_dim": 8, "capacity_factors": 2.0, "axes_dims_rope": (2, 2, 4)}
    transformer = diffusers.NucleusMoEImageTransformer2DModel(**HEADS | small | experts)
    return sample("NucleusMoEImagePipeline", transformer, TEXT | MASKS, scheduler(use_dynamic_shifting=True))


@entry("ErnieImageTransformer2DModel")
def ernie() -> Sample:
    small = {"hidden_size": 16, "num_attention_heads": 2, "num_layers": 2, "ffn_hidden_size": 32, "in_channels": 4}
    transformer = diffusers.ErnieImageTransformer2DModel(
        **small, out_channels=4, text_in_dim=16, rope_axes_dim=(2, 2, 4)
    )
    text = {name: [value[0]] for name, value in TEXT.items()}
    return sample("ErnieImagePipeline", transformer, text)


@entry("GlmImageTransformer2DModel")
def glm_image() -> Sample:
    small = {"num_layers": 2, "text_embed_dim": 16, "time_embed_dim": 8, "condition_dim": 4}
    transformer = diffusers.GlmImageTransformer2DModel(**HEADS | CHANNELS | small, prior_vq_quantizer_codebook_size=8)
    return sample("GlmImagePipeline", transformer, TEXT | {"prior_token_ids": torch.tensor([[1, 5, 3, 7]])})
