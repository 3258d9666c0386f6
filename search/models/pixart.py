"""PixArt-alpha and -Sigma (arXiv:2310.00426, 2403.04692), and the small one that ships with the project."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from search.models.base import Model
from search.schedule.apply import model_part
from search.schedule.nodes import Tree
from search.schedule.sampler import grid, public_config
from search.target import Target

BUNDLED = Path(__file__).parent / "bundled" / "pixart"


@dataclass(frozen=True)
class Conditions:
    """Text states [B, L, D] and masks [B, L] of prompts and of the empty prompt."""

    text: Tensor
    mask: Tensor
    empty: Tensor
    empty_mask: Tensor


class PixArt(Model):
    """Any PixArtAlphaPipeline or PixArtSigmaPipeline: a folder, a hub id, or None for the bundled one."""

    def __init__(
        self,
        name: str = "pixart",
        path: str | Path | None = None,
        steps: int = 20,
        guidance_scale: float = 4.0,
        height: int | None = None,
        width: int | None = None,
        dtype: str = "float32",
        max_sequence_length: int = 16,
        device: str = "cpu",
    ) -> None:
        self.name, self.steps, self.guidance_scale = name, steps, guidance_scale
        self.device, self.max_sequence_length = torch.device(device), max_sequence_length
        self.pipe = load(path, getattr(torch, dtype)).to(self.device)
        self.pipe.set_progress_bar_config(disable=True)
        size = self.denoiser.config.sample_size * self.pipe.vae_scale_factor
        self.height, self.width = height or size, width or size
        # Drawing from the scheduler as it is: the grid, the config and the class are the schedule's sampler part.
        timesteps, sigmas = grid(self.pipe.scheduler, steps)
        sampler: dict[str, Any] = {
            "class": type(self.pipe.scheduler).__name__,
            "config": public_config(self.pipe.scheduler),
        }
        sampler |= {"timesteps": timesteps} | ({"sigmas": sigmas} if sigmas else {})
        layers = {n: (m.out_features, m.in_features) for n, m in self.denoiser.named_modules() if type(m) is nn.Linear}
        self.target = Target(
            name, Tree.of(self.denoiser), steps, model_part(self.denoiser), sampler, layers, guidance_scale
        )

    @property
    def denoiser(self) -> nn.Module:
        return self.pipe.transformer

    @property
    def arguments(self) -> Mapping[str, Any]:
        return {
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance_scale,
            "height": self.height,
            "width": self.width,
            "use_resolution_binning": False,
            "clean_caption": False,
            "max_sequence_length": self.max_sequence_length,
        }

    def shorter(self, steps: int) -> dict[str, Any]:
        """The sampler part that plain diffusers runs with another number of steps."""
        timesteps, sigmas = grid(self.pipe.scheduler, steps)
        return {**self.target.sampler, "timesteps": timesteps} | ({"sigmas": sigmas} if sigmas else {})

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
        return Conditions(text, mask, empty, empty_mask)

    def noise(self, seeds: Sequence[int]) -> Tensor:
        factor = self.pipe.vae_scale_factor
        shape = (1, self.denoiser.config.in_channels, self.height // factor, self.width // factor)
        from diffusers.utils.torch_utils import randn_tensor

        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return randn_tensor((len(seeds), *shape[1:]), generator=generators, dtype=self.denoiser.dtype).to(self.device)

    def begin(self, conditions: Conditions, noise: Tensor) -> Tensor:
        scheduler = self.pipe.scheduler
        scheduler.set_timesteps(self.steps, device=self.device)
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)
        return noise * scheduler.init_noise_sigma

    @torch.no_grad()
    def denoise(self, conditions: Conditions, latents: Tensor, t: Tensor) -> Tensor:
        """PixArtAlphaPipeline.__call__ between encoding and the scheduler's step, line by line the same arithmetic."""
        guided = self.guidance_scale > 1
        text, mask = conditions.text, conditions.mask
        if guided:
            text, mask = torch.cat([conditions.empty, text]), torch.cat([conditions.empty_mask, mask])
        x = torch.cat([latents] * 2) if guided else latents
        x = self.pipe.scheduler.scale_model_input(x, t)
        prediction = self.denoiser(
            x,
            encoder_hidden_states=text,
            encoder_attention_mask=mask,
            timestep=t[None].to(x.device).expand(len(x)),
            added_cond_kwargs=self._micro_conditions(len(text), text),
            return_dict=False,
        )[0]
        if guided:
            without, conditional = prediction.chunk(2)
            prediction = without + self.guidance_scale * (conditional - without)
        if self.denoiser.config.out_channels // 2 == latents.shape[1]:
            prediction = prediction.chunk(2, dim=1)[0]  # the other half is the learned variance
        return prediction

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        vae = self.pipe.vae
        pictures = vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor, return_dict=False)[0]
        return (pictures.float() / 2 + 0.5).clamp(0, 1)

    def stock(self, prompts: Sequence[str], seeds: Sequence[int], **arguments: Any) -> Any:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return self.pipe(list(prompts), generator=generators, **{**self.arguments, **arguments}).images

    def once(self) -> Any:
        """One denoiser call for one picture, both CFG halves: what the cost tables are counted on."""
        conditions, noise = self.encode([""]), self.noise([0])
        text, mask = (
            torch.cat([conditions.empty, conditions.text]),
            torch.cat([conditions.empty_mask, conditions.mask]),
        )
        if self.guidance_scale <= 1:
            text, mask = conditions.text, conditions.mask
        x = torch.cat([noise] * (2 if self.guidance_scale > 1 else 1))
        return self.denoiser(
            x,
            encoder_hidden_states=text,
            encoder_attention_mask=mask,
            timestep=torch.full((len(x),), 500, device=x.device),
            added_cond_kwargs=self._micro_conditions(len(x), text),
            return_dict=False,
        )

    def _micro_conditions(self, batch: int, like: Tensor) -> dict[str, Tensor | None]:
        if not self.denoiser.use_additional_conditions:
            return {"resolution": None, "aspect_ratio": None}
        size = torch.tensor([[self.height, self.width]]).repeat(batch, 1)
        ratio = torch.tensor([[float(self.height / self.width)]]).repeat(batch, 1)
        return {"resolution": size.to(like), "aspect_ratio": ratio.to(like)}


def load(path: str | Path | None, dtype: torch.dtype) -> Any:
    """The pipeline of a folder or hub id; ValueError says what to type where it cannot be had."""
    from diffusers import DiffusionPipeline

    folder = BUNDLED if path is None else path
    try:
        with _quiet():
            pipe = DiffusionPipeline.from_pretrained(folder, torch_dtype=dtype)
    except Exception as error:  # hub, file and config errors of many kinds; all mean: not there
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"model.path={str(folder)!r} cannot be loaded: {reason}. Type model.path=<folder with "
            "model_index.json>, or a hub id while the network is there, or model=pixart for the bundled model"
        ) from None
    if not type(pipe).__name__.startswith("PixArt"):
        raise ValueError(
            f"model.path={str(folder)!r} is a {type(pipe).__name__}; model=pixart takes PixArtAlphaPipeline and "
            "PixArtSigmaPipeline"
        )
    return pipe


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and hints of the libraries while they load; our own bar says what goes on."""
    import diffusers
    import transformers

    libraries = (diffusers.utils.logging, transformers.utils.logging)
    kept = [library.get_verbosity() for library in libraries]
    for library in libraries:
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        for library, verbosity in zip(libraries, kept, strict=True):
            library.set_verbosity(verbosity)
            library.enable_progress_bar()
