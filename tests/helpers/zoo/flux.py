"""FLUX.1 with its edits, ControlNet and modular pipeline, and models built on it: Chroma, Bria, Ovis, LongCat."""

from typing import Any

import diffusers

from tests.helpers.zoo import parts
from tests.helpers.zoo.base import Sample, assemble, entry, lively, mask, noise, picture

WIDE = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "num_single_layers": 2}
CALL = {"height": 16, "width": 16, "num_inference_steps": 4, "output_type": "latent"}
TEXT = {"prompt_embeds": noise(1, 4, 16), "pooled_prompt_embeds": noise(1, 16, seed=9)}
NEGATIVE = {"negative_prompt_embeds": noise(1, 4, 16, seed=8), "negative_pooled_prompt_embeds": noise(1, 16, seed=10)}


def scheduler(**config: Any) -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(**config)


def config(**changes: Any) -> dict[str, Any]:
    return (
        WIDE
        | {"in_channels": 16, "joint_attention_dim": 16, "pooled_projection_dim": 16, "axes_dims_rope": (4, 2, 2)}
        | changes
    )


def transformer(**changes: Any) -> Any:
    return lively(diffusers.FluxTransformer2DModel(**config(guidance_embeds=True) | changes))


def flux(kind: str = "FluxPipeline", given: dict[str, Any] | None = None, **call: Any) -> Sample:
    """A FLUX.1 pipeline with a dynamic shift, as FLUX.1-dev has."""
    usual = {"transformer": transformer(), "vae": parts.flux_vae(), "scheduler": scheduler(use_dynamic_shifting=True)}
    pipe = assemble(getattr(diffusers, kind), **usual | (given or {}))
    return Sample(pipe, TEXT | CALL | call)


@entry("FluxTransformer2DModel")
def dev() -> Sample:
    return flux()


@entry("FluxTransformer2DModel/schnell")
def schnell() -> Sample:
    return flux(given={"transformer": transformer(guidance_embeds=False), "scheduler": scheduler()}, guidance_scale=0.0)


@entry("FluxTransformer2DModel/prompt")
def prompt() -> Sample:
    """Words, which two text encoders read at every call."""
    words = {"text_encoder": parts.clip_text(), "tokenizer": parts.tokenizer()}
    more = {"text_encoder_2": parts.t5(), "tokenizer_2": parts.tokenizer()}
    sample = flux(given=words | more, prompt="a red fox", max_sequence_length=8)
    for name in TEXT:
        sample.call.pop(name)
    return sample


@entry("FluxTransformer2DModel/true-cfg")
def true_cfg() -> Sample:
    """Two calls a step."""
    return flux(**NEGATIVE, true_cfg_scale=2.0)


@entry("FluxTransformer2DModel/img2img")
def img2img() -> Sample:
    return flux("FluxImg2ImgPipeline", image=picture(), strength=0.75)


@entry("FluxTransformer2DModel/inpaint")
def inpaint() -> Sample:
    return flux("FluxInpaintPipeline", image=picture(), mask_image=mask(), strength=0.75)


@entry("FluxTransformer2DModel/fill")
def fill() -> Sample:
    wide = transformer(in_channels=48, out_channels=16)
    return flux("FluxFillPipeline", {"transformer": wide}, image=picture(), mask_image=mask())


@entry("FluxTransformer2DModel/control")
def control() -> Sample:
    wide = transformer(in_channels=32, out_channels=16)
    return flux("FluxControlPipeline", {"transformer": wide}, control_image=picture())


@entry("FluxTransformer2DModel/kontext")
def kontext() -> Sample:
    return flux("FluxKontextPipeline", image=picture(), max_area=256, _auto_resize=False)


@entry("FluxTransformer2DModel/controlnet")
def controlnet() -> Sample:
    net = diffusers.FluxControlNetModel(**config(num_layers=1, num_single_layers=1, guidance_embeds=True))
    return flux("FluxControlNetPipeline", {"controlnet": lively(net)}, control_image=picture())


@entry("FluxTransformer2DModel/controlnet-inpaint")
def controlnet_inpaint() -> Sample:
    net = lively(diffusers.FluxControlNetModel(**config(num_layers=1, num_single_layers=1, guidance_embeds=True)))
    images = {"image": picture(), "mask_image": mask(), "control_image": picture(seed=4)}
    return flux("FluxControlNetInpaintPipeline", {"controlnet": net}, **images, strength=0.75)


