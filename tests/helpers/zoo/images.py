"""Transformers for pictures: FLUX.2, Qwen-Image, Z-Image, Krea-2, SD3, HiDream, Lumina 2 and their edits."""

from typing import Any

import diffusers
import torch

from tests.helpers.zoo import parts
from tests.helpers.zoo.base import Sample, assemble, entry, lively, mask, noise, picture

CALL = {"height": 16, "width": 16, "num_inference_steps": 4, "output_type": "latent"}
TEXT = {"prompt_embeds": noise(1, 4, 16), "negative_prompt_embeds": noise(1, 4, 16, seed=8)}
POOLED = {"pooled_prompt_embeds": noise(1, 16, seed=9), "negative_pooled_prompt_embeds": noise(1, 16, seed=10)}
ONES = torch.ones(1, 4, dtype=torch.long)
MASKS = {"prompt_embeds_mask": ONES, "negative_prompt_embeds_mask": ONES}
ATTENTION = {"prompt_attention_mask": ONES, "negative_prompt_attention_mask": ONES}
HEADS = {"num_attention_heads": 2, "attention_head_dim": 8}


def scheduler(**config: Any) -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(**config)


def dynamic() -> Any:
    return scheduler(use_dynamic_shifting=True)


def flux2_transformer(**config: Any) -> Any:
    small = {"in_channels": 16, "num_layers": 2, "num_single_layers": 2, "joint_attention_dim": 16}
    made = diffusers.Flux2Transformer2DModel(**HEADS | small | {"axes_dims_rope": (2, 2, 2, 2)} | config)
    return lively(made)


def flux2_vae() -> Any:
    return diffusers.AutoencoderKLFlux2(
        block_out_channels=(4, 4),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=2,
        sample_size=16,
    )


def flux2(kind: str = "Flux2Pipeline", config: dict[str, Any] | None = None, **call: Any) -> Sample:
    given = {"transformer": flux2_transformer(**config or {}), "vae": flux2_vae(), "scheduler": dynamic()}
    pipe = assemble(getattr(diffusers, kind), **given)
    return Sample(pipe, {"prompt_embeds": TEXT["prompt_embeds"]} | CALL | call)


@entry("Flux2Transformer2DModel")
def flux2_dev() -> Sample:
    return flux2()


@entry("Flux2Transformer2DModel/edit")
def flux2_edit() -> Sample:
    return flux2(image=[picture(64)])


@entry("Flux2Transformer2DModel/klein")
def flux2_klein() -> Sample:
    negative = {"negative_prompt_embeds": TEXT["negative_prompt_embeds"]}
    return flux2("Flux2KleinPipeline", {"guidance_embeds": False}, **negative)


@entry("Flux2Transformer2DModel/klein-inpaint")
def flux2_klein_inpaint() -> Sample:
    images = {"image": picture(), "mask_image": mask(), "strength": 0.8}
    negative = {"negative_prompt_embeds": TEXT["negative_prompt_embeds"]}
    return flux2("Flux2KleinInpaintPipeline", {"guidance_embeds": False}, **negative, **images)


@entry("Flux2Transformer2DModel/modular")
def flux2_modular() -> Sample:
    from diffusers.modular_pipelines import Flux2AutoBlocks

    given = {"transformer": flux2_transformer(), "vae": flux2_vae(), "scheduler": dynamic()}
    return parts.modular(Flux2AutoBlocks, given, {"prompt_embeds": TEXT["prompt_embeds"]} | CALL)


def qwen_transformer(**config: Any) -> Any:
    small = {"in_channels": 16, "out_channels": 4, "num_layers": 2, "joint_attention_dim": 16}
    return lively(diffusers.QwenImageTransformer2DModel(**HEADS | small | {"axes_dims_rope": (2, 2, 4)} | config))


def qwen(kind: str = "QwenImagePipeline", config: dict[str, Any] | None = None, vae: Any = None, **call: Any) -> Sample:
    given = {"transformer": qwen_transformer(**config or {}), "vae": vae or qwen_vae(), "scheduler": dynamic()}
    pipe = assemble(getattr(diffusers, kind), **given)
    return Sample(pipe, TEXT | MASKS | CALL | {"true_cfg_scale": 3.0} | call)


