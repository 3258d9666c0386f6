"""Wan 2.1 and 2.2, text to video (arXiv:2503.20314), with one transformer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from search.models.pipeline import Conditions, Pipeline

SHOWN = 4  # frames of a video that objectives see


@dataclass(eq=False, repr=False)
class Wan(Pipeline):
    """WanPipeline; latents [B, C, frames, h, w] in float32. Guidance is two calls, the conditional one first.

    Attributes:
        num_frames: Frames of a video, one more than a multiple of the autoencoder's factor.
        max_sequence_length: Tokens of a prompt.

    Raises:
        ValueError: The pipeline has two transformers, or the number of frames does not fit the autoencoder.
    """

    name: str = "wan"
    guidance_scale: float = 5.0
    num_frames: int = 81
    max_sequence_length: int = 512

    classes: ClassVar = ("WanPipeline",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pipe.transformer_2 is not None:
            raise ValueError(
                f"model.path={str(self.path)!r} has two transformers, one for each part of a run; model={self.name} "
                "takes pipelines with one, such as Wan-AI/Wan2.1-T2V-1.3B-Diffusers or Wan-AI/Wan2.2-TI2V-5B-Diffusers"
            )
        every = self.pipe.vae_scale_factor_temporal
        if self.num_frames % every != 1:
            near = max(1, round((self.num_frames - 1) / every) * every + 1)
            raise ValueError(
                f"model.num_frames={self.num_frames}: the autoencoder makes 1 frame and then {every} at a time; "
                f"type model.num_frames={near}"
            )

    @property
    def arguments(self) -> Mapping[str, Any]:
        return {
            **super().arguments,
            "num_frames": self.num_frames,
            "max_sequence_length": self.max_sequence_length,
        }

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Conditions:
        """Text states of the prompts and, with guidance, of the empty prompt; [B, L, D] each."""
        text, empty = self.pipe.encode_prompt(
            prompt=list(prompts),
            do_classifier_free_guidance=self.guided,
            max_sequence_length=self.max_sequence_length,
            device=self.device,
        )
        states = {"text": text} | ({"empty": empty} if self.guided else {})
        return {name: state.to(self.denoiser.dtype) for name, state in states.items()}

    def noise(self, seeds: Sequence[int]) -> Tensor:
        return self._draw(seeds, self._shape(), torch.float32)

    @torch.no_grad()
    def denoise(self, conditions: Conditions, latents: Tensor, t: Tensor) -> Tensor:
        """WanPipeline.__call__ between encoding and the scheduler's step, line by line."""
        x = latents.to(self.denoiser.dtype)
        timestep = t.expand(len(x))
        if self.pipe.config.expand_timesteps:  # one for every token
            rows = torch.ones(x.shape[2:], device=x.device)[:, ::2, ::2] * t
            timestep = rows.flatten()[None].expand(len(x), -1)
        prediction = self._call(x, timestep, conditions["text"])
        if not self.guided:
            return prediction
        without = self._call(x, timestep, conditions["empty"])
        return without + self.guidance_scale * (prediction - without)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Film strips [B, 3, H, 4 W]: frames from the first to the last, evenly spaced, from left to right.

        One picture for a video keeps scores one for a prompt; each frame weighs the same.
        """
        vae = self.pipe.vae
        latents = latents.to(self.device, vae.dtype)
        mean, std = (
            torch.tensor(values).view(1, -1, 1, 1, 1).to(latents)
            for values in (vae.config.latents_mean, vae.config.latents_std)
        )
        video = vae.decode(latents / (1 / std) + mean, return_dict=False)[0].float()  # [B, 3, F, H, W]
        last = video.shape[2] - 1
        shown = [video[:, :, round(i * last / (SHOWN - 1))] for i in range(SHOWN)]
        return (torch.cat(shown, dim=-1) / 2 + 0.5).clamp(0, 1)

    def stock(self, prompts: Sequence[str], seeds: Sequence[int], **arguments: Any) -> Any:
        return self._run(list(prompts), seeds, arguments).frames

    def _call(self, x: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        return self.denoiser(hidden_states=x, timestep=timestep, encoder_hidden_states=text, return_dict=False)[0]

    def _dtypes(self) -> Any:
        """The autoencoder stays in float32, as its authors run it."""
        return {"default": super()._dtypes(), "vae": torch.float32}

    def _default_size(self) -> tuple[int, int]:
        return 480, 832

    def _shape(self) -> tuple[int, ...]:
        """Shape [C, frames, h, w] of one video's latents."""
        factor, every = self.pipe.vae_scale_factor_spatial, self.pipe.vae_scale_factor_temporal
        frames = (self.num_frames - 1) // every + 1
        return self.denoiser.config.in_channels, frames, self.size[0] // factor, self.size[1] // factor
