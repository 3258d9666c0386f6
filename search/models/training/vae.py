"""The bundled AutoencoderKL: 64x64 pictures to 16x16 latents of 8 channels."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL

from .emoji import BACKGROUNDS, EmojiSet
from .loop import Recipe, train

RECIPE = Recipe(steps=6000, rate=2e-3, warmup=100, decay=1.0, ema=0.995)
CROPS = 0.55  # share of the steps that train on 32-pixel crops, four times cheaper than whole pictures


def build() -> AutoencoderKL:
    """Three resolutions, 64, 32 and 16, and latents of eight channels; no attention."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 64, 64),
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,  # attention would not let it train on crops
        scaling_factor=1.0,
    )


def fit(pictures: EmojiSet, work: Path, device: torch.device, recipe: Recipe = RECIPE) -> AutoencoderKL:
    """Train on L1 + L2 + gradient loss with slightly noised latents, then set the scaling factor."""
    torch.manual_seed(recipe.seed)
    vae = build().to(device, memory_format=torch.channels_last)

    def loss_at(step: int, generator: torch.Generator) -> torch.Tensor:
        crop = step < CROPS * recipe.steps
        x = _batch(pictures, 32 if crop else 16, crop, generator).to(device, memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16):
            mean = vae.encode(x).latent_dist.mean
            noise = torch.randn(mean.shape, generator=generator).to(device)
            y = vae.decode(mean + 0.05 * noise).sample
        y, error = y.float(), x - y.float()
        edges = sum((error.diff(dim=d)).abs().mean() for d in (-1, -2))
        return error.abs().mean() + error.square().mean() + 0.5 * edges + 1e-4 * mean.float().square().mean()

    train("vae", vae, loss_at, recipe, work)
    vae.eval()
    with torch.no_grad():
        spread = encode(vae, *pictures_on_backgrounds(pictures), device).std().item()
    vae.register_to_config(scaling_factor=1.0 / spread)
    return vae


def pictures_on_backgrounds(pictures: EmojiSet) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures [K*N, 3, 64, 64] of every drawing on every background, and the background index of each."""
    n, k = len(pictures.name), len(BACKGROUNDS)
    ground = torch.arange(k).repeat_interleave(n)
    return pictures.composite(torch.arange(n).repeat(k), ground), ground


def encode(vae: AutoencoderKL, images: torch.Tensor, _: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Latents [K*N, 8, 16, 16] on the CPU, not scaled, of what `pictures_on_backgrounds` returns."""
    return torch.cat([vae.encode(x.to(device)).latent_dist.mode().cpu() for x in images.split(64)])


def psnr(vae: AutoencoderKL, images: torch.Tensor, device: torch.device) -> float:
    """Mean reconstruction PSNR in dB over `images` in [-1, 1]."""
    with torch.no_grad():
        errors = [
            (vae.decode(vae.encode(x).latent_dist.mode()).sample.clamp(-1, 1) - x).square().mean((1, 2, 3)) / 4
            for x in images.to(device).split(64)
        ]
    return float(-10 * torch.cat(errors).log10().mean())


def _batch(pictures: EmojiSet, size: int, crop: bool, generator: torch.Generator) -> torch.Tensor:
    index = torch.randint(len(pictures.name), (size,), generator=generator)
    ground = torch.randint(len(BACKGROUNDS), (size,), generator=generator)
    x = pictures.composite(index, ground)
    if crop:
        top, left = torch.randint(0, 33, (2,), generator=generator).tolist()
        x = x[:, :, top : top + 32, left : left + 32]
    return x
