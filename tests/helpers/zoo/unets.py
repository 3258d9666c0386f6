"""UNets other than Stable Diffusion's: pictures without text, video, cascades, masked image tokens."""

from typing import Any

import diffusers
import torch

from tests.helpers.zoo import parts
from tests.helpers.zoo.base import Sample, assemble, entry, lively, noise, picture

TEXT = {"prompt_embeds": noise(1, 4, 16), "negative_prompt_embeds": noise(1, 4, 16, seed=8)}
STEPS = {"num_inference_steps": 4}
VIDEO = STEPS | {"height": 16, "width": 16, "num_frames": 4, "output_type": "latent"}


def picture_unet(**config: Any) -> Any:
    small = {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 4,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }
    return lively(diffusers.UNet2DModel(**small | config))


@entry("UNet2DModel")
def ddim() -> Sample:
    pipe = diffusers.DDIMPipeline(picture_unet(), diffusers.DDIMScheduler())
    return Sample(pipe, STEPS | {"output_type": "np"}, denoisers=("unet",))


@entry("UNet2DModel/ddpm")
def ddpm() -> Sample:
    pipe = diffusers.DDPMPipeline(picture_unet(), diffusers.DDPMScheduler())
    return Sample(pipe, STEPS | {"output_type": "np"}, denoisers=("unet",))


@entry("UNet2DModel/consistency")
def consistency() -> Sample:
    scheduler = diffusers.CMStochasticIterativeScheduler(num_train_timesteps=40)
    pipe = diffusers.ConsistencyModelPipeline(picture_unet(num_class_embeds=None), scheduler)
    return Sample(pipe, {"num_inference_steps": 3, "output_type": "np"}, denoisers=("unet",))


@entry("UNet1DModel")
def dance_diffusion() -> Sample:
    unet = diffusers.UNet1DModel(
        sample_size=128,
        sample_rate=128,
        block_out_channels=(32, 32, 32),
        extra_in_channels=64,
        use_timestep_embedding=False,
        flip_sin_to_cos=True,
        down_block_types=("DownBlock1DNoSkip", "DownBlock1D", "AttnDownBlock1D"),
        up_block_types=("AttnUpBlock1D", "UpBlock1D", "UpBlock1DNoSkip"),
    )
    pipe = diffusers.DanceDiffusionPipeline(lively(unet, 0.4), diffusers.IPNDMScheduler())
    return Sample(pipe, STEPS | {"audio_length_in_s": 1.0}, "audios", ("unet",))


def frames_config(kind: str) -> dict[str, Any]:
    """Two resolutions of blocks that know frames."""
    return {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "cross_attention_dim": 16,
        "down_block_types": (f"CrossAttnDownBlock{kind}", f"DownBlock{kind}"),
        "up_block_types": (f"UpBlock{kind}", f"CrossAttnUpBlock{kind}"),
    }


def sd_scheduler() -> Any:
    return diffusers.DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


@entry("UNet3DConditionModel")
def text_to_video() -> Sample:
    unet = lively(diffusers.UNet3DConditionModel(**frames_config("3D") | {"attention_head_dim": 4}))
    pipe = assemble(diffusers.TextToVideoSDPipeline, unet=unet, vae=parts.vae(), scheduler=sd_scheduler())
    return Sample(pipe, TEXT | VIDEO, "frames", ("unet",))


@entry("I2VGenXLUNet")
def i2vgen_xl() -> Sample:
    config = frames_config("3D") | {"num_attention_heads": 2, "attention_head_dim": 4}
    pipe = assemble(
        diffusers.I2VGenXLPipeline,
        unet=lively(diffusers.I2VGenXLUNet(**config)),
        vae=parts.vae(),
        scheduler=sd_scheduler(),
        image_encoder=parts.clip_vision(),
        feature_extractor=parts.clip_pictures(),
    )
    return Sample(pipe, TEXT | VIDEO | {"image": picture(16)}, "frames", ("unet",))