def qwen_vae() -> Any:
    """Halves the picture once."""
    return parts.wan_vae(4, "AutoencoderKLQwenImage", dim_mult=[1, 1], temperal_downsample=[True])


@entry("QwenImageTransformer2DModel")
def qwen_image() -> Sample:
    return qwen()


@entry("QwenImageTransformer2DModel/no-guidance")
def qwen_lightning() -> Sample:
    """As the distilled variants are called: one denoiser call a step."""
    return qwen(true_cfg_scale=1.0)


@entry("QwenImageTransformer2DModel/img2img")
def qwen_img2img() -> Sample:
    return qwen("QwenImageImg2ImgPipeline", image=picture(), strength=0.75)


@entry("QwenImageTransformer2DModel/inpaint")
def qwen_inpaint() -> Sample:
    return qwen("QwenImageInpaintPipeline", image=picture(), mask_image=mask(), strength=0.75)


@entry("QwenImageTransformer2DModel/edit")
def qwen_edit() -> Sample:
    """The pipeline scales every picture to a million pixels, which this VAE makes 8 by 8."""
    return qwen("QwenImageEditPipeline", vae=parts.PoolingVae(), image=picture(), height=512, width=512)


@entry("QwenImageTransformer2DModel/edit-plus")
def qwen_edit_plus() -> Sample:
    pictures = [picture(), picture(seed=4)]
    return qwen("QwenImageEditPlusPipeline", vae=parts.PoolingVae(), image=pictures, height=512, width=512)


@entry("QwenImageTransformer2DModel/controlnet")
def qwen_controlnet() -> Sample:
    config = {"in_channels": 16, "out_channels": 4, "num_layers": 1, "joint_attention_dim": 16}
    net = diffusers.QwenImageControlNetModel(**HEADS | config | {"axes_dims_rope": (2, 2, 4)})
    given = {"transformer": qwen_transformer(), "vae": qwen_vae(), "scheduler": dynamic(), "controlnet": lively(net)}
    call = TEXT | MASKS | CALL | {"true_cfg_scale": 3.0, "control_image": picture()}
    return Sample(assemble(diffusers.QwenImageControlNetPipeline, **given), call)


@entry("QwenImageTransformer2DModel/modular")
def qwen_modular() -> Sample:
    from diffusers.modular_pipelines import QwenImageAutoBlocks

    given = {"transformer": qwen_transformer(), "vae": qwen_vae(), "scheduler": dynamic()}
    return parts.modular(QwenImageAutoBlocks, given, TEXT | MASKS | CALL | {"output_type": "pt"})


def z_image(kind: str = "ZImagePipeline", **call: Any) -> Sample:
    """Prompts are lists of one tensor each."""
    pipe = assemble(getattr(diffusers, kind), transformer=z_transformer(), vae=parts.flux_vae(), scheduler=scheduler())
    return Sample(pipe, z_text() | CALL | {"guidance_scale": 3.0} | call)


def z_text() -> dict[str, Any]:
    return {name: [value[0]] for name, value in TEXT.items()}


def z_transformer(**config: Any) -> Any:
    small = {"in_channels": 4, "dim": 16, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2}
    rope = {"cap_feat_dim": 16, "axes_dims": [4, 2, 2], "axes_lens": [64, 16, 16]}
    return lively(diffusers.ZImageTransformer2DModel(**small | rope | config))


@entry("ZImageTransformer2DModel")
def z_image_base() -> Sample:
    return z_image()


@entry("ZImageTransformer2DModel/turbo")
def z_image_turbo() -> Sample:
    return z_image(guidance_scale=0.0)


@entry("ZImageTransformer2DModel/guidance-stops")
def z_image_guidance_stops() -> Sample:
    """Batches of two at the first steps, of one at the last."""
    return z_image(cfg_truncation=0.5)


@entry("ZImageTransformer2DModel/img2img")
def z_image_img2img() -> Sample:
    return z_image("ZImageImg2ImgPipeline", image=picture(), strength=0.75)


