"""FLUX.1 dev and schnell, and the bundled small one: flow matching, guidance as an input."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from search.models.pipeline import Conditions, Pipeline


@dataclass(eq=False, repr=False)
class Flux(Pipeline):
    """FluxPipeline; latents are packed, [B, h w / 4, 4 C].

    There is no unconditional branch: `guidance_scale` is an argument of the denoiser, without effect if the checkpoint
    has no such embedding (schnell).

    Attributes:
        max_sequence_length: Tokens of a prompt for the T5 encoder.
    """

    name: str = "flux"
    guidance_scale: float = 3.5
    max_sequence_length: int = 16

    classes: ClassVar = ("FluxPipeline",)
    bundled: ClassVar = "flux"

    @property
    def arguments(self) -> Mapping[str, Any]:
        return {**super().arguments, "max_sequence_length": self.max_sequence_length}

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Conditions:
        text, pooled, text_ids = self.pipe.encode_prompt(
            prompt=list(prompts), prompt_2=None, device=self.device, max_sequence_length=self.max_sequence_length
        )
        _, height, width = self._shape()
        places = self.pipe._prepare_latent_image_ids(len(text), height // 2, width // 2, self.device, text.dtype)
        scale = None
        if self.denoiser.config.guidance_embeds:
            scale = torch.full([1], self.guidance_scale, device=self.device, dtype=torch.float32).expand(len(text))
        return {
            "encoder_hidden_states": text,
            "pooled_projections": pooled,
            "txt_ids": text_ids,
            "img_ids": places,
            "guidance": scale,
        }

    def noise(self, seeds: Sequence[int]) -> Tensor:
        drawn = super().noise(seeds)
        return self.pipe._pack_latents(drawn, *drawn.shape)

    @torch.no_grad()
    def denoise(self, conditions: Conditions, latents: Tensor, t: Tensor) -> Tensor:
        """FluxPipeline.__call__ between encoding and the scheduler's step, line by line."""
        timestep = t.expand(len(latents)).to(latents.dtype)
        return self.denoiser(hidden_states=latents, timestep=timestep / 1000, **conditions, return_dict=False)[0]

    def decode(self, latents: Tensor) -> Tensor:
        return super().decode(self.pipe._unpack_latents(latents, *self.size, self._factor))

    def _guidance(self) -> float:
        return 1.0

    def _grid(self, steps: int) -> dict[str, Any]:
        from diffusers.pipelines.flux.pipeline_flux import calculate_shift

        config = self.pipe.scheduler.config
        _, height, width = self._shape()
        shift = calculate_shift(
            height * width // 4,
            config.get("base_image_seq_len", 256),
            config.get("max_image_seq_len", 4096),
            config.get("base_shift", 0.5),
            config.get("max_shift", 1.15),
        )
        if config.get("use_flow_sigmas"):
            return {"mu": shift}
        return {"sigmas": np.linspace(1.0, 1 / steps, steps), "mu": shift}

    def _default_size(self) -> tuple[int, int]:
        """The size of the autoencoder; FluxPipeline's default of 128 latents per side is for FLUX.1 only."""
        side = self.pipe.vae.config.sample_size
        return side, side

    def _shape(self) -> tuple[int, ...]:
        """Shape [C, h, w] before packing; h and w are even."""
        height, width = (side // (2 * self._factor) * 2 for side in self.size)
        return self.denoiser.config.in_channels // 4, height, width