def animate_diff(kind: str, given: dict[str, Any] | None = None, **call: Any) -> Sample:
    spatial = {
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "cross_attention_dim": 16,
        "sample_size": 8,
        "attention_head_dim": 2,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    motion = diffusers.MotionAdapter(
        block_out_channels=(8, 16), motion_layers_per_block=1, motion_norm_num_groups=4, motion_num_attention_heads=2
    )
    unet = diffusers.UNetMotionModel.from_unet2d(diffusers.UNet2DConditionModel(**spatial), motion)
    usual = {"unet": lively(unet), "vae": parts.vae(), "scheduler": sd_scheduler(), "motion_adapter": motion}
    return Sample(assemble(getattr(diffusers, kind), **usual | (given or {})), TEXT | VIDEO | call, "frames", ("unet",))


@entry("UNetMotionModel")
def animate_diff_text() -> Sample:
    return animate_diff("AnimateDiffPipeline")


@entry("UNetMotionModel/video-to-video")
def animate_diff_video() -> Sample:
    video = [picture(seed=i) for i in range(4)]
    sample = animate_diff("AnimateDiffVideoToVideoPipeline", video=video, strength=0.75)
    sample.call.pop("num_frames")
    return sample


@entry("UNetSpatioTemporalConditionModel")
def stable_video_diffusion() -> Sample:
    config = frames_config("SpatioTemporal") | {"num_attention_heads": (2, 4), "in_channels": 8, "out_channels": 4}
    config |= {"addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 24}
    config.pop("norm_num_groups")
    config["block_out_channels"] = (32, 64)
    vae = diffusers.AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=4,
    )
    pipe = assemble(
        diffusers.StableVideoDiffusionPipeline,
        unet=lively(diffusers.UNetSpatioTemporalConditionModel(**config)),
        vae=vae,
        scheduler=diffusers.EulerDiscreteScheduler(prediction_type="v_prediction", use_karras_sigmas=True),
        image_encoder=parts.clip_vision(size=224),
        feature_extractor=parts.clip_pictures(224),
    )
    return Sample(pipe, VIDEO | {"image": picture(16)}, "frames", ("unet",))


@entry("Kandinsky3UNet")
def kandinsky3() -> Sample:
    config = {"time_embedding_dim": 8, "groups": 2, "attention_head_dim": 4, "layers_per_block": 2}
    config |= {"block_out_channels": (8, 16), "cross_attention_dim": 16, "encoder_hid_dim": 16}
    pipe = assemble(
        diffusers.Kandinsky3Pipeline,
        unet=lively(diffusers.Kandinsky3UNet(**config)),
        scheduler=diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        movq=movq(),
    )
    masks = {"attention_mask": torch.ones(1, 4), "negative_attention_mask": torch.ones(1, 4)}
    size = {"height": 64, "width": 64, "output_type": "latent"}
    return Sample(pipe, TEXT | masks | STEPS | size, denoisers=("unet",))


def movq() -> Any:
    return diffusers.VQModel(
        block_out_channels=(4, 4),
        down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        latent_channels=4,
        num_vq_embeddings=8,
        vq_embed_dim=4,
        layers_per_block=1,
        norm_num_groups=2,
    )


CASCADE = {
    "block_out_channels": (8, 16),
    "num_attention_heads": (2, 2),
    "down_num_layers_per_block": (1, 2),
    "up_num_layers_per_block": (2, 1),
    "timestep_ratio_embedding_dim": 8,
    "conditioning_dim": 16,
    "clip_seq": 2,
    "clip_text_pooled_in_channels": 16,
}
CASCADE_TEXT = {"prompt_embeds_pooled": noise(1, 1, 16, seed=9), "negative_prompt_embeds_pooled": noise(1, 1, 16)}


@entry("StableCascadeUNet")
def cascade_prior() -> Sample:
    config = CASCADE | {"in_channels": 4, "out_channels": 4, "clip_text_in_channels": 16, "clip_image_in_channels": 16}
    pipe = assemble(
        diffusers.StableCascadePriorPipeline,
        prior=lively(diffusers.StableCascadeUNet(**config, switch_level=(False,))),
        scheduler=diffusers.DDPMWuerstchenScheduler(),
        text_encoder=parts.clip_text(projected=True),
        resolution_multiple=4.0,
    )
    call = {"height": 32, "width": 32, "guidance_scale": 3.0}
    return Sample(pipe, TEXT | CASCADE_TEXT | STEPS | call, "image_embeddings", ("prior",))


@entry("StableCascadeUNet/decoder")
def cascade_decoder() -> Sample:
    from diffusers.pipelines.deprecated.wuerstchen import PaellaVQModel

    config = CASCADE | {"in_channels": 4, "out_channels": 4, "effnet_in_channels": 4, "patch_size": 1}
    pipe = assemble(
        diffusers.StableCascadeDecoderPipeline,
        decoder=lively(diffusers.StableCascadeUNet(**config)),
        vqgan=PaellaVQModel(levels=1, bottleneck_blocks=1, num_vq_embeddings=8, embed_dim=8),
        scheduler=diffusers.DDPMWuerstchenScheduler(),
        latent_dim_scale=4.0,
    )
    call = {"image_embeddings": noise(1, 4, 4, 4, seed=6), "output_type": "latent", "guidance_scale": 2.0}
    return Sample(pipe, TEXT | CASCADE_TEXT | STEPS | call, denoisers=("decoder",))


@entry("StableCascadeUNet/combined")
def cascade_combined() -> Sample:
    """One call runs two pipelines, each with a denoiser and a scheduler of its own."""
    prior, decoder = cascade_prior().pipe, cascade_decoder().pipe
    words = {"text_encoder": parts.clip_text(projected=True), "tokenizer": parts.tokenizer()}
    pipe = assemble(
        diffusers.StableCascadeCombinedPipeline,
        **words | {f"prior_{name}": value for name, value in words.items()},
        decoder=decoder.decoder,
        scheduler=decoder.scheduler,
        vqgan=decoder.vqgan,
        prior_prior=prior.prior,
        prior_scheduler=prior.scheduler,
    )
    call = {"height": 128, "width": 128, "prior_num_inference_steps": 3, "num_inference_steps": 3}
    return Sample(pipe, TEXT | CASCADE_TEXT | call | {"output_type": "latent"}, denoisers=("prior_prior", "decoder"))


@entry("UVit2DModel")
def amused() -> Sample:
    """Tokens of a codebook; every step draws which of them to keep."""
    transformer = diffusers.UVit2DModel(
        hidden_size=16,
        cond_embed_dim=16,
        micro_cond_encode_dim=4,
        micro_cond_embed_dim=20,
        encoder_hidden_size=16,
        vocab_size=32,
        codebook_size=24,
        in_channels=16,
        block_out_channels=16,
        num_res_blocks=1,
        block_num_heads=2,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        sample_size=8,
        downsample=True,
        upsample=True,
    )
    pipe = assemble(
        diffusers.AmusedPipeline,
        transformer=lively(transformer),
        vqvae=movq(),
        scheduler=diffusers.AmusedScheduler(mask_token_id=31),
    )
    text = {"prompt_embeds": noise(1, 16), "encoder_hidden_states": noise(1, 4, 16)}
    negative = {
        "negative_prompt_embeds": noise(1, 16, seed=8),
        "negative_encoder_hidden_states": noise(1, 4, 16, seed=8),
    }
    return Sample(pipe, text | negative | STEPS | {"height": 16, "width": 16, "output_type": "latent"})
