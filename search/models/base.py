"""The base class of models: a pipeline whose own call is run, watched, ended early and continued."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from search.models.encoders import EncoderMemo
from search.models.watch import RunEnded, RunStep, watch_steps
from search.profile.costs import Costs
from search.profile.count import count_costs
from search.profile.target import Target
from search.schedule import Schedule
from search.schedule.apply.gaussian import Gaussian
from search.schedule.apply.handle import Handle, apply_document
from search.schedule.model.identity import denoiser_of, experts_of
from search.schedule.model.nodes import ROOT, Tree
from search.schedule.schedulers import grid_of_scheduler, public_config


class Model(ABC):
    """A pipeline that a search runs many times, always by calling it: what is measured is what it does in production.

    Attributes:
        name: Name of the model's option.
        pipe: The pipeline.
        target: What spaces know of the model: nodes, steps, the teacher's sampler.
        device: Where it runs.
        others: Pipelines of smaller denoisers, or a Gaussian, by their letters, see `target.others`.
        example: A prompt that can be run, for what depends on no prompt: timesteps, costs, times.
        one_by_one: Whether the pipeline takes no lists of prompts, so that several are run one after another.
        tuned_on: Names of the objectives that the weights were tuned on, such as rewards.

    Example:
        >>> import search
        >>> model = search.load_model("pixart")  # doctest: +SKIP
        >>> latents = model.sample(["red apple"], [0])  # doctest: +SKIP
        >>> model.decode(latents).shape  # doctest: +SKIP
        torch.Size([1, 3, 64, 64])
    """

    name: str
    pipe: Any
    target: Target
    device: Any
    others: Mapping[str, Any] = MappingProxyType({})
    example: str = ""
    one_by_one: bool = False
    tuned_on: Sequence[str] = ()
    _encoders: EncoderMemo | None = None

    @property
    def denoiser(self) -> nn.Module:
        """The network whose calls schedules plan; the first one where the pipeline has two experts."""
        return denoiser_of(self.pipe)

    @property
    def experts(self) -> tuple[nn.Module, ...]:
        """The denoisers of which one runs at each step, mostly one in all."""
        return experts_of(self.pipe)

    @property
    @abstractmethod
    def arguments(self) -> Mapping[str, Any]:
        """Keyword arguments of the pipeline call that was searched; production has to use the same."""

    @abstractmethod
    def call_arguments(self, prompts: Sequence[str], seeds: Sequence[int]) -> dict[str, Any]:
        """All keyword arguments of a call for B prompts and the seeds of their noise, `arguments` among them.

        Raises:
            ValueError: The model does not accept a prompt, such as an unknown class name.
        """

    @abstractmethod
    def decode(self, latents: Tensor, prompts: Sequence[str] = (), seeds: Sequence[int] = ()) -> Tensor:
        """Pictures of final latents.

        Args:
            latents: B final latents.
            prompts: What they are of; needed where the pipeline's decoding depends on it.
            seeds: Of their noise.

        Returns:
            Pictures [B, 3, H, W] in [0, 1].
        """

    def steps_to_run(self, steps: int) -> int:
        """How many steps to give to the pipeline: those of the applied schedule's timesteps, `steps` without any.

        A run from a picture makes fewer steps than it is given; with as many as the teacher makes it is given the same.
        """
        planned: int = getattr(self.pipe.scheduler, "planned_steps", steps)
        target = getattr(self, "target", None)
        return steps if target is None or planned == target.steps else planned

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
        arguments = {"tensors": schedule.tensors, "models": self.others, **options}
        return apply_document(schedule.document, self.pipe, **arguments)

    def add_gaussian(self, letter: str, gaussian: Gaussian) -> None:
        """Let schedules run the Gaussian of final latents under this letter, in the place of one that it had."""
        self.others = {letter: gaussian, **{k: v for k, v in self.others.items() if k != letter}}
        others = {k: v for k, v in self.target.others.items() if k != letter}
        self.target = replace(self.target, others={letter: gaussian.part(letter), **others})

    def costs(self) -> Costs:
        """Count the cost tables of the denoiser, and of the smaller ones as they run in its place."""
        target, others = self.target, {}
        for letter, other in self.others.items():
            if isinstance(other, Gaussian):
                macs = other.macs * (2 if target.guidance > 1 else 1)
                others[letter] = Costs(target.steps, {}, macs, {ROOT: 0}, weight_bytes=other.nbytes)
                continue
            schedule = Schedule.from_dict(target.schedule(target.stitched(letter * target.steps)))
            denoiser = denoiser_of(other)
            with self.apply(schedule):
                others[letter] = count_costs(denoiser, Tree.of(denoiser), target.steps, self.once)
        costs = count_costs(self.denoiser, target.tree, target.steps, self.once, self.experts[1:])
        return replace(costs, others=others)

    def sample(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        on_step: Callable[[RunStep], None] = lambda step: None,
        until: int | None = None,
        **arguments: Any,
    ) -> Tensor:
        """Final latents of a call of the pipeline, with the schedule that is applied.

        The call is ended after its last step, so that nothing is decoded; some calls make fewer steps than their
        scheduler has, and end by themselves.

        Args:
            prompts: B prompts.
            seeds: B seeds of the noise; equal seeds give equal noise, whatever the others are.
            on_step: Called after each step.
            until: The number of steps; None for all.
            **arguments: Arguments of the call, in place of those of `call_arguments`.

        Returns:
            Latents [B, ...] as the scheduler returned them last.

        Raises:
            ValueError: The scheduler made no step.
        """
        if self.one_by_one and len(prompts) > 1:
            pairs = zip(prompts, seeds, strict=True)
            return torch.cat([self.sample([prompt], [seed], on_step, until, **arguments) for prompt, seed in pairs])
        scheduler = self.pipe.scheduler
        last: list[Tensor] = []

        def watch(step: RunStep) -> None:
            last[:] = [step.latents]
            on_step(step)
            if step.number + 1 == (until or len(scheduler.timesteps) - step.first):
                raise RunEnded

        with watch_steps(scheduler, watch):
            self._run(self.call_arguments(prompts, seeds) | arguments, seeds)
        if not last:
            raise ValueError(
                f"the call of {type(self.pipe).__name__} made no step of its {type(scheduler).__name__}; a search "
                "needs pipelines that call pipe.scheduler.step"
            )
        return rows_of(last[0], len(seeds))

    def begin(
        self, prompts: Sequence[str], seeds: Sequence[int], **arguments: Any
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Call the pipeline up to the first call of the denoiser, which sets the scheduler's timesteps.

        Returns:
            The arguments and the keyword arguments of that call; empty where the denoiser was not called.
        """
        given: tuple[tuple[Any, ...], dict[str, Any]] = (), {}

        def end(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            nonlocal given
            given = args, kwargs
            raise RunEnded

        with ExitStack() as stack:
            for expert in self.experts:
                stack.callback(expert.register_forward_pre_hook(end, with_kwargs=True).remove)
            self._run(self.call_arguments(prompts, seeds) | arguments, seeds)
        return given

    def why_no_batches(self, prompts: Sequence[str]) -> str:
        """Why a call cannot be made for several prompts at once; "" where it can."""
        try:
            rows = [_rows(self.begin(some, range(len(some)))) for some in (prompts, prompts[:1])]
        except Exception as error:  # pipelines that take single prompts fail in many ways
            self.one_by_one = True
            return f"{type(error).__name__}: {error}".splitlines()[0][:200]
        if len(prompts) > 1 and rows[0] == rows[1]:  # a call without a prompt, or with embeddings of one
            self.one_by_one = True
            return f"for {len(prompts)} prompts the denoiser is given as many rows as for one"
        return ""

    def once(self) -> Tensor:
        """One step's denoiser calls for one picture, all branches of guidance, on which cost tables are counted."""
        return self.sample([self.example], [0], until=1)

    def shorter(self, steps: int) -> dict[str, Any]:
        """The sampler part of a schedule for what the pipeline itself runs with another number of steps.

        Args:
            steps: The number of steps, which may also exceed the teacher's.

        Returns:
            `class`, `config`, `timesteps` [steps] and, where the class has them, `sigmas` [steps + 1].
        """
        scheduler = self.pipe.scheduler
        seen: list[RunStep] = []
        self.sample([self.example], [0], seen.append, 1, num_inference_steps=steps)
        first = seen[0].first  # above 0 in runs from a picture
        timesteps, sigmas = grid_of_scheduler(scheduler)
        part = {"class": type(scheduler).__name__, "config": public_config(scheduler), "timesteps": timesteps[first:]}
        return part | ({"sigmas": sigmas[first:]} if sigmas else {})

    def stock(self, prompts: Sequence[str], seeds: Sequence[int], **arguments: Any) -> Any:
        """What a call of the pipeline returns, from the first thing to the last.

        Args:
            prompts: B prompts.
            seeds: B seeds of the noise.
            arguments: Arguments of the call, in place of those of `arguments`.
        """
        return self.pipe(**self.call_arguments(prompts, seeds) | arguments)

    def _run(self, arguments: Mapping[str, Any], seeds: Sequence[int]) -> Any:
        """Call the pipeline; None where the call was ended early.

        What a pipeline draws from the global generator, whatever generator it is given, is the same in every call.
        """
        if self._encoders is None:
            self._encoders = EncoderMemo(self.pipe)
        devices = [self.device] if torch.device(self.device).type == "cuda" else []
        try:
            with self._encoders.remembered(self.experts), torch.random.fork_rng(devices):
                torch.manual_seed(seeds[0])
                return self.pipe(**arguments)
        except RunEnded:
            if getattr(self.pipe, "_all_hooks", None):  # of offloading, which the end of a call resets
                self.pipe.maybe_free_model_hooks()
            return None


def _rows(given: tuple[tuple[Any, ...], dict[str, Any]]) -> int:
    """Rows of the denoiser's first argument, a tensor or a list of them; 0 where it was not called."""
    args, kwargs = given
    return len(next(iter([*args, *kwargs.values()]), ()))


def rows_of(latents: Tensor, count: int) -> Tensor:
    """Latents [count, ...]: the first half where a pipeline steps both halves of guidance alike (DiT)."""
    return latents[:count] if len(latents) == 2 * count else latents


def plain_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call that a file can hold, JSON data; pictures and tensors are left out."""
    plain = {}
    for name, value in arguments.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError):
            continue
        plain[name] = value
    return plain


def to_schedule(model: Model, parts: Mapping[str, Any]) -> Schedule:
    """The complete schedule of parts that a space decoded; without parts it is the teacher itself."""
    schedule = Schedule.from_dict(model.target.schedule(parts))
    names = schedule.models.names if schedule.models else ()
    given = {letter: other for letter, other in model.others.items() if letter in names and isinstance(other, Gaussian)}
    return schedule.with_tensors({k: v for letter, other in given.items() for k, v in other.tensors(letter).items()})
