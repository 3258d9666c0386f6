"""Priors, models that read text inside of the denoiser, edits by description, masked tokens, spectrograms of notes."""

from typing import Any

import diffusers
import torch
from diffusers.configuration_utils import register_to_config

from tests.helpers.zoo import parts
from tests.helpers.zoo.base import Sample, assemble, entry, lively, noise, picture
from tests.helpers.zoo.images import flux2_vae
from tests.helpers.zoo.unets import movq

CALL = {"num_inference_steps": 4, "output_type": "latent"}
SIZE = {"height": 32, "width": 32}
TEXT = {"prompt_embeds": noise(1, 4, 16), "negative_prompt_embeds": noise(1, 4, 16, seed=8)}
ONES = torch.ones(1, 4, dtype=torch.long)
MASKS = {"prompt_embeds_mask": ONES, "negative_prompt_embeds_mask": ONES}
WORDS = {"prompt": "a red fox", "negative_prompt": "snow"}
HEADS = {"num_attention_heads": 2, "attention_head_dim": 8}


def flow(**config: Any) -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(**config)


@entry("PriorTransformer")
def kandinsky_prior() -> Sample:
    prior = diffusers.PriorTransformer(**HEADS, num_layers=2, embedding_dim=16, num_embeddings=16)
    unclip = {"variance_type": "fixed_small_log", "prediction_type": "sample", "clip_sample_range": 5.0}
    pipe = assemble(
        diffusers.KandinskyV22PriorPipeline,
        prior=lively(prior),
        image_encoder=parts.clip_vision(),
        text_encoder=parts.clip_text(projected=True),
        tokenizer=parts.tokenizer(),
        scheduler=diffusers.UnCLIPScheduler(**unclip),
    )
    return Sample(pipe, WORDS | {"num_inference_steps": 4}, "image_embeds", ("prior",))


@entry("PriorTransformer/shap-e")
def shap_e() -> Sample:
    """Weights of a small network that is a shape; two denoiser calls a step."""
    prior = diffusers.PriorTransformer(
        **HEADS,
        num_layers=2,
        embedding_dim=16,
        num_embeddings=4,
        additional_embeddings=0,
        time_embed_act_fn="gelu",
        norm_in_type="layer",
        encoder_hid_proj_type=None,
        added_emb_type=None,
        time_embed_dim=16,
        embedding_proj_dim=16,
        clip_embed_dim=32,
    )
    steps = {"beta_schedule": "exp", "prediction_type": "sample", "use_karras_sigmas": True, "clip_sample": True}
    pipe = assemble(
        diffusers.ShapEPipeline,
        prior=lively(prior),
        text_encoder=parts.clip_text(projected=True),
        tokenizer=parts.tokenizer(),
        scheduler=diffusers.HeunDiscreteScheduler(**steps, clip_sample_range=1.0),
    )
    return Sample(pipe, CALL | {"prompt": "a red fox", "num_inference_steps": 3}, denoisers=("prior",))


@entry("Transformer2DModel")
def vq_diffusion() -> Sample:
    """Tokens of a codebook: the denoiser gives their probabilities."""
    from diffusers.pipelines.deprecated.vq_diffusion.pipeline_vq_diffusion import (
        LearnedClassifierFreeSamplingEmbeddings as Learned,
    )

    transformer = diffusers.Transformer2DModel(
        **HEADS,
        num_layers=2,
        cross_attention_dim=16,
        attention_bias=True,
        sample_size=4,
        num_vector_embeds=9,
        activation_fn="geglu-approximate",
        num_embeds_ada_norm=100,
        norm_num_groups=4,
    )
    pipe = assemble(
        diffusers.VQDiffusionPipeline,
        transformer=lively(transformer),
        vqvae=movq(),
        text_encoder=parts.clip_text(),
        tokenizer=parts.tokenizer(),
        scheduler=diffusers.VQDiffusionScheduler(num_vec_classes=9),
        learned_classifier_free_sampling_embeddings=Learned(learnable=False),
    )
    return Sample(pipe, {"prompt": "a red fox", "num_inference_steps": 4, "output_type": "np"})


@entry("JoyImageEditTransformer3DModel")
def joy_edit() -> Sample:
    """The pipeline makes every size one of about a million pixels, which this VAE makes 8 by 8."""
    small = {"in_channels": 4, "hidden_size": 16, "num_attention_heads": 2, "text_dim": 16, "num_layers": 2}
    rope = {"patch_size": (1, 2, 2), "mlp_width_ratio": 2.0, "rope_dim_list": (2, 4, 2)}
    pipe = assemble(
        diffusers.JoyImageEditPipeline,
        transformer=lively(diffusers.JoyImageEditTransformer3DModel(**small | rope)),
        vae=parts.PoolingVae(),
        scheduler=flow(shift=4.0),
    )
    return Sample(pipe, CALL | SIZE | TEXT | MASKS | {"image": picture(32)})


