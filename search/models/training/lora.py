"""A LoRA (arXiv:2106.09685) that recolours what a PixArt draws: trained in a minute, to test how schedules transfer.

The pipeline draws a few prompts, the colour channels of the pictures are exchanged, and the attention layers are
trained on the new pictures with the denoising objective of the pipeline.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from search.models.pipeline import Pipeline

LAYERS = ["to_q", "to_k", "to_v", "to_out.0"]


@torch.enable_grad()
def train(
    model: Pipeline,
    prompts: Sequence[str],
    folder: str | Path,
    rank: int = 4,
    steps: int = 150,
    rate: float = 2e-3,
    seed: int = 0,
) -> Path:
    """Train on recoloured pictures of these prompts and save the weights as peft does; the model stays as it was."""
    from peft import LoraConfig, get_peft_model

    seeds = [seed + i for i in range(len(prompts))]
    targets = recoloured(model, prompts, seeds)
    noise, sampler = model.target.noise, model.target.sampler
    _, arguments = model.begin(prompts, seeds, guidance_scale=1.0)  # what is trained is one branch, not guidance
    torch.manual_seed(seed)
    wrapped = get_peft_model(model.denoiser, LoraConfig(r=rank, lora_alpha=rank, target_modules=LAYERS))
    optimiser = torch.optim.AdamW([p for p in wrapped.parameters() if p.requires_grad], lr=rate)
    generator = torch.Generator().manual_seed(seed)
    count = min(8, len(prompts))
    for _ in range(steps):
        rows = torch.randperm(len(prompts), generator=generator)[:count]
        at = torch.randint(len(sampler["timesteps"]), (count,), generator=generator)
        sigma = torch.tensor(sampler["sigmas"])[at].numpy()
        alpha, spread = (torch.tensor(s, dtype=torch.float32).view(-1, 1, 1, 1) for s in noise.scales(sigma))
        clean, random = targets[rows], torch.randn(targets[rows].shape, generator=generator)
        wanted = {
            "flow": random - clean,
            "epsilon": random,
            "v_prediction": alpha * random - spread * clean,
        }[noise.prediction]
        given = _rows(arguments, rows) | {"timestep": torch.tensor(sampler["timesteps"])[at]}
        prediction = wrapped(alpha * clean + spread * random, **given)[0]
        loss = (prediction[:, : clean.shape[1]] - wanted).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    wrapped.save_pretrained(str(folder))
    wrapped.unload()
    for parameter in model.denoiser.parameters():
        parameter.requires_grad_(True)
    return Path(folder)


@torch.no_grad()
def recoloured(model: Pipeline, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
    """Latents [B, C, h, w] of the pipeline's pictures with red shown as green, green as blue and blue as red."""
    latents = model.sample(prompts, seeds)
    images = model.decode(latents, prompts, seeds).roll(1, dims=1)
    return model.pipe.vae.encode(images * 2 - 1).latent_dist.mode() * model.pipe.vae.config.scaling_factor


def _rows(value: Any, rows: Tensor) -> Any:
    if isinstance(value, dict):
        return {name: _rows(inner, rows) for name, inner in value.items()}
    return value[rows] if isinstance(value, Tensor) else value