@entry("FluxTransformer2DModel/modular")
def modular() -> Sample:
    from diffusers.modular_pipelines import FluxAutoBlocks

    given = {"transformer": transformer(), "vae": parts.flux_vae(), "scheduler": scheduler(use_dynamic_shifting=True)}
    return parts.modular(FluxAutoBlocks, given, TEXT | CALL)


@entry("ChromaTransformer2DModel")
def chroma() -> Sample:
    return chroma_sample("ChromaPipeline")


@entry("ChromaTransformer2DModel/img2img")
def chroma_img2img() -> Sample:
    return chroma_sample("ChromaImg2ImgPipeline", image=picture(), strength=0.75)


def chroma_sample(kind: str, **call: Any) -> Sample:
    changes = {"approximator_num_channels": 16, "approximator_hidden_dim": 16, "approximator_layers": 2}
    wide = config(**changes)
    wide.pop("pooled_projection_dim")
    made = lively(diffusers.ChromaTransformer2DModel(**wide))
    text = {name: value for name, value in (TEXT | NEGATIVE).items() if "pooled" not in name}
    masks = {"prompt_attention_mask": noise(1, 4) > -9, "negative_prompt_attention_mask": noise(1, 4) > -9}
    given = {"transformer": made, "vae": parts.flux_vae(), "scheduler": scheduler()}
    return Sample(assemble(getattr(diffusers, kind), **given), text | masks | CALL | call)


@entry("BriaTransformer2DModel")
def bria() -> Sample:
    made = diffusers.BriaTransformer2DModel(**config(pooled_projection_dim=None))
    given = {"transformer": lively(made), "vae": parts.vae(), "scheduler": scheduler(use_dynamic_shifting=True)}
    text = {"prompt_embeds": TEXT["prompt_embeds"], "negative_prompt_embeds": NEGATIVE["negative_prompt_embeds"]}
    return Sample(assemble(diffusers.BriaPipeline, **given), text | CALL)


@entry("BriaFiboTransformer2DModel")
def bria_fibo() -> Sample:
    from transformers import SmolLM3Config, SmolLM3ForCausalLM

    small = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2}
    text = SmolLM3ForCausalLM(
        SmolLM3Config(**small, num_key_value_heads=2, vocab_size=parts.VOCABULARY, pad_token_id=0)
    ).eval()
    made = diffusers.BriaFiboTransformer2DModel(**config(pooled_projection_dim=None, in_channels=4, text_encoder_dim=8))
    given = {
        "transformer": lively(made),
        "vae": parts.wan_vae(4),
        "scheduler": scheduler(use_dynamic_shifting=True),
        "text_encoder": text,
        "tokenizer": parts.tokenizer(),
    }
    call = CALL | {"height": 32, "width": 32, "prompt": "a red fox", "negative_prompt": "snow"}
    return Sample(assemble(diffusers.BriaFiboPipeline, **given), call)


@entry("OvisImageTransformer2DModel")
def ovis() -> Sample:
    wide = config(out_channels=16)
    wide.pop("pooled_projection_dim")
    given = {"transformer": lively(diffusers.OvisImageTransformer2DModel(**wide)), "vae": parts.flux_vae()}
    text = {"prompt_embeds": TEXT["prompt_embeds"], "negative_prompt_embeds": NEGATIVE["negative_prompt_embeds"]}
    pipe = assemble(diffusers.OvisImagePipeline, **given, scheduler=scheduler(use_dynamic_shifting=True))
    return Sample(pipe, text | CALL | {"negative_prompt": None})


@entry("LongCatImageTransformer2DModel")
def longcat() -> Sample:
    given = {
        "transformer": lively(diffusers.LongCatImageTransformer2DModel(**config(in_channels=64))),
        "vae": parts.flux_vae(16),
    }
    words = {"text_encoder": parts.qwen3(max_position_embeddings=1024), "tokenizer": parts.tokenizer(characters=True)}
    pipe = assemble(diffusers.LongCatImagePipeline, **given, **words, scheduler=scheduler(use_dynamic_shifting=True))
    return Sample(pipe, CALL | {"prompt": "a red fox", "negative_prompt": "snow", "enable_prompt_rewrite": False})
