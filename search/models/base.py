"""The base class of model adapters: a loaded pipeline, and its denoising loop step by step."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from search.profile.costs import Costs
from search.profile.count import count_costs
from search.profile.target import Target
from search.schedule import Schedule
from search.schedule.apply.handle import Handle, apply_document
from search.schedule.model.identity import denoiser_of
from search.schedule.model.nodes import Tree


class Model(ABC):
    """A pipeline that a search can run many times, with prompts encoded once and noise drawn once.

    `sample` gives the same latents bit for bit as the untouched pipeline call, `stock`.

    Attributes:
        name: Name of the model's option.
        pipe: The pipeline.
        target: What spaces know of the model: nodes, steps, the teacher's sampler.
        device: Where it runs.
        others: Pipelines of smaller denoisers by their letters, see `target.others`.

    Example:
        >>> import search
        >>> model = search.load_model("pixart")  # doctest: +SKIP
        >>> latents = model.sample(model.encode(["red apple"]), model.noise([0]))  # doctest: +SKIP
        >>> model.decode(latents).shape  # doctest: +SKIP
        torch.Size([1, 3, 64, 64])
    """

    name: str
    pipe: Any
    target: Target
    device: torch.device
    others: Mapping[str, Any] = MappingProxyType({})

    @property
    @abstractmethod
    def denoiser(self) -> nn.Module:
        """The network whose calls schedules plan."""

    def apply(self, schedule: Schedule, **options: Any) -> Handle:
        """Apply a schedule to this pipeline, with the other denoisers that it names; use the result in a `with` block.

        `options` are those of `apply_document`. ScheduleError if the schedule cannot run here.
        """
        arguments = {"corrections": schedule.corrections, "models": self.others, **options}
        return apply_document(schedule.document, self.pipe, **arguments)

    def costs(self) -> Costs:
        """Count the cost tables of the denoiser, and of the smaller ones as they run in its place."""
        target, others = self.target, {}
        for letter, other in self.others.items():
            schedule = Schedule.from_dict(target.schedule(target.stitched(letter * target.steps)))
            denoiser = denoiser_of(other)
            with self.apply(schedule):
                self.begin(self.encode([""]), self.noise([0]))  # schedules act on calls within a run only
                others[letter] = count_costs(denoiser, Tree.of(denoiser), target.steps, self.once)
        return replace(count_costs(self.denoiser, target.tree, target.steps, self.once), others=others)

    @abstractmethod
    def encode(self, prompts: Sequence[str]) -> Any:
        """Conditions of B prompts, as `sample` and `denoise` take them."""

    @abstractmethod
    def noise(self, seeds: Sequence[int]) -> Tensor:
        """Initial noise [B, C, h, w], one seed per picture, as the pipeline draws it from these generators."""

    @abstractmethod
    def begin(self, conditions: Any, noise: Tensor) -> Tensor:
        """Set the scheduler's timesteps for a new run; returns its first latents [B, C, h, w]."""

    @abstractmethod
    def denoise(self, conditions: Any, latents: Tensor, t: Tensor) -> Tensor:
        """The guided prediction [B, C, h, w] at timestep t, as the pipeline gives it to `scheduler.step`."""

    @torch.no_grad()
    def sample(self, conditions: Any, noise: Tensor) -> Tensor:
        """Final latents [B, C, h, w] by the pipeline's arithmetic, with the schedule that is applied."""
        latents = self.begin(conditions, noise)
        for t in self.pipe.scheduler.timesteps:
            _, latents = self.advance(conditions, latents, t)
        return latents

    def advance(self, conditions: Any, latents: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """One step of a run: the guided prediction at timestep t, and the scheduler's next latents."""
        scheduler = self.pipe.scheduler
        extra = {"eta": 0.0} if _takes_eta(type(scheduler)) else {}  # type: ignore[arg-type]
        prediction = self.denoise(conditions, latents, t)
        return prediction, scheduler.step(prediction, t, latents, **extra, return_dict=False)[0]

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] in [0, 1] of final latents."""

    @abstractmethod
    def stock(self, prompts: Sequence[str], seeds: Sequence[int], **arguments: Any) -> Any:
        """Pictures of the untouched pipeline call; with `output_type="latent"` its latents."""

    @abstractmethod
    def once(self) -> Any:
        """One step's denoiser calls for one picture, both halves of guidance, on which cost tables are counted."""

    @abstractmethod
    def shorter(self, steps: int) -> dict[str, Any]:
        """The sampler part of a schedule for what plain diffusers runs with another number of steps."""

    @property
    @abstractmethod
    def arguments(self) -> Mapping[str, Any]:
        """Keyword arguments of the pipeline call that was searched; production has to use the same."""


@cache
def _takes_eta(scheduler: type) -> bool:
    """Whether a scheduler class has DDIM's argument `eta`; cached, because the look-up is slower than a step."""
    return "eta" in inspect.signature(scheduler.step).parameters  # type: ignore[attr-defined]


def to_schedule(model: Model, parts: Mapping[str, Any]) -> Schedule:
    """The complete schedule of parts that a space decoded; without parts it is the teacher itself."""
    return Schedule.from_dict(model.target.schedule(parts))
