"""Wan 2.1 and 2.2 and the models built on Wan: VACE, Animate, SkyReels, ChronoEdit, AnyFlow, Helios."""

from typing import Any

import diffusers

from tests.helpers.zoo import parts
from tests.helpers.zoo.base import Sample, assemble, entry, lively, noise, picture

CALL = {"height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 4, "output_type": "latent"}
TEXT = {"prompt_embeds": noise(1, 4, 16), "negative_prompt_embeds": noise(1, 4, 16, seed=8)}
SMALL = {"num_attention_heads": 2, "attention_head_dim": 12, "text_dim": 16, "freq_dim": 16, "ffn_dim": 32}
CHANNELS = {"in_channels": 4, "out_channels": 4}


def scheduler(name: str = "FlowMatchEulerDiscreteScheduler", **config: Any) -> Any:
    return getattr(diffusers, name)(**config)


def unipc() -> Any:
    return scheduler("UniPCMultistepScheduler", prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)


def model(kind: str = "WanTransformer3DModel", **config: Any) -> Any:
    return lively(getattr(diffusers, kind)(**SMALL | CHANNELS | {"num_layers": 2, "rope_max_seq_len": 32} | config))


def sample(
    kind: str, transformer: Any = None, names: tuple[str, ...] = ("transformer",), call: Any = None, **given: Any
) -> Sample:
    """A pipeline of the Wan kind and its call."""
    usual = {"transformer": transformer or model(), "vae": parts.wan_vae(4), "scheduler": unipc()}
    pipe = assemble(getattr(diffusers, kind), **usual | given)
    return Sample(pipe, TEXT | CALL | {"guidance_scale": 3.0} | (call or {}), "frames", names)


@entry("WanTransformer3DModel")
def text_to_video() -> Sample:
    return sample("WanPipeline")


@entry("WanTransformer3DModel/prompt")
def prompt() -> Sample:
    """Words, which the text encoder reads at every call."""
    words = {"text_encoder": parts.t5(many_languages=True), "tokenizer": parts.tokenizer()}
    made = sample(
        "WanPipeline", call={"prompt": "a red fox", "negative_prompt": "snow", "max_sequence_length": 8}, **words
    )
    for name in TEXT:
        made.call.pop(name)
    return made


@entry("WanTransformer3DModel/two-experts")
def two_experts() -> Sample:
    """Wan 2.2: one expert for high noise, one for low noise, two steps each."""
    experts = {"transformer_2": model(), "boundary_ratio": 0.875, "scheduler": scheduler(shift=5.0)}
    call = {"num_inference_steps": 4, "guidance_scale_2": 4.0}
    return sample("WanPipeline", names=("transformer", "transformer_2"), call=call, **experts)


@entry("WanTransformer3DModel/expand-timesteps")
def expand_timesteps() -> Sample:
    """Wan 2.2 5B: a timestep for every token."""
    return sample("WanPipeline", expand_timesteps=True)


@entry("WanTransformer3DModel/no-guidance")
def no_guidance() -> Sample:
    """As the distilled variants are called."""
    return sample("WanPipeline", call={"guidance_scale": 1.0}, scheduler=scheduler(shift=5.0))


@entry("WanTransformer3DModel/image-to-video")
def image_to_video() -> Sample:
    wide = model(in_channels=12, image_dim=16)
    encoder = {"image_encoder": parts.clip_vision(projected=False), "image_processor": parts.clip_pictures()}
    return sample("WanImageToVideoPipeline", wide, call={"image": picture(32)}, **encoder)


@entry("WanTransformer3DModel/image-to-video-two-experts")
def image_to_video_two_experts() -> Sample:
    """Wan 2.2: no image encoder."""
    experts = {"transformer_2": model(in_channels=12), "boundary_ratio": 0.875, "scheduler": scheduler(shift=5.0)}
    names = ("transformer", "transformer_2")
    return sample("WanImageToVideoPipeline", model(in_channels=12), names, {"image": picture(32)}, **experts)


@entry("WanTransformer3DModel/video-to-video")
def video_to_video() -> Sample:
    call = {"video": [picture(32, seed=i) for i in range(5)], "strength": 0.75}
    made = sample("WanVideoToVideoPipeline", call=call)
    made.call.pop("num_frames")
    return made


@entry("WanTransformer3DModel/modular")
def modular() -> Sample:
    from diffusers.modular_pipelines import WanBlocks

    given = {"transformer": model(), "vae": parts.wan_vae(4), "scheduler": unipc()}
    return parts.modular(WanBlocks, given, TEXT | CALL | {"output_type": "pt"})


@entry("WanTransformer3DModel/modular-two-experts")
def modular_two_experts() -> Sample:
    from diffusers.modular_pipelines import Wan22Blocks

    experts = {"transformer": model(), "transformer_2": model(), "scheduler": scheduler(shift=5.0)}
    made = parts.modular(Wan22Blocks, experts | {"vae": parts.wan_vae(4)}, TEXT | CALL | {"output_type": "pt"})
    made.denoisers = ("transformer", "transformer_2")
    return made


@entry("WanVACETransformer3DModel")
def vace() -> Sample:
    config = {"num_layers": 3, "vace_layers": [0, 2], "vace_in_channels": 4 * 2 + 64}
    call = {"video": [picture(32, seed=i) for i in range(5)]}
    return sample("WanVACEPipeline", model("WanVACETransformer3DModel", **config), call=call)


@entry("WanVACETransformer3DModel/reference")
def vace_reference() -> Sample:
    config = {"num_layers": 3, "vace_layers": [0, 2], "vace_in_channels": 4 * 2 + 64}
    call = {"reference_images": [picture(32)]}
    return sample("WanVACEPipeline", model("WanVACETransformer3DModel", **config), call=call)


@entry("WanAnimateTransformer3DModel")
def animate() -> Sample:
    face = {
        "image_dim": 16,
        "motion_encoder_channel_sizes": {"4": 8, "8": 8, "16": 8},
        "motion_encoder_size": 16,
        "motion_style_dim": 8,
        "motion_dim": 4,
        "motion_encoder_dim": 8,
        "face_encoder_hidden_dim": 8,
        "face_encoder_num_heads": 2,
        "inject_face_latents_blocks": 2,
    }
    wide = model("WanAnimateTransformer3DModel", in_channels=12, latent_channels=4, out_channels=4, **face)
    encoder = {"image_encoder": parts.clip_vision(projected=False), "image_processor": parts.clip_pictures()}
    videos = {"pose_video": [picture(32, seed=i) for i in range(5)], "face_video": [picture(seed=i) for i in range(5)]}
    call = videos | {"image": picture(32), "segment_frame_length": 5}
    made = sample("WanAnimatePipeline", wide, call=call, **encoder)
    made.call.pop("num_frames")
    return made


@entry("SkyReelsV2Transformer3DModel")
def skyreels() -> Sample:
    return sample("SkyReelsV2Pipeline", model("SkyReelsV2Transformer3DModel"))


@entry("SkyReelsV2Transformer3DModel/diffusion-forcing")
def skyreels_diffusion_forcing() -> Sample:
    """Frames are denoised one after another, overlapping: more denoiser calls than steps."""
    call = {"prompt": None, "num_frames": 9, "base_num_frames": 9, "ar_step": 1, "causal_block_size": 1}
    return sample("SkyReelsV2DiffusionForcingPipeline", model("SkyReelsV2Transformer3DModel"), call=call)


@entry("ChronoEditTransformer3DModel")
def chronoedit() -> Sample:
    wide = model("ChronoEditTransformer3DModel", in_channels=12, image_dim=16)
    encoder = {"image_encoder": parts.clip_vision(projected=False), "image_processor": parts.clip_pictures()}
    return sample("ChronoEditPipeline", wide, call={"image": picture(32)}, **encoder)


@entry("AnyFlowTransformer3DModel")
def anyflow() -> Sample:
    given = {"scheduler": scheduler("FlowMapEulerDiscreteScheduler", shift=3.0)}
    return sample("AnyFlowPipeline", model("AnyFlowTransformer3DModel"), **given)


@entry("AnyFlowFARTransformer3DModel")
def anyflow_far() -> Sample:
    """Chunks of frames one after another, with cached keys and values of the earlier ones."""
    given = {"scheduler": scheduler("FlowMapEulerDiscreteScheduler", shift=3.0)}
    made = model("AnyFlowFARTransformer3DModel", chunk_partition=(1, 1), full_chunk_limit=2)
    return sample("AnyFlowFARPipeline", made, **given)


@entry("HeliosTransformer3DModel")
def helios() -> Sample:
    made = lively(diffusers.HeliosTransformer3DModel(**SMALL | CHANNELS | {"num_layers": 2, "rope_dim": (4, 4, 4)}))
    call = {"num_latent_frames_per_chunk": 2, "history_sizes": [4, 2, 1]}
    return sample("HeliosPipeline", made, call=call, scheduler=diffusers.HeliosScheduler(stages=1))


@entry("WanTransformer3DModel/lucy-edit")
def lucy_edit() -> Sample:
    call = {"video": [picture(32, seed=i) for i in range(5)]}
    return sample("LucyEditPipeline", model(in_channels=8), call=call, expand_timesteps=True)
