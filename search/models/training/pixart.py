"""The bundled PixArt-alpha pipeline: a text-conditioned PixArtTransformer2DModel trained by flow matching."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
)
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from . import vae as autoencoder
from .emoji import BACKGROUNDS, EmojiSet, caption
from .loop import Recipe, train

RECIPE = Recipe(steps=5000, rate=1.5e-3, warmup=100, decay=0.7, weight_decay=0.01, ema=0.998)
BATCH = 64
WIDTH, BLOCKS, HEAD, TEXT_WIDTH, TOKENS = 128, 8, 32, 64, 16
# How much of the caption a training sample shows: dropped parts make the picture vary with the seed.
SHOWN = {"all": 0.55, "no style": 0.14, "no background": 0.14, "name": 0.07, "nothing": 0.10}


def fit(
    pictures: EmojiSet,
    vae: AutoencoderKL,
    work: Path,
    device: torch.device,
    out: Path,
    recipe: Recipe = RECIPE,
) -> float:
    """Train transformer and text encoder together, write the fp16 pipeline to `out`, return the loss.

    Flow matching: x_s = (1-s) x_0 + s n, target n - x_0 (arXiv:2210.02747); s is logit-normal(0.3, 1)
    with 15 % uniform (arXiv:2403.03206, eq. 19).
    """
    torch.manual_seed(recipe.seed)
    with torch.no_grad():
        images, grounds = autoencoder.pictures_on_backgrounds(pictures)
        latents = autoencoder.encode(vae, images, grounds, device).to(device) * vae.config.scaling_factor
    captions = shown_captions(pictures, grounds)
    every = sorted({text for texts in captions.values() for text in texts})
    tokenizer = build_tokenizer(every)
    tokens = tokenizer(every, padding="max_length", max_length=TOKENS, return_tensors="pt").to(device)
    row = {text: i for i, text in enumerate(every)}
    rows = torch.tensor([[row[text] for text in captions[shown]] for shown in SHOWN])
    chances = torch.tensor(list(SHOWN.values()))
    networks = torch.nn.ModuleDict(
        {"transformer": build_transformer(latents.shape[1]), "text": build_text_encoder(tokenizer)}
    ).to(device)

    def loss_at(step: int, generator: torch.Generator) -> torch.Tensor:
        index = torch.randint(len(latents), (BATCH,), generator=generator)
        shown = torch.multinomial(chances, BATCH, replacement=True, generator=generator)
        sigma = torch.sigmoid(torch.randn(BATCH, generator=generator) + 0.3)
        uniform = torch.rand(BATCH, generator=generator)
        sigma = torch.where(torch.rand(BATCH, generator=generator) < 0.15, uniform, sigma).clamp(1e-3, 0.999)
        noise = torch.randn((BATCH, *latents.shape[1:]), generator=generator).to(device)
        text, sigma, clean = rows[shown, index].to(device), sigma.to(device), latents[index.to(device)]
        blend = sigma[:, None, None, None]
        with torch.autocast(device.type, torch.bfloat16):
            used, inverse = torch.unique(text, return_inverse=True)
            mask = tokens.attention_mask[used]
            states = networks["text"](input_ids=tokens.input_ids[used], attention_mask=mask)[0]
            velocity = networks["transformer"](
                (1 - blend) * clean + blend * noise,
                states[inverse],
                sigma * 1000,
                encoder_attention_mask=mask[inverse].float(),
                return_dict=False,
            )[0]
        return (velocity.float() - (noise - clean)).square().mean()

    def export() -> None:
        parts = (tokenizer, networks["text"], vae, networks["transformer"], build_scheduler())
        save(PixArtAlphaPipeline(*parts), out)

    loss = train("pixart", networks, loss_at, recipe, work, export)
    export()
    return loss


def save(pipe: Any, out: Path) -> None:
    """Write a pipeline in fp16 safetensors; its networks are left in fp32."""
    pipe.save_pretrained(out)
    type(pipe).from_pretrained(out, torch_dtype=torch.float16, local_files_only=True).save_pretrained(out)
    for file in out.rglob("*.json"):
        data = json.loads(file.read_text(encoding="utf-8"))
        data.pop("_name_or_path", None)  # a path of the machine that it was trained on
        if "dtype" in data:  # transformers would load fp16 by it, while diffusers loads fp32 unless it is given a type
            data["dtype"] = "float32"
        file.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def build_transformer(channels: int) -> PixArtTransformer2DModel:
    """A PixArt transformer initialised for training from scratch (arXiv:2212.09748, 3.2)."""
    model = PixArtTransformer2DModel(
        num_attention_heads=WIDTH // HEAD,
        attention_head_dim=HEAD,
        in_channels=channels,
        out_channels=channels,
        num_layers=BLOCKS,
        cross_attention_dim=WIDTH,
        sample_size=16,
        patch_size=2,
        caption_channels=TEXT_WIDTH,
        use_additional_conditions=False,
    )
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and "scale_shift" not in name:
            torch.nn.init.xavier_uniform_(parameter)
        if name.endswith(".bias"):
            torch.nn.init.zeros_(parameter)
    torch.nn.init.normal_(model.adaln_single.linear.weight, std=0.02)
    torch.nn.init.zeros_(model.proj_out.weight)
    with torch.no_grad():
        for block in model.transformer_blocks:  # rows 2 and 5 are the gates: start half open
            block.scale_shift_table[[2, 5]] += 0.5
    return model


def build_text_encoder(tokenizer: T5Tokenizer) -> T5EncoderModel:
    """A T5 encoder of two layers and width 64, for the words of `tokenizer`."""
    return T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=TEXT_WIDTH,
            d_kv=16,
            d_ff=4 * TEXT_WIDTH,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
            pad_token_id=0,
            eos_token_id=1,
            decoder_start_token_id=0,
            is_encoder_decoder=False,
            use_cache=False,
        )
    )


def build_tokenizer(captions: list[str]) -> T5Tokenizer:
    """A word-level vocabulary; a word that is not in it is split into letters, whose embeddings were never trained."""
    words = sorted({word for text in captions for word in text.replace(",", " ").split()})
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0), ("▁", -6.0), (",", -3.0)]
    vocabulary += [(f"▁{word}", -4.0) for word in words] + [(letter, -9.0) for letter in letters]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=TOKENS)


def build_scheduler() -> DPMSolverMultistepScheduler:
    """DPM-Solver++ 2M (arXiv:2211.01095) on the sigmas of flow matching, shifted by 2."""
    return DPMSolverMultistepScheduler(
        num_train_timesteps=1000,
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=2.0,
        algorithm_type="dpmsolver++",
        solver_order=2,
        lower_order_final=True,
    )


def shown_captions(pictures: EmojiSet, grounds: torch.Tensor) -> dict[str, list[str]]:
    """For each entry of SHOWN the caption of every picture, in the order of `autoencoder.pictures_on_backgrounds`."""
    colours = list(BACKGROUNDS)
    drawings = list(zip(pictures.name, pictures.style, strict=True)) * len(BACKGROUNDS)
    full = [(name, style, colours[g]) for (name, style), g in zip(drawings, grounds.tolist(), strict=True)]
    return {
        "all": [caption(*parts) for parts in full],
        "no style": [caption(name, "", colour) for name, _, colour in full],
        "no background": [caption(name, style) for name, style, _ in full],
        "name": [caption(name) for name, _, _ in full],
        "nothing": [""] * len(full),
    }
