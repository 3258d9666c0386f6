"""Sound: Stable Audio, AudioLDM 2, ACE-Step, LongCat."""

from typing import Any

import diffusers
import torch

from tests.helpers.zoo import parts
from tests.helpers.zoo.base import Sample, assemble, entry, lively, noise

CALL = {"num_inference_steps": 4, "output_type": "latent"}
TEXT = {"prompt_embeds": noise(1, 4, 16), "negative_prompt_embeds": noise(1, 4, 16, seed=8)}
ONES = torch.ones(1, 4, dtype=torch.long)


def oobleck(rate: int) -> Any:
    """Sixteen samples of sound become one latent of 8 channels."""
    return diffusers.AutoencoderOobleck(
        encoder_hidden_size=4,
        downsampling_ratios=[4, 4],
        channel_multiples=[1, 2],
        decoder_channels=4,
        decoder_input_channels=8,
        sampling_rate=rate,
    )


@entry("StableAudioDiTModel")
def stable_audio() -> Sample:
    from diffusers.pipelines.stable_audio import StableAudioProjectionModel

    small = {"sample_size": 8, "in_channels": 8, "out_channels": 8, "num_layers": 2, "num_key_value_attention_heads": 2}
    wide = {"attention_head_dim": 8, "num_attention_heads": 2, "cross_attention_dim": 16, "time_proj_dim": 8}
    inputs = {"global_states_input_dim": 32, "cross_attention_input_dim": 16}
    pipe = assemble(
        diffusers.StableAudioPipeline,
        transformer=lively(diffusers.StableAudioDiTModel(**small | wide | inputs)),
        vae=oobleck(16),
        projection_model=lively(StableAudioProjectionModel(16, 16, 0, 32)),
        scheduler=diffusers.EDMDPMSolverMultistepScheduler(),
    )
    masks = {"attention_mask": ONES, "negative_attention_mask": ONES}
    return Sample(pipe, TEXT | masks | CALL | {"audio_end_in_s": 4.0}, "audios")


def stable_audio_3_sample(**scheduler: Any) -> Sample:
    from diffusers.pipelines.stable_audio_3.modeling_stable_audio_3 import StableAudio3DurationEmbedder

    small = {"io_channels": 8, "embed_dim": 64, "depth": 2, "num_heads": 1, "cond_token_dim": 16, "global_cond_dim": 16}
    wide = {"local_add_cond_dim": 9, "timestep_features_dim": 8, "ff_mult": 1.0, "num_memory_tokens": 2}
    vae = diffusers.AutoencoderSAME(
        patch_size=4,
        encoder_channels=8,
        encoder_c_mults=(1,),
        encoder_strides=(4,),
        encoder_transformer_depths=(1,),
        latent_dim=8,
        dim_heads=4,
        sampling_rate=64,
    )
    pipe = assemble(
        diffusers.StableAudio3Pipeline,
        transformer=lively(diffusers.StableAudio3DiTModel(**small | wide)),
        vae=vae,
        duration_embedder=lively(StableAudio3DurationEmbedder(output_dim=16, fourier_dim=8, max_val=8.0)),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(**scheduler),
    )
    masks = {"encoder_attention_mask": ONES, "negative_encoder_attention_mask": ONES}
    return Sample(pipe, TEXT | masks | CALL | {"duration": 2.0}, "audios")


@entry("StableAudio3DiTModel")
def stable_audio_3() -> Sample:
    sample = stable_audio_3_sample()
    sample.call["guidance_scale"] = 3.0
    return sample


@entry("StableAudio3DiTModel/distilled")
def stable_audio_3_distilled() -> Sample:
    """New noise after every step."""
    return stable_audio_3_sample(stochastic_sampling=True)


@entry("LongCatAudioDiTTransformer")
def longcat_audio() -> Sample:
    small = {"dit_dim": 16, "dit_depth": 2, "dit_heads": 2, "dit_text_dim": 16, "latent_dim": 8, "ff_mult": 2.0}
    vae = diffusers.LongCatAudioDiTVae(
        channels=4,
        c_mults=[1, 2],
        strides=[4],
        latent_dim=8,
        encoder_latent_dim=16,
        downsampling_ratio=4,
        sample_rate=32,
    )
    pipe = diffusers.LongCatAudioDiTPipeline(
        vae=vae,
        text_encoder=parts.t5(many_languages=True),
        tokenizer=parts.tokenizer(),
        transformer=lively(diffusers.LongCatAudioDiTTransformer(**small)),
    )
    return Sample(pipe, CALL | {"prompt": "a red fox", "negative_prompt": "snow", "audio_duration_s": 1.0}, "audios")


@entry("AceStepTransformer1DModel")
def ace_step() -> Sample:
    from diffusers.pipelines.ace_step import AceStepConditionEncoder

    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "hidden_size": 16}
    small = heads | {"intermediate_size": 32, "sliding_window": 4}
    transformer = diffusers.AceStepTransformer1DModel(
        **small, num_hidden_layers=2, in_channels=24, audio_acoustic_hidden_dim=8
    )
    conditions = AceStepConditionEncoder(
        **small,
        text_hidden_dim=16,
        timbre_hidden_dim=8,
        num_lyric_encoder_hidden_layers=1,
        num_timbre_encoder_hidden_layers=1,
    )
    pipe = assemble(
        diffusers.AceStepPipeline,
        vae=oobleck(64),
        text_encoder=parts.qwen3(),
        tokenizer=parts.tokenizer(),
        transformer=lively(transformer),
        condition_encoder=lively(conditions),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=1.0),
    )
    call = {"prompt": "a red fox", "lyrics": "snow", "audio_duration": 2.0, "guidance_scale": 3.0}
    return Sample(pipe, CALL | call, "audios")


@entry("AudioLDM2UNet2DConditionModel")
def audioldm2() -> Sample:
    from transformers import GPT2Config, GPT2LMHeadModel, SpeechT5HifiGan, SpeechT5HifiGanConfig

    unet = diffusers.AudioLDM2UNet2DConditionModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=8,
        attention_head_dim=2,
        cross_attention_dim=((None, 8, 16),) * 2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    words = GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=parts.VOCABULARY, n_positions=16)
    sound = SpeechT5HifiGanConfig(
        model_in_dim=8,
        sampling_rate=16000,
        upsample_initial_channel=8,
        upsample_rates=[2, 2],
        upsample_kernel_sizes=[4, 4],
        resblock_kernel_sizes=[3],
        resblock_dilation_sizes=[[1, 3]],
        normalize_before=False,
    )
    pipe = assemble(
        diffusers.AudioLDM2Pipeline,
        unet=lively(unet),
        vae=parts.vae(in_channels=1, out_channels=1),
        text_encoder_2=parts.t5(),
        language_model=GPT2LMHeadModel(words).eval(),
        vocoder=SpeechT5HifiGan(sound).eval(),
        scheduler=diffusers.DDIMScheduler(clip_sample=False),
    )
    generated = {
        "generated_prompt_embeds": noise(1, 3, 8),
        "negative_generated_prompt_embeds": noise(1, 3, 8, seed=8),
        "attention_mask": ONES,
        "negative_attention_mask": ONES,
    }
    return Sample(pipe, TEXT | generated | CALL | {"audio_length_in_s": 0.016}, "audios", ("unet",))
