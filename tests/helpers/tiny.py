"""Pipelines of random weights, built in memory in a tenth of a second: 8x8 latents, blocks of width 16."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
)
from torch import Tensor

from search import Schedule
from search.schedule.model.identity import denoiser_of, model_part

WIDTH, TOKENS, CAPTION = 16, 5, 12


def pixart(blocks: int = 3, scheduler: Any = None, **config: Any) -> PixArtAlphaPipeline:
    """Without text encoder and VAE: `run` gives it embeddings and takes latents."""
    torch.manual_seed(0)
    transformer = PixArtTransformer2DModel(
        **{
            "num_attention_heads": 2,
            "attention_head_dim": WIDTH // 2,
            "num_layers": blocks,
            "cross_attention_dim": WIDTH,
            "caption_channels": CAPTION,
            "sample_size": 8,
            "norm_num_groups": 1,
            **config,
        }
    )
    for parameter in transformer.parameters():  # lively gates: every action shows in the latents
        torch.nn.init.normal_(parameter, std=0.3)
    pipe = PixArtAlphaPipeline(None, None, None, transformer.eval(), scheduler or DPMSolverMultistepScheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def embeddings(batch: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(7)
    text = torch.randn(1, TOKENS, CAPTION, generator=generator)
    empty = torch.randn(1, TOKENS, CAPTION, generator=generator)
    mask = torch.ones(1, TOKENS)
    mask[:, -1] = 0
    return {
        "prompt_embeds": text.repeat(batch, 1, 1) + torch.arange(batch).float()[:, None, None],
        "prompt_attention_mask": mask.repeat(batch, 1),
        "negative_prompt_embeds": empty.repeat(batch, 1, 1),
        "negative_prompt_attention_mask": mask.repeat(batch, 1),
    }


@torch.no_grad()
def run(pipe: Any, steps: int = 6, batch: int = 2, guidance: float = 3.0, size: int = 8, **arguments: Any) -> Tensor:
    """Final latents [batch, 4, size, size] of the stock pipeline."""
    return pipe(
        **embeddings(batch),
        negative_prompt=None,
        num_inference_steps=steps,
        guidance_scale=guidance,
        height=size * 8,
        width=size * 8,
        use_resolution_binning=False,
        generator=torch.Generator().manual_seed(1),
        output_type="latent",
        **arguments,
    ).images


def dit(blocks: int = 2) -> DiTPipeline:
    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=WIDTH // 2,
        in_channels=4,
        out_channels=8,
        num_layers=blocks,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=1000,
        norm_num_groups=1,
    )
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    vae = AutoencoderKL(block_out_channels=(4,), latent_channels=4, norm_num_groups=2, mid_block_add_attention=False)
    pipe = DiTPipeline(transformer.eval(), vae.eval(), DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def classes(pipe: DiTPipeline, steps: int = 6, guidance: float = 3.0) -> Tensor:
    """Pictures of two classes; DiT's pipeline decodes always."""
    generator = torch.Generator().manual_seed(1)
    images = pipe([3, 5], guidance, generator=generator, num_inference_steps=steps, output_type="pt").images
    return torch.as_tensor(images)


def content(pipe: Any, rules: Sequence[Sequence[str]] = (), steps: int | None = 6, **parts: Any) -> dict[str, Any]:
    """A schedule file's content for this pipeline; `axis` goes to the plan, other parts to the top."""
    axis = parts.pop("axis", "index")
    data = {"format": "schedule/1", "model": model_part(denoiser_of(pipe)), "steps": steps}
    if rules:
        data["plan"] = {"axis": axis, "rules": [list(rule) for rule in rules]}
    return {k: v for k, v in (data | parts).items() if v is not None}


def schedule(pipe: Any, rules: Sequence[Sequence[str]] = (), steps: int | None = 6, **parts: Any) -> Schedule:
    return Schedule.from_dict(content(pipe, rules, steps, **parts))


def traces(denoiser: torch.nn.Module) -> list[str]:
    """Instance attributes that a hook may have left on any module."""
    left = {"forward", "_diffusers_hook", "_old_forward", "_hf_hook"}
    return [f"{name}.{a}" for name, module in denoiser.named_modules() for a in left & set(module.__dict__)]
