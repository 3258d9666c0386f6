"""Which denoiser runs at each step: a small one at the first steps, which decide the layout, then the large one.

T-Stitch (arXiv:2402.14167). A schedule names denoisers by capital letters; L is the pipeline's own. At a step of
another one that one is called instead, on the same arguments: both read the same text states and predict the same
quantity of the same latents. So the scheduler runs unchanged, and a multistep solver keeps its history across a switch:
it consists of estimates of the same quantity, only less exact ones.

Stored values of nodes are not kept: hidden states of two networks are unrelated, and the difference of their outputs is
not a derivative in time. A switch is a barrier: values from before it are not read after it.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from search.schedule.apply.gaussian import Gaussian, GaussianDenoiser
from search.schedule.errors import ScheduleError
from search.schedule.model.identity import denoiser_of, fingerprint
from search.schedule.noise import Noise
from search.schedule.parts.gaussian import GAUSSIAN
from search.schedule.plan.tokens import OWN

# Entries of a denoiser's configuration that concern latents, text states and the pipeline.
LATENTS = ("in_channels", "out_channels")
TEXT = ("caption_channels", "joint_attention_dim", "pooled_projection_dim", "text_dim", "encoder_hid_dim")
OTHERS = ("addition_embed_type", "class_embed_type", "guidance_embeds", "use_additional_conditions")
INTERFACE = (*LATENTS, *TEXT, *OTHERS)
SIZED = ("sample_size",)  # another resolution, which `strict=False` accepts
OF_CLASS = {"UNet2DConditionModel": ("cross_attention_dim",), "DiTTransformer2DModel": ("num_embeds_ada_norm",)}
# Entries of a scheduler's configuration about its denoiser's training: the prediction, and the noise.
TRAINED = (
    "prediction_type",
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "rescale_betas_zero_snr",
)


class NamedDenoiser(Protocol):
    """The entry of another denoiser in a schedule file, `ModelsPart.names`."""

    @property
    def name(self) -> str: ...
    @property
    def class_name(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...


@dataclass
class DenoiserSwitch:
    """The other denoisers of a run: `at` [T] is a letter per step, `calls` how often each of them ran.

    `timesteps` gives those of the run's steps, which a Gaussian needs.
    """

    at: str
    denoisers: Mapping[str, nn.Module]
    calls: dict[str, int] = field(default_factory=dict)
    timesteps: Callable[[], Sequence[float]] = tuple

    @classmethod
    def of(
        cls, at: str, names: Mapping[str, NamedDenoiser], given: Mapping[str, Any], pipe: Any, strict: bool = True
    ) -> "DenoiserSwitch":
        """From the pipelines or bare denoisers that `apply` was given.

        Args:
            at: The letter of the denoiser of each step [T].
            names: The entries of the schedule file, by letter.
            given: Pipelines, denoisers or Gaussians, by letter.
            pipe: The pipeline that runs.
            strict: False accepts another resolution or configuration of the same class.

        Raises:
            ScheduleError: A denoiser is missing, is not the one that the schedule names, or cannot replace the
                pipeline's own.
        """
        denoisers: dict[str, nn.Module] = {}
        for letter in sorted(set(at) - {OWN}):
            if letter not in given:
                raise ScheduleError(_missing(letter, at, names[letter], given))
            source = given[letter]
            if isinstance(source, Gaussian):
                _check_gaussian(letter, source, names[letter])
                noise = Noise.of_scheduler(pipe.scheduler)
                denoisers[letter] = GaussianDenoiser(source, denoiser_of(pipe), noise, f"models.names.{letter}")
                continue
            denoisers[letter] = source if isinstance(source, nn.Module) else denoiser_of(source)
            _check_named(letter, denoisers[letter], names[letter], strict)
            _check_interface(letter, denoisers[letter], denoiser_of(pipe), strict)
            _check_scheduler(letter, getattr(source, "scheduler", None), pipe.scheduler)
        return cls(at, denoisers, dict.fromkeys(denoisers, 0))

    def denoiser(self, step: int) -> nn.Module | None:
        """The denoiser that runs instead of the pipeline's own, or None."""
        denoiser = self.denoisers.get(self.at[step])
        if isinstance(denoiser, GaussianDenoiser):
            denoiser.timestep = float(self.timesteps()[step])
        return denoiser

    def count(self, step: int) -> None:
        """Count a call of the denoiser of this step."""
        if (letter := self.at[step]) in self.calls:
            self.calls[letter] += 1


def gaussians_of(at: str, tensors: Mapping[str, Tensor]) -> dict[str, Gaussian]:
    """The Gaussians that a tensors file has for the steps, by letter."""
    found = {letter: Gaussian.read(letter, tensors) for letter in sorted(set(at) - {OWN})}
    return {letter: gaussian for letter, gaussian in found.items() if gaussian is not None}


