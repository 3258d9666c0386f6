"""A PixArt pipeline of random weights, small enough to search in a test, and its adapter."""

from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
)
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from search.models.pixart import PixArt

WORDS = ("red", "apple", "blue", "boat", "style", "3d", "flat")


def save_tiny(folder: Path, blocks: int = 3, scheduler: Any = None) -> Path:
    """Write a pipeline of 8x8 latents, `blocks` blocks of width 16."""
    torch.manual_seed(0)
    vocabulary = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", -20.0),
        ("▁", -6.0),
        *((f"▁{w}", -4.0) for w in WORDS),
    ]
    tokenizer = T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=8)
    text = T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=16,
            d_kv=8,
            d_ff=32,
            num_layers=1,
            num_heads=2,
            pad_token_id=0,
            eos_token_id=1,
            decoder_start_token_id=0,
            is_encoder_decoder=False,
        )
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        layers_per_block=1,
        sample_size=16,
        mid_block_add_attention=False,
    )
    transformer = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        num_layers=blocks,
        cross_attention_dim=16,
        sample_size=8,
        patch_size=2,
        caption_channels=16,
        use_additional_conditions=False,
    )
    scheduler = scheduler or DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=2.0, lower_order_final=True
    )
    PixArtAlphaPipeline(tokenizer, text, vae, transformer, scheduler).save_pretrained(folder)
    return folder


@cache
def tiny_folder() -> Path:
    return save_tiny(Path(mkdtemp()) / "tiny")


def tiny_model(steps: int = 6, **arguments: object) -> PixArt:
    """A fresh adapter; tests that change the pipeline do not meet each other."""
    return PixArt(path=tiny_folder(), steps=steps, max_sequence_length=8, **arguments)  # type: ignore[arg-type]
