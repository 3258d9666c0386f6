"""Pipelines of a kind of their own: tiles of a video, a second denoiser for the branch without text."""

from typing import Any

import diffusers

from tests.helpers.zoo import parts
from tests.helpers.zoo.base import Sample, assemble, entry, lively, noise, picture
from tests.helpers.zoo.images import flux2_vae
from tests.helpers.zoo.video import ltx2_parts


@entry("Kandinsky6SRTransformer3DModel")
def kandinsky6_super_resolution() -> Sample:
    """A video in tiles, one run of the sampler for each."""
    small = {"in_visual_dim": 4, "out_visual_dim": 4, "time_dim": 8, "model_dim": 16, "ff_dim": 32}
    wide = {"num_visual_blocks": 2, "axes_dims": (2, 4, 2), "tile_sizes": ((32, 32),), "nabla_window": (3, 3, 3)}
    vae = diffusers.Kandinsky6SRVAE(
        latent_channels=4,
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        layers_per_block=1,
    )
    pipe = assemble(
        diffusers.Kandinsky6SRPipeline,
        transformer=lively(diffusers.Kandinsky6SRTransformer3DModel(**small | wide)),
        vae=vae,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )
    call = {"video": [picture(16, seed=i) for i in range(5)], "resolution_scale": 2, "num_inference_steps": 4}
    return Sample(pipe, call | {"output_type": "pt"}, "frames")


def qwen3_vl(layers: int = 2, kind: str = "Qwen3VLModel") -> Any:
    """A model of text and pictures."""
    import transformers

    text = {
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "vocab_size": parts.VOCABULARY,
        "rope_scaling": {"mrope_section": [2, 1, 1], "rope_type": "default", "rope_theta": 10000.0},
    }
    vision = {"depth": 1, "hidden_size": 8, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 8}
    numbers = {"image_token_id": 60, "video_token_id": 61, "vision_start_token_id": 62, "vision_end_token_id": 63}
    config = transformers.Qwen3VLConfig(text_config=text, vision_config=vision, **numbers)
    return getattr(transformers, kind)(config).eval()


@entry("Ideogram4Transformer2DModel")
def ideogram4() -> Sample:
    """Two denoisers at every step: one with text and picture, one for the picture alone."""
    small = {"in_channels": 16, "num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 2}
    wide = {"intermediate_size": 32, "adaln_dim": 8, "llm_features_dim": 13 * 8, "mrope_section": (2, 1, 1)}
    pipe = assemble(
        diffusers.Ideogram4Pipeline,
        transformer=lively(diffusers.Ideogram4Transformer2DModel(**small | wide)),
        unconditional_transformer=lively(diffusers.Ideogram4Transformer2DModel(**small | wide)),
        vae=flux2_vae(),
        text_encoder=qwen3_vl(36),
        tokenizer=parts.tokenizer(chat=True),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    )
    call = {
        "prompt": "a red fox",
        "height": 16,
        "width": 16,
        "num_inference_steps": 4,
        "guidance_scale": 3.0,
        "guidance_schedule": None,
    }
    call |= {"max_sequence_length": 32, "output_type": "latent"}
    return Sample(pipe, call, denoisers=("transformer", "unconditional_transformer"))


@entry("Cosmos3OmniTransformer")
def cosmos3() -> Sample:
    """The denoiser reads the prompt's words itself, and gives text, video and sound."""
    small = {"head_dim": 6, "hidden_size": 12, "intermediate_size": 24, "latent_channel": 4, "latent_patch_size": 1}
    wide = {"num_attention_heads": 2, "num_hidden_layers": 2, "num_key_value_heads": 1, "patch_latent_dim": 4}
    transformer = diffusers.Cosmos3OmniTransformer(
        **small | wide, rope_axes_dim=[1, 1, 1], vocab_size=parts.VOCABULARY, dtype="float32"
    )
    pipe = assemble(
        diffusers.Cosmos3OmniPipeline,
        transformer=lively(transformer),
        text_tokenizer=parts.tokenizer(chat=True),
        vae=parts.wan_vae(4),
        scheduler=diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
        enable_safety_checker=False,
    )
    call = {"prompt": "a red fox", "height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 4}
    return Sample(pipe, call | {"guidance_scale": 3.0, "output_type": "latent"}, "video")


class WordsOnly:
    """In place of a processor: it reads the words and leaves the pictures."""

    def __call__(self, text: list[str], images: Any = None, **flags: Any) -> Any:
        return parts.tokenizer(characters=True)(text, **flags)


@entry("JoyImageEditPlusTransformer3DModel")
def joy_edit_plus() -> Sample:
    """The pipeline makes every picture one of about a million pixels, which this VAE makes 8 by 8."""
    small = {"in_channels": 4, "hidden_size": 16, "num_attention_heads": 2, "text_dim": 8, "num_layers": 2}
    rope = {"patch_size": (1, 2, 2), "mlp_width_ratio": 2.0, "rope_dim_list": (2, 4, 2)}
    pipe = assemble(
        diffusers.JoyImageEditPlusPipeline,
        transformer=lively(diffusers.JoyImageEditPlusTransformer3DModel(**small | rope)),
        vae=parts.PoolingVae(),
        text_encoder=qwen3_vl(kind="Qwen3VLForConditionalGeneration"),
        processor=WordsOnly(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=4.0),
    )
    call = {"images": [[picture(32)]], "prompt": "a red fox", "negative_prompt": "snow", "height": 512, "width": 512}
    return Sample(pipe, call | {"num_inference_steps": 4, "output_type": "latent"})


@entry("SanaWMLTX2RefinerTransformer3DModel")
def sana_wm_refiner() -> Sample:
    """Blocks of frames one after another, each with the keys and values of those before it."""
    from diffusers.pipelines.sana_wm import SanaWMLTX2Refiner

    made = ltx2_parts(diffusers.SanaWMLTX2RefinerTransformer3DModel)
    pipe = assemble(
        SanaWMLTX2Refiner,
        transformer=made["transformer"],
        connectors=made["connectors"],
        tokenizer=parts.tokenizer(),
        text_encoder=parts.qwen3(num_hidden_layers=1),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        text_max_sequence_length=16,
    )
    call = {"sana_latent": noise(1, 4, 5, 4, 4), "prompt": "a red fox", "fps": 16.0, "output_type": "latent"}
    return Sample(pipe, call | {"block_size": 2, "kv_max_frames": 3}, "")
