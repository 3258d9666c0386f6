"""Stable Diffusion 1 and 2 (arXiv:2112.10752), SDXL (2307.01952), and the bundled small UNet."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from search.models.pipeline import Conditions, Pipeline


@dataclass(eq=False, repr=False)
class StableDiffusion(Pipeline):
    """StableDiffusionPipeline: a UNet, guidance as one batch with the unconditional half first."""

    name: str = "sd"

    classes: ClassVar = ("StableDiffusionPipeline",)
    bundled: ClassVar[str | None] = "sd"
    whole_runs: ClassVar = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.denoiser.config.time_cond_proj_dim is not None:
            raise ValueError(
                f"model={self.name} takes the guidance scale as an input (time_cond_proj_dim); give model.path= a UNet "
                "without it, as those before consistency distillation are"
            )

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Conditions:
        text, empty = self.pipe.encode_prompt(list(prompts), self.device, 1, self.guided)
        return {"encoder_hidden_states": self._halves(empty, text)}

    @torch.no_grad()
    def denoise(self, conditions: Conditions, latents: Tensor, t: Tensor) -> Tensor:
        """StableDiffusionPipeline.__call__ between encoding and the scheduler's step, line by line."""
        x = self.pipe.scheduler.scale_model_input(self._doubled(latents), t)
        return self._guide(self.denoiser(x, t, **conditions, return_dict=False)[0])


@dataclass(eq=False, repr=False)
class StableDiffusionXL(StableDiffusion):
    """StableDiffusionXLPipeline: two text encoders, and the picture's size as a condition."""

    name: str = "sdxl"

    classes: ClassVar = ("StableDiffusionXLPipeline",)
    bundled: ClassVar[str | None] = None
    whole_runs: ClassVar = True

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Conditions:
        text, empty, pooled, empty_pooled = self.pipe.encode_prompt(
            list(prompts), device=self.device, do_classifier_free_guidance=self.guided
        )
        width = pooled.shape[-1] if self.pipe.text_encoder_2 is None else self.pipe.text_encoder_2.config.projection_dim
        ids = self.pipe._get_add_time_ids(self.size, (0, 0), self.size, text.dtype, width)
        states, added = self._halves(empty, text), self._halves(empty_pooled, pooled)
        time_ids = ids.to(self.device).repeat(len(states), 1)
        return {
            "encoder_hidden_states": states,
            "added_cond_kwargs": {"text_embeds": added, "time_ids": time_ids},
        }

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Pictures [B, 3, H, W]; an autoencoder in float16 runs in float32, where it does not overflow."""
        vae, dtype = self.pipe.vae, self.pipe.vae.dtype
        if dtype != torch.float16 or not vae.config.force_upcast:
            return super().decode(latents)
        vae.to(torch.float32)
        try:
            return super().decode(latents)
        finally:
            vae.to(dtype)