@entry("ZImageTransformer2DModel/inpaint")
def z_image_inpaint() -> Sample:
    return z_image("ZImageInpaintPipeline", image=picture(), mask_image=mask(), strength=0.75)


@entry("ZImageTransformer2DModel/modular")
def z_image_modular() -> Sample:
    from diffusers.modular_pipelines import ZImageAutoBlocks

    given = {"transformer": z_transformer(), "vae": parts.flux_vae(), "scheduler": scheduler()}
    return parts.modular(ZImageAutoBlocks, given, z_text() | CALL)


def krea2_transformer() -> Any:
    small = {"in_channels": 16, "num_layers": 2, "num_key_value_heads": 1, "intermediate_size": 32}
    text = {
        "text_hidden_dim": 8,
        "num_text_layers": 2,
        "text_num_attention_heads": 2,
        "text_num_key_value_heads": 2,
        "text_intermediate_size": 16,
        "num_layerwise_text_blocks": 1,
        "num_refiner_text_blocks": 1,
        "axes_dims_rope": (4, 2, 2),
        "timestep_embed_dim": 8,
    }
    return lively(diffusers.Krea2Transformer2DModel(**HEADS | small | text))


@entry("Krea2Transformer2DModel")
def krea2() -> Sample:
    text = {"prompt_embeds": noise(1, 4, 2, 8), "negative_prompt_embeds": noise(1, 4, 2, 8, seed=8)}
    given = {"transformer": krea2_transformer(), "vae": qwen_vae(), "scheduler": dynamic()}
    masks = {name: value.bool() for name, value in MASKS.items()}
    return Sample(assemble(diffusers.Krea2Pipeline, **given), text | masks | CALL)


@entry("Krea2Transformer2DModel/turbo")
def krea2_turbo() -> Sample:
    sample = krea2()
    sample.pipe.register_to_config(is_distilled=True)
    sample.call["guidance_scale"] = 0.0
    return sample


def sd3(kind: str = "StableDiffusion3Pipeline", given: dict[str, Any] | None = None, **call: Any) -> Sample:
    usual = {"transformer": sd3_transformer(), "vae": parts.flux_vae(), "scheduler": scheduler(shift=3.0)}
    return Sample(assemble(getattr(diffusers, kind), **usual | (given or {})), TEXT | POOLED | CALL | call)


def sd3_transformer(**config: Any) -> Any:
    small = {"sample_size": 8, "in_channels": 4, "out_channels": 4, "num_layers": 3, "joint_attention_dim": 16}
    wide = {"caption_projection_dim": 16, "pooled_projection_dim": 16, "pos_embed_max_size": 8}
    return lively(diffusers.SD3Transformer2DModel(**HEADS | small | wide | {"dual_attention_layers": (0,)} | config))


@entry("SD3Transformer2DModel")
def sd3_base() -> Sample:
    return sd3()


@entry("SD3Transformer2DModel/img2img")
def sd3_img2img() -> Sample:
    return sd3("StableDiffusion3Img2ImgPipeline", image=picture(), strength=0.75)


@entry("SD3Transformer2DModel/skip-layer-guidance")
def sd3_skip_layer_guidance() -> Sample:
    """A third call at some steps, without one block."""
    return sd3(skip_guidance_layers=[1], skip_layer_guidance_start=0.0, skip_layer_guidance_stop=0.6)


@entry("SD3Transformer2DModel/perturbed-attention")
def sd3_perturbed_attention() -> Sample:
    return sd3("StableDiffusion3PAGPipeline", pag_scale=2.0)


@entry("SD3Transformer2DModel/controlnet")
def sd3_controlnet() -> Sample:
    small = {"sample_size": 8, "in_channels": 4, "num_layers": 1, "joint_attention_dim": 16, "out_channels": 4}
    wide = {"caption_projection_dim": 16, "pooled_projection_dim": 16, "pos_embed_max_size": 8}
    net = lively(diffusers.SD3ControlNetModel(**HEADS | small | wide))
    return sd3("StableDiffusion3ControlNetPipeline", {"controlnet": net}, control_image=picture())