def _check_gaussian(letter: str, gaussian: Gaussian, part: NamedDenoiser) -> None:
    digest = gaussian.digest(letter)
    if part.class_name != GAUSSIAN or part.fingerprint != digest:
        raise ScheduleError(
            f"models.names.{letter} is a {part.class_name} with fingerprint {part.fingerprint!r}, but the Gaussian "
            f"that is given has {digest!r}: it was fitted to other pictures; leave it out, the schedule's own is in "
            "its .safetensors file"
        )


def _missing(letter: str, at: str, part: NamedDenoiser, given: Mapping[str, Any]) -> str:
    if part.class_name == GAUSSIAN:
        return (
            f"the numbers of models.names.{letter}, a {GAUSSIAN}, were not read; load the schedule from its file with "
            "Schedule.load(path), the .safetensors beside it"
        )
    given_letters = f"models has only {', '.join(map(repr, given))}; " if given else ""
    return (
        f"this schedule runs {part.name or 'another'} ({part.class_name}) as {letter} at {at.count(letter)} of "
        f"{len(at)} steps; {given_letters}load its pipeline and type "
        f"schedule.apply(pipe, models={{{letter!r}: small_pipe}})"
    )


def _check_named(letter: str, denoiser: nn.Module, part: NamedDenoiser, strict: bool) -> None:
    if (name := type(denoiser).__name__) != part.class_name:
        raise ScheduleError(f"models.names.{letter}.class is {part.class_name!r}, but models[{letter!r}] is a {name}")
    if strict and part.fingerprint and part.fingerprint != (fingerprint_here := fingerprint(denoiser)):
        raise ScheduleError(
            f"models.names.{letter}.fingerprint is {part.fingerprint!r}, but that of models[{letter!r}] is "
            f"{fingerprint_here!r}: "
            f"another architecture than {part.name or 'the one'} that the schedule was made with; apply(pipe, "
            "models=…, strict=False) applies it all the same"
        )


def _check_interface(letter: str, denoiser: nn.Module, own_denoiser: nn.Module, strict: bool) -> None:
    """Raise ScheduleError where two denoisers differ in arguments, latents, text states, device or type."""
    if denoiser is own_denoiser:
        raise ScheduleError(f"models[{letter!r}] is the pipeline's own denoiser, which is {OWN}; give another one")
    both = (denoiser, own_denoiser)
    taken, wanted = (list(inspect.signature(type(module).forward).parameters)[1:] for module in both)
    if taken != wanted:
        raise ScheduleError(
            f"models[{letter!r}] takes the arguments {', '.join(taken)}, but the pipeline's "
            f"{type(own_denoiser).__name__} takes {', '.join(wanted)}; the other denoiser must take the same arguments"
        )
    configs: list[Mapping[str, Any]] = [getattr(module, "config", {}) for module in both]
    for entry in (*INTERFACE, *OF_CLASS.get(type(own_denoiser).__name__, ()), *(SIZED if strict else ())):
        value, expected = (config.get(entry) for config in configs)
        if value != expected:
            raise ScheduleError(
                f"models[{letter!r}] has {entry} {value}, but the pipeline's own denoiser has {expected}; both must "
                "share latents and text states"
            )
    theirs, ours = (f"{p.dtype} on {p.device}" for p in (next(module.parameters()) for module in both))
    offloaded = any(getattr(module, "_hf_hook", None) is not None for module in both)
    if theirs != ours and not offloaded:
        raise ScheduleError(
            f"models[{letter!r}] is {theirs}, but the pipeline's own denoiser is {ours}; type "
            "small_pipe.to(pipe.device, pipe.dtype)"
        )


def _check_scheduler(letter: str, scheduler: Any, own_scheduler: Any) -> None:
    """Raise ScheduleError where schedulers differ in prediction or noise; a bare denoiser has none to compare."""
    if scheduler is None:
        return
    theirs, ours = _trained(scheduler), _trained(own_scheduler)
    for entry in theirs.keys() & ours.keys():
        if theirs[entry] != ours[entry]:
            raise ScheduleError(
                f"models[{letter!r}] was trained with {entry} {theirs[entry]}, but the pipeline's own denoiser with "
                f"{ours[entry]}; both must predict the same quantity of the same noise"
            )


def _trained(scheduler: Any) -> dict[str, Any]:
    config = scheduler.config
    flow = config.get("prediction_type") == "flow_prediction" or type(scheduler).__name__.startswith("FlowMatch")
    if flow:  # its betas are not used
        return {"prediction_type": "flow_prediction", "num_train_timesteps": config.get("num_train_timesteps")}
    return {entry: config[entry] for entry in TRAINED if entry in config}
