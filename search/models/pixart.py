"""PixArt-alpha and -Sigma (arXiv:2310.00426, 2403.04692), and the bundled small ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from search.models.pipeline import Conditions, Pipeline


@dataclass(eq=False, repr=False)
class PixArt(Pipeline):
    """PixArtAlphaPipeline and PixArtSigmaPipeline, called without resolution bins and caption cleaning.

    Attributes:
        max_sequence_length: Tokens of a prompt for the T5 encoder.
    """

    name: str = "pixart"
    max_sequence_length: int = 16

    classes: ClassVar = ("PixArtAlphaPipeline", "PixArtSigmaPipeline")
    bundled: ClassVar = "pixart"

    @property
    def arguments(self) -> Mapping[str, Any]:
        return {
            **super().arguments,
            "use_resolution_binning": False,
            "clean_caption": False,
            "max_sequence_length": self.max_sequence_length,
        }

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Conditions:
        text, mask, empty, empty_mask = self.pipe.encode_prompt(
            list(prompts),
            True,
            negative_prompt="",
            device=self.device,
            clean_caption=False,
            max_sequence_length=self.max_sequence_length,
        )
        states = self._halves(empty, text)
        return {
            "encoder_hidden_states": states,
            "encoder_attention_mask": self._halves(empty_mask, mask),
            "added_cond_kwargs": self._micro_conditions(states),
        }

    @torch.no_grad()
    def denoise(self, conditions: Conditions, latents: Tensor, t: Tensor) -> Tensor:
        """PixArtAlphaPipeline.__call__ between encoding and the scheduler's step, line by line the same arithmetic."""
        x = self.pipe.scheduler.scale_model_input(self._doubled(latents), t)
        timestep = t[None].to(x.device).expand(len(x))
        prediction = self._guide(self.denoiser(x, timestep=timestep, **conditions, return_dict=False)[0])
        if self.denoiser.config.out_channels // 2 == latents.shape[1]:
            prediction = prediction.chunk(2, dim=1)[0]  # the other half is the learned variance
        return prediction

    def _micro_conditions(self, states: Tensor) -> dict[str, Tensor | None]:
        if not self.denoiser.use_additional_conditions:
            return {"resolution": None, "aspect_ratio": None}
        height, width = self.size
        size = torch.tensor([[height, width]]).repeat(len(states), 1)
        ratio = torch.tensor([[float(height / width)]]).repeat(len(states), 1)
        return {"resolution": size.to(states), "aspect_ratio": ratio.to(states)}
