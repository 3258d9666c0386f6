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

    def steps_to_run(self, steps: int) -> int:
        """How many steps to give to the scheduler: those of the applied schedule's timesteps, `steps` without any."""
        planned: int = getattr(self.pipe.scheduler, "planned_steps", steps)
        return planned

    def apply(self, schedule: Schedule, **options: Any) -> Handle:
        """Apply a schedule to this pipeline, with the other denoisers that it names; use the result in a `with` block.

        Args:
            schedule: The schedule.
            options: Those of `apply_document`, such as `compile` and `bits`.

        Returns:
            The handle, which removes the schedule at the end of the block.

        Raises:
            ScheduleError: The schedule cannot run here.
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
        """Conditions of prompts, as `sample` and `denoise` take them.

        Args:
            prompts: B texts; the empty one is the unconditional half of guidance.

        Returns:
            What the pipeline's text encoders give, with both halves of guidance where the model is guided.

        Raises:
            ValueError: The model does not accept a prompt, such as an unknown class name.
        """

    @abstractmethod
    def noise(self, seeds: Sequence[int]) -> Tensor:
        """Initial noise, as the pipeline draws it from one generator per picture.

        Args:
            seeds: B seeds; equal seeds give equal noise, whatever the others are.

        Returns:
            Noise [B, C, h, w], of standard deviation 1.
        """

    @abstractmethod
    def begin(self, conditions: Any, noise: Tensor) -> Tensor:
        """Begin a run: set the scheduler's timesteps, by the schedule that is applied.

        Args:
            conditions: What `encode` returned.
            noise: What `noise` returned.

        Returns:
            The first latents [B, C, h, w]: the noise in the scheduler's scale.
        """

    @abstractmethod
    def denoise(self, conditions: Any, latents: Tensor, t: Tensor) -> Tensor:
        """Call the denoiser once, or twice where the pipeline does so for guidance.

        Args:
            conditions: What `encode` returned.
            latents: The latents before this step [B, C, h, w].
            t: The timestep, a scalar of `scheduler.timesteps`.

        Returns:
            The guided prediction [B, C, h, w], as the pipeline gives it to `scheduler.step`.
        """

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
        """Call the pipeline itself, with its own loop.

        Args:
            prompts: B texts.
            seeds: B seeds of the noise.
            arguments: Arguments of the pipeline call, in place of those of `arguments`.

        Returns:
            B pictures in the form of `output_type`; with `output_type="latent"` latents [B, C, h, w].
        """

    @abstractmethod
    def once(self) -> Any:
        """One step's denoiser calls for one picture, both halves of guidance, on which cost tables are counted."""

    @abstractmethod
    def shorter(self, steps: int) -> dict[str, Any]:
        """The sampler part of a schedule for what plain diffusers runs with another number of steps.

        Args:
            steps: The number of steps, which may also exceed the teacher's.

        Returns:
            `class`, `config`, `timesteps` [steps] and, where the class has them, `sigmas` [steps + 1].
        """

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
