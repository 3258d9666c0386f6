"""Tiny VAEs, tokenizers and text encoders that several families share."""

from collections.abc import Sequence
from functools import reduce
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from diffusers.configuration_utils import register_to_config
from torch import nn

from tests.helpers.zoo.base import Sample


def vae(latent_channels: int = 4, levels: int = 2, **config: Any) -> Any:
    """An AutoencoderKL that halves its picture `levels - 1` times."""
    small = {
        "block_out_channels": (4,) * levels,
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "layers_per_block": 1,
        "latent_channels": latent_channels,
        "norm_num_groups": 2,
        "sample_size": 16,
    }
    return diffusers.AutoencoderKL(**small | config)


def flux_vae(latent_channels: int = 4) -> Any:
    """As FLUX has it: shifted latents, no quantisation convolutions."""
    return vae(latent_channels, use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.06, scaling_factor=1.5)


def wan_vae(z_dim: int = 4, kind: str = "AutoencoderKLWan", **config: Any) -> Any:
    """Frames by 4, height and width by 8; AutoencoderKLQwenImage takes the same arguments."""
    small = {
        "base_dim": 4,
        "z_dim": z_dim,
        "dim_mult": [1, 1, 1, 1],
        "num_res_blocks": 1,
        "temperal_downsample": [False, True, True],
        "latents_mean": [0.0] * z_dim,
        "latents_std": [1.0] * z_dim,
    }
    return getattr(diffusers, kind)(**small | config)


def tokenizer(chat: bool = False, characters: bool = False, **tokens: str) -> Any:
    """Words by whitespace, or single characters, as numbers below 64, without a file."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<unk>", "<s>", "</s>"] + [t for t in tokens.values() if t not in ("<pad>", "<unk>")]
    words = (
        special
        + list(" abcdefghijklmnopqrstuvwxyz") * characters
        + [f"w{i}" for i in range(20)]
        + ["a", "red", "fox", "in", "snow", "photo", "of", "the", "cat"]
    )
    numbers = {word: i for i, word in enumerate(dict.fromkeys(words))}
    table = Tokenizer(models.WordLevel(numbers, unk_token="<unk>"))
    alone = pre_tokenizers.Split(Regex("."), "isolated")
    table.pre_tokenizer = alone if characters else pre_tokenizers.WhitespaceSplit()
    table.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", numbers["<s>"]), ("</s>", numbers["</s>"])]
    )
    made = PreTrainedTokenizerFast(
        tokenizer_object=table,
        **{"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"} | tokens,
        model_max_length=512 if characters else 16,
    )
    if chat:
        made.chat_template = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}"
    return made


VOCABULARY = 64


def clip_text(width: int = 16, projected: bool = False, **config: Any) -> Any:
    """A CLIP text encoder of two layers."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    small = {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 16,
        "projection_dim": width,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "pad_token_id": 0,
    }
    kind = CLIPTextModelWithProjection if projected else CLIPTextModel
    return kind(CLIPTextConfig(**small | config)).eval()


def clip_vision(width: int = 16, size: int = 16, projected: bool = True) -> Any:
    """A CLIP image encoder of two layers: 4 patches and the class token."""
    from transformers import CLIPVisionConfig, CLIPVisionModel, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=size,
        patch_size=size // 2,
        projection_dim=width,
    )
    return (CLIPVisionModelWithProjection if projected else CLIPVisionModel)(config).eval()


def clip_pictures(size: int = 16) -> Any:
    """What scales pictures for `clip_vision`."""
    from transformers import CLIPImageProcessorPil

    return CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size})


def t5(width: int = 16, many_languages: bool = False) -> Any:
    """A T5 encoder of two layers, or UMT5's."""
    from transformers import T5Config, T5EncoderModel, UMT5Config, UMT5EncoderModel

    small = {
        "vocab_size": VOCABULARY,
        "d_model": width,
        "d_kv": width // 2,
        "d_ff": 2 * width,
        "num_layers": 2,
        "num_heads": 2,
    }
    if many_languages:
        return UMT5EncoderModel(UMT5Config(**small)).eval()
    return T5EncoderModel(T5Config(**small)).eval()


def modular(
    blocks: Any,
    given: dict[str, Any],
    call: dict[str, Any],
    without: tuple[str, ...] = ("text_encoder",),
    latents: str = "",
) -> Sample:
    """A sample of a modular pipeline, without its text encoder: the call gives embeddings.

    `without` names blocks that are left out, blocks within blocks after a dot.
    """
    made = blocks()
    for name in without:
        *above, last = name.split(".")
        reduce(lambda block, inner: block.sub_blocks[inner], above, made).sub_blocks.pop(last)
    pipe = made.init_pipeline()
    pipe.update_components(**given)
    silence(pipe._blocks)
    return Sample(pipe, call | {"output": latents.split(",") if latents else "latents"}, latents)


def silence(block: Any) -> None:
    """Every loop of a modular pipeline has a progress bar of its own."""
    if hasattr(block, "set_progress_bar_config"):
        block.set_progress_bar_config(disable=True)
    for inner in getattr(block, "sub_blocks", {}).values():
        silence(inner)


class PoolingVae(diffusers.ModelMixin, diffusers.ConfigMixin):
    """Halves pictures [N, 3, F, H, W] seven times in no time: means over 128 x 128 pixels, mixed to 4 channels."""

    temperal_downsample = (True,) * 7

    @register_to_config
    def __init__(
        self,
        z_dim: int = 4,
        latents_mean: Sequence[float] = (0.0,) * 4,
        latents_std: Sequence[float] = (1.0,) * 4,
        scale_factor_spatial: int = 128,
        scale_factor_temporal: int = 4,
    ) -> None:
        super().__init__()
        self.mix = nn.Conv3d(3, z_dim, 1)

    def encode(self, pictures: torch.Tensor) -> Any:
        means = self.mix(nn.functional.avg_pool3d(pictures, (1, 128, 128))) * 8
        return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: means, sample=lambda: means))


def qwen3(width: int = 16, causal: bool = False, **config: Any) -> Any:
    """A Qwen 3 language model of two layers."""
    from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3Model

    small = {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": width // 2,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 512,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "pad_token_id": 0,
    }
    return (Qwen3ForCausalLM if causal else Qwen3Model)(Qwen3Config(**small | config)).eval()
