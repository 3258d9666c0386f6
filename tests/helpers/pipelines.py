"""Stock pipelines that run to latents in a tenth of a second, and schedules for them."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DiTPipeline, DPMSolverMultistepScheduler, PixArtAlphaPipeline
from torch import Tensor

from search import Schedule
from search.schedule.model.identity import denoiser_of, model_part
from search.testing import denoisers
from search.testing import pipelines as whole

WIDTH, TOKENS, CAPTION = denoisers.WIDTH, 5, 12


def pixart(blocks: int = 3, scheduler: Any = None, **config: Any) -> PixArtAlphaPipeline:
    """Without text encoder and VAE: `run` gives it embeddings and takes latents."""
    torch.manual_seed(0)
    wide = {"num_layers": blocks, "caption_channels": CAPTION, "out_channels": 8}
    transformer = lively(denoisers.pixart(**wide | config), 0.3)
    pipe = PixArtAlphaPipeline(None, None, None, transformer.eval(), scheduler or DPMSolverMultistepScheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def lively(module: torch.nn.Module, deviation: float) -> torch.nn.Module:
    """Weights so large that every action shows in the latents."""
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=deviation)
    return module


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


def dit() -> DiTPipeline:
    torch.manual_seed(0)
    pipe = whole.dit()
    lively(pipe.transformer, 0.2).eval()
    pipe.vae.eval()
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