@entry("BriaFibo2Transformer2DModel")
def bria_fibo2() -> Sample:
    """Six layers of a language model go in, some of them at later blocks."""
    small = {"in_channels": 4, "dim": 16, "n_layers": 3, "n_refiner_layers": 1, "n_heads": 2, "cap_feat_dim": 8}
    gist = {"injection_layer_ids": (1,), "perceiver_num_layers": 1, "min_num_gist_tokens": 2, "max_num_gist_tokens": 4}
    rope = {"gist_step": 2, "gist_min_text_len": 2, "gist_max_text_len": 8, "axes_dims": (4, 2, 2)}
    transformer = diffusers.BriaFibo2Transformer2DModel(**small | gist | rope, axes_lens=(64, 16, 16))
    given = {"transformer": lively(transformer), "vae": flux2_vae(), "scheduler": flow(use_dynamic_shifting=True)}
    text = {"prompt_embeds": noise(1, 2, 4, 8), "negative_prompt_embeds": noise(1, 2, 4, 8, seed=8)}
    masks = {name: value.bool() for name, value in MASKS.items()}
    return Sample(assemble(diffusers.BriaFibo2Pipeline, **given), CALL | SIZE | text | masks)


class ChatProcessor:
    """What Qwen-Image 2.1 asks of its processor before it is called."""

    tokenizer = parts.tokenizer(chat=True)

    def apply_chat_template(self, *messages: Any, **flags: Any) -> list[list[int]]:
        return [[1, 2, 3]]


@entry("QwenImage21Transformer2DModel")
def qwen_image_21() -> Sample:
    small = {"in_channels": 4, "out_channels": 4, "num_layers": 2, "context_in_dim": 16, "axes_dims_rope": (2, 2, 4)}
    given = {
        "transformer": lively(diffusers.QwenImage21Transformer2DModel(**HEADS | small)),
        "processor": ChatProcessor(),
        "scheduler": flow(use_dynamic_shifting=True),
    }
    pipe = assemble(diffusers.QwenImage21Pipeline, **given)
    return Sample(pipe, CALL | TEXT | MASKS | {"height": 64, "width": 64, "true_cfg_scale": 3.0})


@entry("DreamLiteUNetModel")
def dreamlite() -> Sample:
    """The picture to edit stands beside the one that is made."""
    unet = diffusers.DreamLiteUNetModel(
        sample_size=8,
        block_out_channels=(8, 16, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=16,
        attention_head_dim=4,
        ff_mult=2,
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=16,
        addition_embed_type="time",
    )
    vae = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(4, 4),
        decoder_block_out_channels=(4, 4),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )
    pipe = assemble(
        diffusers.DreamLiteMobilePipeline,
        unet=lively(unet),
        vae=vae,
        text_encoder=parts.qwen3(),
        tokenizer=parts.tokenizer(characters=True),
        scheduler=flow(use_dynamic_shifting=True),
    )
    return Sample(pipe, CALL | SIZE | {"prompt": "a red fox"}, denoisers=("unet",))


class Notes(diffusers.ModelMixin, diffusers.ConfigMixin):
    """In place of the encoders of notes and sound, which this release of transformers no longer runs."""

    @register_to_config
    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.table = torch.nn.Linear(inputs, 16)

    def forward(self, **given: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        values, seen = given.values()
        if not values.is_floating_point():
            values = torch.nn.functional.one_hot(values.long(), self.config.inputs).float()
        return self.table(values), seen


@entry("T5FilmDecoder")
def spectrogram_diffusion() -> Sample:
    """The spectrogram of some notes, and of what came before."""
    from diffusers.pipelines.deprecated.spectrogram_diffusion.pipeline_spectrogram_diffusion import (
        SpectrogramDiffusionPipeline,
    )

    small = {"d_model": 16, "dropout_rate": 0.0, "num_layers": 2, "num_heads": 2, "d_kv": 8, "d_ff": 16}
    pipe = SpectrogramDiffusionPipeline(
        notes_encoder=Notes(parts.VOCABULARY),
        continuous_encoder=Notes(128),
        decoder=lively(diffusers.T5FilmDecoder(**small, input_dims=128, targets_length=256)),
        scheduler=diffusers.DDPMScheduler(clip_sample=False),
        melgan=None,
    )
    call = {"input_tokens": [list(range(16))], "num_inference_steps": 3, "output_type": "mel"}
    return Sample(pipe, call, "audios", ("decoder",))


@entry("SanaWMTransformer3DModel")
def sana_wm() -> Sample:
    """The next frames along the path of a camera."""
    from tests.helpers.zoo.video import ltx2_parts

    transformer = diffusers.SanaWMTransformer3DModel(
        in_channels=4,
        num_layers=2,
        hidden_size=16,
        num_attention_heads=2,
        softmax_every_n=2,
        linear_head_dim=8,
        chunk_plucker_post_attn_blocks=2,
        chunk_plucker_channels=12,
        caption_channels=16,
    )
    given = {"transformer": lively(transformer), "vae": ltx2_parts()["vae"], "scheduler": flow(shift=3.0)}
    masks = {"prompt_attention_mask": ONES, "negative_prompt_attention_mask": ONES}
    path = torch.eye(4).repeat(5, 1, 1)
    path[:, 2, 3] = torch.arange(5) / 10
    camera = {"c2w": path, "intrinsics": torch.tensor([16.0, 16.0, 16.0, 16.0]).repeat(5, 1), "num_frames": 5}
    call = CALL | SIZE | TEXT | masks | camera | {"image": picture(32), "prompt": None}
    return Sample(assemble(diffusers.SanaWMPipeline, **given), call, "frames")
