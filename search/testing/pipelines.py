"""Stock pipelines of random weights, whole with text encoders and VAE: 8x8 latents, 16x16 pictures, built in a moment.

The denoisers are those of `search.testing.denoisers`. Weights follow torch's seed: `torch.manual_seed(0)` before.
"""

from typing import Any

from diffusers import (
    AutoencoderKL,
    AutoencoderKLWan,
    DDIMScheduler,
    DiTPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    PixArtAlphaPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UniPCMultistepScheduler,
    WanPipeline,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
    UMT5Config,
    UMT5EncoderModel,
)

from search.testing import denoisers
from search.testing.denoisers import WIDTH

WORDS = ("red", "apple", "blue", "boat", "style", "3d", "flat")
CLASSES = {0: "apple", 1: "boat, sailing boat", 2: "cat face"}
TOKENS = 8  # of a prompt


def pixart(scheduler: Any = None, **config: Any) -> PixArtAlphaPipeline:
    """PixArt, whose denoiser takes `config`; DPM-Solver++ for flow matching unless another scheduler is given."""
    words, text, vae = tokenizer(), t5(), autoencoder()
    return PixArtAlphaPipeline(words, text, vae, denoisers.pixart(**config), scheduler or flow_solver())


def stable_diffusion(scheduler: Any = None, **config: Any) -> StableDiffusionPipeline:
    """Two resolutions, T5 states with their mask; the UNet takes `config`."""
    parts = autoencoder(), t5(), tokenizer(), denoisers.unet(**config)
    parts[1].config.use_attention_mask = True
    scheduler = scheduler or DPMSolverMultistepScheduler(
        beta_schedule="scaled_linear", prediction_type="v_prediction", timestep_spacing="trailing", steps_offset=1
    )
    return StableDiffusionPipeline(*parts, scheduler, None, None, requires_safety_checker=False)


def stable_diffusion_xl() -> StableDiffusionXLPipeline:
    """Two text encoders side by side, sizes as a further condition."""
    network = denoisers.unet(
        cross_attention_dim=2 * WIDTH,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + WIDTH,
    )
    encoders = clip(CLIPTextModel), clip(CLIPTextModelWithProjection), tokenizer(), tokenizer()
    scheduler = EulerDiscreteScheduler(beta_schedule="scaled_linear", timestep_spacing="leading", steps_offset=1)
    return StableDiffusionXLPipeline(autoencoder(), *encoders, network, scheduler)


def dit() -> DiTPipeline:
    """Three named classes."""
    pipe = DiTPipeline(denoisers.dit(), autoencoder(), DDIMScheduler())
    pipe.register_to_config(id2label=CLASSES)  # which save_pretrained would leave out
    return pipe


def flux(guidance: bool = True, dynamic: bool = True) -> FluxPipeline:
    """Guidance as an input, and a shift of the noise levels by the number of tokens, as FLUX.1-dev has."""
    transformer = denoisers.flux(guidance_embeds=guidance)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=dynamic)
    encoders = clip(CLIPTextModel), tokenizer(), t5(), tokenizer()
    return FluxPipeline(scheduler, autoencoder(shift_factor=0.1), *encoders, transformer)


def stable_diffusion_3(dynamic: bool = False) -> StableDiffusion3Pipeline:
    """Three text encoders."""
    transformer = denoisers.sd3(qk_norm="rms_norm")
    small = [clip(CLIPTextModelWithProjection, WIDTH // 2) for _ in range(2)]
    encoders = small[0], tokenizer(), small[1], tokenizer(), t5(), tokenizer()
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=dynamic)
    return StableDiffusion3Pipeline(transformer, scheduler, autoencoder(shift_factor=0.1), *encoders)


def wan(**config: Any) -> WanPipeline:
    """32x32 videos of 5 frames: 2x4x4 latents."""
    text = UMT5EncoderModel(UMT5Config(**_t5_sizes()))
    vae = AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.5, 2.0, 2.5, 3.0],
    )
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    return WanPipeline(tokenizer(), text, vae, scheduler, denoisers.wan(cross_attn_norm=True), **config)


def tokenizer() -> T5Tokenizer:
    """It knows `WORDS`."""
    vocabulary = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", -20.0),
        ("▁", -6.0),
        *((f"▁{w}", -4.0) for w in WORDS),
    ]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=TOKENS)


def t5() -> T5EncoderModel:
    """A T5 text encoder of one layer."""
    return T5EncoderModel(T5Config(**_t5_sizes()))


def clip(model: Any, width: int = WIDTH) -> Any:
    """A CLIP text encoder for the same tokenizer; two layers, of which some pipelines read the first."""
    return model(
        CLIPTextConfig(
            vocab_size=len(tokenizer()),
            hidden_size=width,
            intermediate_size=32,
            projection_dim=width,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=TOKENS,
            pad_token_id=0,
            bos_token_id=2,
            eos_token_id=1,
        )
    ).eval()


def autoencoder(**config: Any) -> AutoencoderKL:
    """A factor of 2 between pictures and latents."""
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        layers_per_block=1,
        sample_size=16,
        mid_block_add_attention=False,
        **config,
    )


def flow_solver() -> DPMSolverMultistepScheduler:
    """DPM-Solver++ on the sigmas of flow matching."""
    return DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=2.0, lower_order_final=True
    )


def _t5_sizes() -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer()),
        "d_model": WIDTH,
        "d_kv": 8,
        "d_ff": 32,
        "num_layers": 1,
        "num_heads": 2,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
        "is_encoder_decoder": False,
    }
