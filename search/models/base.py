"""What a model adapter is: a loaded pipeline, and its denoising loop opened up."""

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
    """A pipeline that a search can run many times: prompts encoded once, noise drawn once."""

    name: str
    pipe: Any
    target: Target
    device: torch.device
    others: Mapping[str, Any] = MappingProxyType({})  # pipelines of smaller denoisers, by letters: see `target.others`

    @property
    @abstractmethod
    def denoiser(self) -> nn.Module:
        """The network that the schedules plan."""

    def apply(self, schedule: Schedule, **options: Any) -> Handle:
        """Apply a schedule to this pipeline; the other denoisers that it may name are brought along.

        `options` are those of `apply_document`.
        """
        given = {"corrections": schedule.corrections, "models": self.others, **options}
        return apply_document(schedule.document, self.pipe, **given)

    def costs(self) -> Costs:
        """Cost tables of the denoiser, and of the others as they run in its place."""
        target, others = self.target, {}
        for letter, other in self.others.items():
            schedule = Schedule.from_dict(target.schedule(target.stitched(letter * target.steps)))
            denoiser = denoiser_of(other)
            with self.apply(schedule):
                self.begin(self.encode([""]), self.noise([0]))  # a schedule is for calls in a run
                others[letter] = count_costs(denoiser, Tree.of(denoiser), target.steps, self.once)
        return replace(count_costs(self.denoiser, target.tree, target.steps, self.once), others=others)

    @abstractmethod
    def encode(self, prompts: Sequence[str]) -> Any:
        """Conditions for a list of prompts, to be handed to `sample`."""

    @abstractmethod
    def noise(self, seeds: Sequence[int]) -> Tensor:
        """Initial noise [B, C, h, w], one seed per picture: what the pipeline draws from these generators."""

    @abstractmethod
    def begin(self, conditions: Any, noise: Tensor) -> Tensor:
        """Set the scheduler's timesteps for a new run and return the latents [B, C, h, w] that it begins with."""

    @abstractmethod
    def denoise(self, conditions: Any, latents: Tensor, t: Tensor) -> Tensor:
        """The guided prediction [B, C, h, w] at timestep t, as the pipeline hands it to `scheduler.step`."""

    @torch.no_grad()
    def sample(self, conditions: Any, noise: Tensor) -> Tensor:
        """Final latents [B, C, h, w] by the pipeline's own arithmetic, under whatever schedule is applied."""
        latents = self.begin(conditions, noise)
        for t in self.pipe.scheduler.timesteps:
            _, latents = self.advance(conditions, latents, t)
        return latents

    def advance(self, conditions: Any, latents: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """One step of a run: the guided prediction at timestep t, and the latents that the scheduler makes of it."""
        scheduler = self.pipe.scheduler
        extra = {"eta": 0.0} if _takes_eta(type(scheduler)) else {}  # type: ignore[arg-type]
        prediction = self.denoise(conditions, latents, t)
        return prediction, scheduler.step(prediction, t, latents, **extra, return_dict=False)[0]

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] in [0, 1]."""

    @abstractmethod
    def stock(self, prompts: Sequence[str], seeds: Sequence[int], **arguments: Any) -> Any:
        """The same through the untouched pipeline call; `output_type="latent"` for latents."""

    @abstractmethod
    def once(self) -> Any:
        """One denoiser call for one picture, both CFG halves: what cost tables are counted on."""

    @abstractmethod
    def shorter(self, steps: int) -> dict[str, Any]:
        """The sampler part that plain diffusers runs with another number of steps."""

    @property
    @abstractmethod
    def arguments(self) -> Mapping[str, Any]:
        """Keyword arguments that production gives to the pipeline call to get what was searched."""


@cache
def _takes_eta(scheduler: type) -> bool:
    """Whether a class of schedulers has DDIM's argument; to look it up takes longer than a step of the solver."""
    return "eta" in inspect.signature(scheduler.step).parameters  # type: ignore[attr-defined]


def to_schedule(model: Model, parts: Mapping[str, Any]) -> Schedule:
    """The complete schedule for parts that a space decoded; all off is the teacher itself."""
    return Schedule.from_dict(model.target.schedule(parts))
