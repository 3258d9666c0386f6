"""The base class of adapters of diffusers pipelines: loading, noise by seeds, guidance as one batch, decoding."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from search.models.base import Model
from search.models.loading import load
from search.profile.target import Target
from search.schedule.model.identity import denoiser_of, model_part
from search.schedule.model.layers import layers_of
from search.schedule.model.nodes import Tree
from search.schedule.schedulers import GRIDDED, public_config, scheduler_class, scheduler_grid

Conditions = Mapping[str, Any]  # arguments of the denoiser that stay the same over a run


@dataclass(eq=False, repr=False)
class Pipeline(Model):
    """A pipeline, loaded.

    A subclass names the `classes` of pipelines that it accepts, and repeats their `__call__` line by line: `encode`
    returns the arguments of the denoiser that stay the same over a run, with both halves of guidance in one batch, and
    `denoise` calls it.

    Attributes:
        name: Name of the model's option.
        path: A folder, a hub id, or the name of a bundled pipeline; None is the family's bundled one.
        steps: Steps of the teacher.
        guidance_scale: Scale of guidance in the pipeline call.
        height: Of pictures, in pixels; None is the checkpoint's own.
        width: Of pictures, in pixels; None is the checkpoint's own.
        dtype: Name of torch's type of the weights.
        scheduler: Another scheduler class, which gets the configuration of the pipeline's scheduler.
        small: A smaller pipeline whose denoiser schedules can run at some steps, given like `path`.
        device: Where it runs.
    """

    name: str
    path: str | Path | None = None
    steps: int = 20
    guidance_scale: float = 4.0
    height: int | None = None
    width: int | None = None
    dtype: str = "float32"
    scheduler: str | None = None
    small: str | Path | None = None
    device: Any = "cpu"

    classes: ClassVar[tuple[str, ...]]
    bundled: ClassVar[str | None] = None  # the bundled pipeline that `path` None means
    whole_runs: ClassVar[bool] = True  # the pipeline calls scheduler.set_begin_index(0)

    def __post_init__(self) -> None:
        if (path := self.path or self.bundled) is None:
            raise ValueError(f"no {self.classes[0]} is bundled with the project; type model.path=<folder or hub id>")
        self.device = torch.device(self.device)
        self.pipe = load(path, self.name, self.classes, self._dtypes()).to(self.device)
        self.pipe.set_progress_bar_config(disable=True)
        self.others = {"S": self._smaller(self.small)} if self.small else {}
        self._set_scheduler()
        height, width = self._default_size()
        self.size = (self.height or height, self.width or width)
        # The class, the configuration and the grid of the scheduler are the sampler part of schedules.
        self._solver = {
            "class": type(self.pipe.scheduler).__name__,
            "config": public_config(self.pipe.scheduler),
        }
        self.target = Target(
            self.name,
            Tree.of(self.denoiser),
            self.steps,
            model_part(self.denoiser),
            self.shorter(self.steps),
            layers_of(self.denoiser),
            self._guidance(),
            others={
                letter: model_part(denoiser_of(pipe)) | {"name": Path(str(self.small)).name}
                for letter, pipe in self.others.items()
            },
        )

    @property
    def denoiser(self) -> nn.Module:
        return denoiser_of(self.pipe)

    @property
    def guided(self) -> bool:
        """Whether the pipeline runs classifier-free guidance."""
        return self.guidance_scale > 1

    @property
    def arguments(self) -> Mapping[str, Any]:
        return {
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance_scale,
            "height": self.size[0],
            "width": self.size[1],
        }

    def shorter(self, steps: int) -> dict[str, Any]:
        """The sampler part that plain diffusers runs with another number of steps."""
        timesteps, sigmas = scheduler_grid(self.pipe.scheduler, steps, **self._grid(steps))
        return {**self._solver, "timesteps": timesteps} | ({"sigmas": sigmas} if sigmas else {})

    @abstractmethod
    def encode(self, prompts: Sequence[str]) -> Conditions:
        """The denoiser's arguments for B prompts; they have 2B rows if guidance is one batch."""

    def noise(self, seeds: Sequence[int]) -> Tensor:
        return self._draw(seeds, self._shape(), self.denoiser.dtype)

    def begin(self, conditions: Conditions, noise: Tensor) -> Tensor:
        scheduler = self.pipe.scheduler
        steps = self.steps_to_run(self.steps)
        scheduler.set_timesteps(steps, device=self.device, **self._grid(steps))
        if self.whole_runs and hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)
        return noise * scheduler.init_noise_sigma if hasattr(scheduler, "init_noise_sigma") else noise

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        vae = self.pipe.vae
        scaled = latents.to(self.device, vae.dtype) / vae.config.scaling_factor
        if vae.config.shift_factor:
            scaled = scaled + vae.config.shift_factor
        return (vae.decode(scaled, return_dict=False)[0].float() / 2 + 0.5).clamp(0, 1)

    def stock(self, prompts: Sequence[str], seeds: Sequence[int], **arguments: Any) -> Any:
        return self._run(list(prompts), seeds, arguments).images

    def once(self) -> Tensor:
        """One step's denoiser calls for one picture, both halves of guidance, on which cost tables are counted."""
        t = self.pipe.scheduler.timesteps[0].to(self.device)
        return self.denoise(self.encode([""]), self.noise([0]), t)

    def _run(self, prompts: Sequence[Any], seeds: Sequence[int], arguments: Mapping[str, Any]) -> Any:
        """The output of the pipeline call."""
        steps = {"num_inference_steps": self.steps_to_run(self.steps)}
        return self.pipe(prompts, generator=_generators(seeds), **{**self.arguments, **steps, **arguments})

    def _draw(self, seeds: Sequence[int], shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Noise [B, *shape] as pipelines draw it from one generator per picture, on the CPU."""
        from diffusers.utils.torch_utils import randn_tensor

        return randn_tensor((len(seeds), *shape), generator=_generators(seeds), dtype=dtype).to(self.device)

    def _halves(self, empty: Tensor, conditional: Tensor) -> Tensor:
        """Rows of the batch as guidance needs them, unconditional first."""
        return torch.cat([empty, conditional]) if self.guided else conditional

    def _doubled(self, latents: Tensor) -> Tensor:
        return torch.cat([latents] * 2) if self.guided else latents

    def _guide(self, prediction: Tensor) -> Tensor:
        """Guided predictions [B, ...] of those of both halves [2B, ...]."""
        if not self.guided:
            return prediction
        without, conditional = prediction.chunk(2)
        return without + self.guidance_scale * (conditional - without)

    def _dtypes(self) -> Any:
        """The type of the weights, or types by component."""
        return getattr(torch, self.dtype)

    def _guidance(self) -> float:
        """The scale of classifier-free guidance; 1 means none."""
        return self.guidance_scale

    def _grid(self, steps: int) -> dict[str, Any]:
        """Further arguments that the pipeline gives to `set_timesteps`, besides steps and device."""
        return {}

    def _default_size(self) -> tuple[int, int]:
        """Height and width in pixels that the checkpoint was trained for."""
        side = self.denoiser.config.sample_size * self._factor
        return side, side

    def _shape(self) -> tuple[int, ...]:
        """Shape [C, h, w] of one picture's latents."""
        height, width = self.size
        return self.denoiser.config.in_channels, height // self._factor, width // self._factor

    @property
    def _factor(self) -> int:
        """Pixels per latent along each side."""
        return int(2 ** (len(self.pipe.vae.config.block_out_channels) - 1))

    def _smaller(self, path: str | Path) -> Any:
        """Another pipeline with this one's text encoder and autoencoder, so that only its denoiser is loaded."""
        denoiser = denoiser_of(self.pipe)
        shared = {k: v for k, v in self.pipe.components.items() if v is not denoiser and k != "scheduler"}
        return load(path, self.name, self.classes, self._dtypes(), **shared).to(self.device)

    def _set_scheduler(self) -> None:
        """Replace the scheduler if another class is given; ValueError if it cannot run given timesteps."""
        if self.scheduler and self.scheduler not in GRIDDED:
            raise ValueError(f"model.scheduler={self.scheduler!r}: choose from {', '.join(GRIDDED)}")
        if self.scheduler:
            self.pipe.scheduler = scheduler_class(self.scheduler).from_config(self.pipe.scheduler.config)  # type: ignore[attr-defined]
        if (name := type(self.pipe.scheduler).__name__) not in GRIDDED:
            raise ValueError(
                f"model={self.name} has a {name}, which cannot run given timesteps; type "
                f"model.scheduler=DPMSolverMultistepScheduler, or another of {', '.join(GRIDDED)}"
            )


def _generators(seeds: Sequence[int]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]
