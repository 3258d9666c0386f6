"""Any pipeline of diffusers as a model: loading, the arguments of its call, decoding by the pipeline itself."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor
from torch.utils._pytree import tree_map_only

from search.models.base import Model
from search.models.loading import load_any
from search.models.pictures import drawn_latents, output_at, pictures_of
from search.models.prompts import prompt_arguments
from search.models.watch import index_of_timestep, replaced_method, replaced_step
from search.observe.contract import observe
from search.profile.target import Target
from search.schedule import Schedule
from search.schedule.errors import ScheduleError
from search.schedule.model.contracts import CONTRACTS, Contract
from search.schedule.model.identity import denoiser_of, model_part
from search.schedule.model.layers import layers_of
from search.schedule.model.nodes import Tree
from search.schedule.schedulers import GRIDDED, renoises, scheduler_class, step_arguments

TYPED = ("guidance_scale", "height", "width", "max_sequence_length", "num_frames")  # arguments with a name of their own


@dataclass(eq=False, repr=False)
class Pipeline(Model):
    """A pipeline of diffusers, run by its own call.

    Attributes:
        name: Name of the model's option.
        path: A folder, a hub id, or the name of a bundled pipeline.
        steps: `num_inference_steps` of the pipeline call; None is the pipeline's default, as in all that follow.
        guidance_scale: Scale of guidance in the pipeline call.
        height: Of pictures, in pixels.
        width: Of pictures, in pixels.
        max_sequence_length: Tokens of a prompt.
        num_frames: Frames of a video.
        call: Further arguments of the pipeline call.
        output: What of the pipeline's output is scored, as `output_at` reads it, such as `audio` or `samples.0`; None
            is the first thing. What is no picture, video or sound is drawn like latents.
        dtype: Name of torch's type of the weights.
        vae_dtype: Another type for the autoencoder.
        scheduler: Another scheduler class, which gets the configuration of the pipeline's scheduler.
        small: A smaller pipeline whose denoiser schedules can run at some steps, given like `path`.
        tuned_on: Objectives that the weights were tuned on, `("clip",)`, which a search should not trust alone.
        device: Where it runs.
        pipe: The pipeline itself, in place of `path`.
        example: A prompt that can be run.
        without_pictures: Why latents are drawn in place of pictures; "" where the pipeline makes pictures of them.

    Raises:
        ValueError: The pipeline cannot be loaded, or takes other arguments, or returns nothing of the name `output`.
    """

    name: str
    path: str | Path | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    height: int | None = None
    width: int | None = None
    max_sequence_length: int | None = None
    num_frames: int | None = None
    call: Mapping[str, Any] = field(default_factory=dict)
    output: str | None = None
    dtype: str = "float32"
    vae_dtype: str | None = None
    scheduler: str | None = None
    small: str | Path | None = None
    tuned_on: Sequence[str] = ()
    device: Any = "cpu"
    pipe: Any = None
    example: str = ""

    def __post_init__(self) -> None:
        self.device = torch.device(self.device)
        if self.pipe is None:
            if self.path is None:
                raise ValueError(f"model={self.name} needs a pipeline; type model.path=<folder or hub id>")
            self.pipe = load_any(self.path, self._dtypes()).to(self.device)
        else:
            self.device = torch.device(getattr(self.pipe, "_execution_device", None) or self.pipe.device)
        if hasattr(self.pipe, "set_progress_bar_config"):
            self.pipe.set_progress_bar_config(disable=True)
        self._check_arguments()
        self.others = {"S": self._smaller(self.small)} if self.small else {}
        self._set_scheduler()
        self._outputs: dict[Any, Any] = {}  # zeros like what the denoiser returns, by shapes of its input
        self.without_pictures, self._decoded = "", False
        self.steps = self.steps or self.call.get("num_inference_steps") or self._default("num_inference_steps") or 20
        self.target = self._describe()
        if self.output:  # a wrong one is noticed before anything is searched
            self._decode(self.once(), [self.example], [0])

    @cached_property
    def parameters(self) -> tuple[str, ...]:
        """Names of the arguments of the pipeline's call."""
        return tuple(inspect.signature(type(self.pipe).__call__).parameters)[1:]

    @property
    def _takes_any_argument(self) -> bool:
        """Whether the call takes arguments that it does not name, as that of a modular pipeline does."""
        parameters = inspect.signature(type(self.pipe).__call__).parameters.values()
        return any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters)

    @property
    def arguments(self) -> Mapping[str, Any]:
        typed = {name: value for name in TYPED if (value := getattr(self, name)) is not None}
        return {**typed, **self.call, "num_inference_steps": self.steps}

    def call_arguments(self, prompts: Sequence[str], seeds: Sequence[int]) -> dict[str, Any]:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        latent = {"output_type": "latent"} if "output_type" in self.parameters else {}
        return {
            **latent,
            **self.arguments,
            **prompt_arguments(self.pipe, self.parameters, prompts),
            "num_inference_steps": self.steps_to_run(self.arguments["num_inference_steps"]),
            "generator": generators[0] if len(generators) == 1 else generators,
        }

    @torch.no_grad()
    def decode(self, latents: Tensor, prompts: Sequence[str] = (), seeds: Sequence[int] = ()) -> Tensor:
        prompts, seeds = list(prompts) or [self.example] * len(latents), list(seeds) or [0] * len(latents)
        if self.without_pictures:
            return drawn_latents(latents)
        if self.one_by_one and len(latents) > 1:
            rows = zip(latents.split(1), prompts, seeds, strict=True)
            return torch.cat([self.decode(row, [prompt], [seed]) for row, prompt, seed in rows])
        try:
            return self._decode(latents, prompts, seeds)
        except Exception as error:  # pipelines that return something else fail in many ways
            if self._decoded or self.output:
                raise
            self.without_pictures = f"{type(error).__name__}: {error}"
            return drawn_latents(latents)

    def _decode(self, latents: Tensor, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        """What the pipeline itself makes of final latents; nothing of the run before is computed."""
        arguments = self.call_arguments(prompts, seeds)
        if arguments.get("output_type") == "latent":
            arguments["output_type"] = "pt"
        with self._answered_denoiser(), self._ending_with(latents):
            output = output_at(self._run(arguments, seeds), self.output or "")
        pictures = pictures_of(output, other_tensors=bool(self.output))
        if len(pictures) != len(latents):
            raise ValueError(f"the pipeline returns {len(pictures)} pictures for {len(latents)} latents")
        self._decoded = True
        return pictures

    @property
    def _what(self) -> str:
        return f"model.path={str(self.path)!r}" if self.path else f"this {type(self.pipe).__name__}"

    def _dtypes(self) -> Any:
        """The type of the weights, or types by component."""
        dtype = getattr(torch, self.dtype)
        return {"default": dtype, "vae": getattr(torch, self.vae_dtype)} if self.vae_dtype else dtype

    def _check_arguments(self) -> None:
        """ValueError for an argument that the pipeline's call does not take."""
        for name in self.arguments:
            if name not in self.parameters and not self._takes_any_argument:
                key = f"model.{name}" if name in TYPED else f"model.call.{name}"
                value = f"{key}={self.arguments[name]!r}"
                raise ValueError(
                    f"{value:.120}: {type(self.pipe).__name__} takes no such argument; leave it out, "
                    f"{key}=null; it takes {', '.join(self.parameters)}"
                )

    def _smaller(self, path: str | Path) -> Any:
        """Another pipeline with this one's text encoder and autoencoder, so that only its denoiser is loaded."""
        denoiser = denoiser_of(self.pipe)
        shared = {k: v for k, v in self.pipe.components.items() if v is not denoiser and k != "scheduler"}
        return load_any(path, self._dtypes(), **shared).to(self.device)

    def _set_scheduler(self) -> None:
        """Replace the scheduler if another class is given."""
        if self.scheduler and self.scheduler not in GRIDDED:
            raise ValueError(f"model.scheduler={self.scheduler!r}: choose from {', '.join(GRIDDED)}")
        if self.scheduler:
            self.pipe.scheduler = scheduler_class(self.scheduler).from_config(self.pipe.scheduler.config)  # type: ignore[attr-defined]

    def _describe(self) -> Target:
        """What spaces know of the pipeline: seen in calls of it."""
        contract = self._contract()
        sampler, guidance = self._first_step()
        others = {
            letter: model_part(denoiser_of(pipe)) | {"name": Path(str(self.small)).name}
            for letter, pipe in self.others.items()
        }
        return Target(
            self.name,
            Tree.of(self.denoiser, contract),
            len(sampler["timesteps"]),
            model_part(self.denoiser, contract),
            self._usable(sampler, contract),
            layers_of(self.denoiser),
            guidance,
            others=others,
            left_out=len(self.pipe.scheduler.timesteps) - len(sampler["timesteps"]),
            renoises=renoises(self.pipe.scheduler),
        )

    def _first_step(self) -> tuple[dict[str, Any], float]:
        """The sampler part of the teacher, and the scale of classifier-free guidance, 1 for none, by running one step.

        It guides where its denoiser runs more than one branch for one picture.
        """
        rows: list[int] = []

        def count(_: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            rows.append(len(next(iter([*args, *kwargs.values()]))))

        hook = self.denoiser.register_forward_pre_hook(count, with_kwargs=True)
        try:
            sampler = self.shorter(self.arguments["num_inference_steps"])
        finally:
            hook.remove()
        scale = self.arguments.get("guidance_scale", self._default("guidance_scale"))
        return sampler, float(scale) if scale and sum(rows) > 1 else 1.0

    def _default(self, name: str) -> Any:
        """The default of an argument of the pipeline's call; None where it has none."""
        parameter = inspect.signature(type(self.pipe).__call__).parameters.get(name)
        return None if parameter is None or parameter.default is parameter.empty else parameter.default

    def _usable(self, sampler: Mapping[str, Any], contract: Contract | None) -> Mapping[str, Any]:
        """The sampler part of the teacher where a schedule can bring it; {} where the pipeline keeps its own."""
        if sampler["class"] not in GRIDDED:
            return {}
        part = {"format": "schedule/1", "model": model_part(self.denoiser, contract), "sampler": sampler}
        try:
            with self.apply(Schedule.from_dict(part | {"steps": len(sampler["timesteps"])})):
                self.once()
        except ScheduleError:  # such as pipelines that always give timesteps of their own
            return {}
        return sampler

    def _contract(self) -> Contract | None:
        """The contract of a denoiser whose class has none here, as one watched call shows it."""
        if type(self.denoiser).__name__ in CONTRACTS:
            return None
        call = self.call_arguments([self.example], [0]) | {"num_inference_steps": self.steps}
        observed = {each.denoiser.module: each.contract for each in observe(self.pipe, call).contracts}
        for expert in self.experts:
            if expert in observed:  # a run from a picture may begin at the steps of the second one
                return observed[expert]
        raise ValueError(f"{self._what}: its {type(self.denoiser).__name__} was not called at the scheduler's steps")

    @contextmanager
    def _ending_with(self, latents: Tensor) -> Iterator[None]:
        """No step of the scheduler is computed: the last one returns these latents, the others what they are given."""
        scheduler, done = self.pipe.scheduler, -1

        def step(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            nonlocal done
            given = step_arguments(type(scheduler), args, kwargs)
            done = index_of_timestep(scheduler, given["timestep"]) if done < 0 else done
            done += 1
            value = sample = given["sample"]
            if done == len(scheduler.timesteps):
                rows = [latents] * 2 if len(sample) == 2 * len(latents) else [latents]
                value = torch.cat(rows).to(sample.device, sample.dtype)
            return (value, value) if not given.get("return_dict", True) else SchedulerOutput(prev_sample=value)

        with replaced_step(scheduler, step):
            yield

    @contextmanager
    def _answered_denoiser(self) -> Iterator[None]:
        """Each expert returns zeros; for input of new shapes it runs once, so that their form is known."""

        def answer(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            hidden = next(iter([*args, *kwargs.values()]))
            key = getattr(hidden, "shape", None), kwargs.get("return_dict", True)
            if key not in self._outputs:
                self._outputs[key] = tree_map_only(Tensor, torch.zeros_like, original(*args, **kwargs))
            return tree_map_only(Tensor, torch.clone, self._outputs[key])

        with ExitStack() as stack:
            for expert in self.experts:
                stack.enter_context(replaced_method(expert, "forward", partial(answer, expert.forward)))
            yield
