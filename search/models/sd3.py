"""Stable Diffusion 3 and 3.5 (arXiv:2403.03206): joint attention of text and picture, flow matching."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from search.models.pipeline import Conditions, Pipeline


@dataclass(eq=False, repr=False)
class StableDiffusion3(Pipeline):
    """StableDiffusion3Pipeline without skip-layer guidance; guidance as one batch, unconditional half first.

    Attributes:
        max_sequence_length: Tokens of a prompt for the T5 encoder.
    """

    name: str = "sd3"
    guidance_scale: float = 7.0
    max_sequence_length: int = 256

    classes: ClassVar = ("StableDiffusion3Pipeline",)
    whole_runs: ClassVar = False

    @property
    def arguments(self) -> Mapping[str, Any]:
        return {**super().arguments, "max_sequence_length": self.max_sequence_length}

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Conditions:
        text, empty, pooled, empty_pooled = self.pipe.encode_prompt(
            list(prompts),
            None,
            None,
            device=self.device,
            do_classifier_free_guidance=self.guided,
            max_sequence_length=self.max_sequence_length,
        )
        return {
            "encoder_hidden_states": self._halves(empty, text),
            "pooled_projections": self._halves(empty_pooled, pooled),
        }

    @torch.no_grad()
    def denoise(self, conditions: Conditions, latents: Tensor, t: Tensor) -> Tensor:
        """StableDiffusion3Pipeline.__call__ between encoding and the scheduler's step, line by line."""
        x = self._doubled(latents)
        return self._guide(
            self.denoiser(hidden_states=x, timestep=t.expand(len(x)), **conditions, return_dict=False)[0]
        )

    def _grid(self, steps: int) -> dict[str, Any]:
        from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import calculate_shift

        config, patch = self.pipe.scheduler.config, self.denoiser.config.patch_size
        if not config.get("use_dynamic_shifting"):
            return {}
        _, height, width = self._shape()
        shift = calculate_shift(
            (height // patch) * (width // patch),
            config.get("base_image_seq_len", 256),
            config.get("max_image_seq_len", 4096),
            config.get("base_shift", 0.5),
            config.get("max_shift", 1.16),
        )
        return {"mu": shift}
