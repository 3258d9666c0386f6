"""Video transformers: CogVideoX, Mochi, Allegro, Latte, EasyAnimate, Sana, Cosmos, Kandinsky and others."""

from typing import Any

import diffusers
import torch

from tests.helpers.zoo import parts
from tests.helpers.zoo.base import Sample, assemble, entry, lively, noise, picture

CALL = {"height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 4, "output_type": "latent"}
TEXT = {"prompt_embeds": noise(1, 4, 16), "negative_prompt_embeds": noise(1, 4, 16, seed=8)}
ONES = torch.ones(1, 4, dtype=torch.long)
ATTENTION = {"prompt_attention_mask": ONES, "negative_prompt_attention_mask": ONES}
HEADS = {"num_attention_heads": 2, "attention_head_dim": 8}
CHANNELS = {"in_channels": 4, "out_channels": 4}


def scheduler(name: str = "FlowMatchEulerDiscreteScheduler", **config: Any) -> Any:
    return getattr(diffusers, name)(**config)


def sample(
    kind: Any, transformer: Any, call: dict[str, Any], scheduler_: Any = None, latents: str = "frames", **given: Any
) -> Sample:
    """A pipeline without text encoder, and without VAE where none is given: it scales latents by 8."""
    usual = {"transformer": lively(transformer), "scheduler": scheduler_ or scheduler()}
    return Sample(
        assemble(getattr(diffusers, kind) if isinstance(kind, str) else kind, **usual | given), CALL | call, latents
    )


def cogvideo_config(**changes: Any) -> dict[str, Any]:
    """The sizes are those of the call, in latents."""
    small = {"time_embed_dim": 8, "text_embed_dim": 16, "num_layers": 2, "max_text_seq_length": 4}
    sizes = {"sample_width": 4, "sample_height": 4, "sample_frames": 5, "temporal_compression_ratio": 4}
    return HEADS | CHANNELS | small | sizes | {"use_rotary_positional_embeddings": False} | changes


def cogvideo_vae() -> Any:
    return diffusers.AutoencoderKLCogVideoX(
        block_out_channels=(4, 4, 4, 4), latent_channels=4, layers_per_block=1, norm_num_groups=2
    )


@entry("CogVideoXTransformer3DModel")
def cogvideo() -> Sample:
    transformer = diffusers.CogVideoXTransformer3DModel(**cogvideo_config())
    return sample("CogVideoXPipeline", transformer, TEXT, scheduler("CogVideoXDDIMScheduler"))


@entry("CogVideoXTransformer3DModel/image-to-video")
def cogvideo_image() -> Sample:
    transformer = diffusers.CogVideoXTransformer3DModel(
        **cogvideo_config(in_channels=8, use_rotary_positional_embeddings=True, attention_head_dim=16)
    )
    given = {"vae": cogvideo_vae(), "scheduler_": scheduler("CogVideoXDPMScheduler")}
    return sample("CogVideoXImageToVideoPipeline", transformer, TEXT | {"image": picture(32)}, **given)


@entry("ConsisIDTransformer3DModel")
def consisid() -> Sample:
    """Imported by its module: the package asks for OpenCV, which only reading faces needs."""
    from diffusers.pipelines.consisid.pipeline_consisid import ConsisIDPipeline

    face = {
        "is_train_face": True,
        "cross_attn_interval": 1,
        "cross_attn_dim_head": 8,
        "cross_attn_num_heads": 2,
        "LFE_id_dim": 4,
        "LFE_vit_dim": 4,
        "LFE_depth": 5,
        "LFE_dim_head": 4,
        "LFE_num_heads": 2,
        "LFE_num_id_token": 1,
        "LFE_num_querie": 2,
        "LFE_output_dim": 21,
        "LFE_ff_mult": 1,
        "LFE_num_scale": 1,
    }
    config = cogvideo_config(in_channels=8, use_rotary_positional_embeddings=True, attention_head_dim=16)
    transformer = diffusers.ConsisIDTransformer3DModel(**config | face)
    call = {"image": picture(32), "id_vit_hidden": [noise(1, 2, 4)] * 5, "id_cond": noise(1, 4)}
    given = {"vae": cogvideo_vae(), "scheduler_": scheduler("CogVideoXDPMScheduler")}
    return sample(ConsisIDPipeline, transformer, TEXT | call, **given)


@entry("MochiTransformer3DModel")
def mochi() -> Sample:
    small = {"num_layers": 3, "pooled_projection_dim": 16, "in_channels": 4, "text_embed_dim": 16, "time_embed_dim": 8}
    transformer = diffusers.MochiTransformer3DModel(**HEADS | small | {"max_sequence_length": 4})
    masks = {name: value.bool() for name, value in ATTENTION.items()}
    return sample("MochiPipeline", transformer, TEXT | masks | {"num_frames": 7})


@entry("AllegroTransformer3DModel")
def allegro() -> Sample:
    small = {"num_layers": 2, "cross_attention_dim": 24, "caption_channels": 16, "attention_head_dim": 12}
    sizes = {"sample_width": 4, "sample_height": 4, "sample_frames": 2}
    transformer = diffusers.AllegroTransformer3DModel(**HEADS | CHANNELS | small | sizes)
    return sample("AllegroPipeline", transformer, TEXT | ATTENTION | {"negative_prompt": None}, unguarded())


def unguarded() -> Any:
    return diffusers.DDIMScheduler(clip_sample=False)


@entry("LatteTransformer3DModel")
def latte() -> Sample:
    small = {"num_layers": 2, "cross_attention_dim": 16, "caption_channels": 16, "sample_size": 4, "patch_size": 2}
    wide = {"in_channels": 4, "out_channels": 8, "video_length": 4, "num_embeds_ada_norm": 1000}
    norm = {"norm_type": "ada_norm_single", "norm_elementwise_affine": False, "attention_bias": True}
    transformer = diffusers.LatteTransformer3DModel(**HEADS | small | wide | norm)
    made = sample("LattePipeline", transformer, TEXT | {"negative_prompt": None}, unguarded())
    made.call.pop("num_frames")
    made.call["video_length"] = 4
    return made


@entry("EasyAnimateTransformer3DModel")
def easy_animate() -> Sample:
    small = {"num_layers": 2, "mmdit_layers": 1, "time_embed_dim": 8, "text_embed_dim": 16, "patch_size": 2}
    sizes = {"sample_width": 4, "sample_height": 4, "add_norm_text_encoder": True}
    config = HEADS | CHANNELS | small | sizes | {"attention_head_dim": 16, "add_noise_in_inpaint_model": False}
    vae = diffusers.AutoencoderKLMagvit(
        latent_channels=4, block_out_channels=[8, 8, 8, 8], layers_per_block=1, norm_num_groups=2
    )
    transformer = diffusers.EasyAnimateTransformer3DModel(**config)
    return sample("EasyAnimatePipeline", transformer, TEXT | ATTENTION, vae=vae)


@entry("SanaVideoTransformer3DModel")
def sana_video() -> Sample:
    cross = {"num_cross_attention_heads": 2, "cross_attention_head_dim": 12, "cross_attention_dim": 24}
    small = {"num_layers": 3, "caption_channels": 16, "sample_size": 4, "attention_head_dim": 12}
    transformer = diffusers.SanaVideoTransformer3DModel(**HEADS | CHANNELS | cross | small | {"rope_max_seq_len": 32})
    flags = {"use_resolution_binning": False, "complex_human_instruction": None, "negative_prompt": None}
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    call = TEXT | ATTENTION | flags | {"frames": 5}
    made = sample("SanaVideoPipeline", transformer, call, scheduler("DPMSolverMultistepScheduler", **flow))
    made.call.pop("num_frames")
    return made


@entry("MotifVideoTransformer3DModel")
def motif_video() -> Sample:
    from diffusers.guiders import AdaptiveProjectedGuidance

    small = {"in_channels": 9, "out_channels": 4, "num_layers": 2, "num_single_layers": 2, "num_decoder_layers": 1}
    text = {"text_embed_dim": 16, "rope_axes_dim": (2, 4, 2), "mlp_ratio": 2.0}
    transformer = diffusers.MotifVideoTransformer3DModel(**HEADS | small | text)
    given = {"guider": AdaptiveProjectedGuidance(), "vae": parts.wan_vae(4)}
    return sample("MotifVideoPipeline", transformer, TEXT | ATTENTION, **given)


class Silent(diffusers.ModelMixin):
    """In place of a vocoder: the call gives latents."""

    device = torch.device("cpu")


class EverythingAllowed(torch.nn.Module):
    """In place of the safety checker that Cosmos asks for and that is a package of its own."""

    device = torch.device("cpu")
    dtype = torch.float32

    def check_text_safety(self, prompt: str) -> bool:
        return True

    def check_video_safety(self, video: Any) -> Any:
        return video


def cosmos_config(**changes: Any) -> dict[str, Any]:
    small = {"num_layers": 2, "mlp_ratio": 2.0, "text_embed_dim": 16, "adaln_lora_dim": 4, "attention_head_dim": 16}
    sizes = {"max_size": (4, 16, 16), "concat_padding_mask": False, "rope_scale": (2.0, 1.0, 1.0)}
    return HEADS | CHANNELS | small | sizes | changes


@entry("CosmosTransformer3DModel")
def cosmos() -> Sample:
    """Cosmos 2, text to image."""
    transformer = diffusers.CosmosTransformer3DModel(**cosmos_config(extra_pos_embed_type=None))
    given = {"safety_checker": EverythingAllowed(), "vae": parts.wan_vae(4), "latents": "images"}
    flow = scheduler(use_karras_sigmas=True)
    made = sample("Cosmos2TextToImagePipeline", transformer, TEXT, flow, **given)
    made.call.pop("num_frames")
    return made


@entry("CosmosTransformer3DModel/text-to-world")
def cosmos_world() -> Sample:
    """Cosmos 1: noise levels of EDM."""
    transformer = diffusers.CosmosTransformer3DModel(**cosmos_config())
    edm = scheduler("EDMEulerScheduler", sigma_min=0.002, sigma_max=80, sigma_data=0.5, final_sigmas_type="sigma_min")
    call = TEXT | {"num_frames": 9, "output_type": "latent"}
    return sample("CosmosTextToWorldPipeline", transformer, call, edm, safety_checker=EverythingAllowed())


@entry("Kandinsky5Transformer3DModel")
def kandinsky5() -> Sample:
    small = {"in_visual_dim": 4, "out_visual_dim": 4, "in_text_dim": 16, "in_text_dim2": 16, "time_dim": 8}
    wide = {"model_dim": 16, "ff_dim": 32, "num_text_blocks": 1, "num_visual_blocks": 2, "axes_dims": (2, 4, 2)}
    transformer = diffusers.Kandinsky5Transformer3DModel(**small | wide)
    text = {
        "prompt_embeds_qwen": noise(1, 4, 16),
        "prompt_embeds_clip": noise(1, 16, seed=9),
        "negative_prompt_embeds_qwen": noise(1, 4, 16, seed=8),
        "negative_prompt_embeds_clip": noise(1, 16, seed=10),
        "prompt_cu_seqlens": torch.tensor([0, 4], dtype=torch.int32),
        "negative_prompt_cu_seqlens": torch.tensor([0, 4], dtype=torch.int32),
    }
    return sample("Kandinsky5T2VPipeline", transformer, text)


@entry("Kandinsky6Transformer3DModel")
def kandinsky6() -> Sample:
    """Video and audio side by side."""
    small = {"in_visual_dim": 4, "out_visual_dim": 4, "in_text_dim": 16, "in_text_dim2": 16, "time_dim": 8}
    wide = {"model_dim": 16, "ff_dim": 32, "num_text_blocks": 1, "num_visual_blocks": 2, "axes_dims": (2, 4, 2)}
    audio = {"in_audio_dim": 4, "out_audio_dim": 4, "model_dim_a": 16, "time_dim_a": 8, "ff_dim_a": 32}
    transformer = diffusers.Kandinsky6Transformer3DModel(**small | wide | audio | {"axes_dims_a": (2, 4, 2)})
    text = {
        "prompt_embeds": noise(1, 4, 16),
        "pooled_prompt_embeds": noise(1, 16, seed=9),
        "negative_prompt_embeds": noise(1, 4, 16, seed=8),
        "negative_pooled_prompt_embeds": noise(1, 16, seed=10),
    }
    audio_vae = diffusers.MMAudioVAE(
        mel_bins=8,
        latent_channels=4,
        hidden_channels=8,
        channel_multipliers=(1, 2),
        layers_per_block=1,
        sample_rate=640,
        n_fft=16,
        hop_length=8,
    )
    given = {"audio_vae": audio_vae, "vocoder": Silent(), "latents": "frames,audio"}
    return sample("Kandinsky6TI2VAPipeline", transformer, text, **given)
