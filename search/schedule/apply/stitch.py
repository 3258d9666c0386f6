"""Which denoiser runs at each step: a small one while only the layout is decided, then the large one.

T-Stitch (arXiv:2402.14167). A schedule names denoisers by capital letters; L is the pipeline's own. At a step of
another one the pipeline's call runs that one instead, on the same arguments: both read the same text states and predict
the same quantity of the same latents. So the scheduler notices nothing, and a multistep solver goes on with its memory
across a switch: what it remembers are estimates of the same quantity, only less exact ones.

What nodes keep is another matter: hidden states of two networks have nothing in common, and the difference of their
outputs is no derivative in time. A switch is a barrier: nothing from before it is read behind it.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import nn

from search.schedule.errors import ScheduleError
from search.schedule.model.identity import denoiser_of, fingerprint
from search.schedule.plan.tokens import OWN

# Entries of a denoiser's configuration that latents, text states and pipelines see from outside.
LATENTS = ("in_channels", "out_channels")
TEXT = ("caption_channels", "joint_attention_dim", "pooled_projection_dim", "text_dim", "encoder_hid_dim")
OTHERS = ("addition_embed_type", "class_embed_type", "guidance_embeds", "use_additional_conditions")
OUTSIDE = (*LATENTS, *TEXT, *OTHERS)
SIZED = ("sample_size",)  # another resolution, which `strict=False` accepts
OF_CLASS = {"UNet2DConditionModel": ("cross_attention_dim",), "DiTTransformer2DModel": ("num_embeds_ada_norm",)}
# Entries of a scheduler's configuration that say what its denoiser was trained to predict, and of which noise.
TRAINED = (
    "prediction_type",
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "rescale_betas_zero_snr",
)


class NamedDenoiser(Protocol):
    """What a schedule says of another denoiser: `ModelsPart.names` in the file."""

    @property
    def name(self) -> str: ...
    @property
    def class_name(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...


@dataclass
class DenoiserSwitch:
    """The other denoisers at work: `at` [T] is a letter per step, `calls` how often each one of them ran."""

    at: str
    denoisers: Mapping[str, nn.Module]
    calls: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(
        cls, at: str, names: Mapping[str, NamedDenoiser], given: Mapping[str, Any], pipe: Any, strict: bool = True
    ) -> "DenoiserSwitch":
        """From what `apply` was given: pipelines or bare denoisers by letter.

        ScheduleError where one is missing, is not what the schedule names, or cannot take the place of the pipeline's
        own; `strict` False accepts another resolution or configuration of the same class.
        """
        found: dict[str, nn.Module] = {}
        for letter in sorted(set(at) - {OWN}):
            if letter not in given:
                raise ScheduleError(_missing(letter, at, names[letter], given))
            other = given[letter]
            found[letter] = other if isinstance(other, nn.Module) else denoiser_of(other)
            _check_named(letter, found[letter], names[letter], strict)
            _check_fits(letter, found[letter], denoiser_of(pipe), strict)
            _check_scheduler(letter, getattr(other, "scheduler", None), pipe.scheduler)
        return cls(at, found, dict.fromkeys(found, 0))

    def denoiser(self, step: int) -> nn.Module | None:
        """What runs instead of the pipeline's own, or None."""
        return self.denoisers.get(self.at[step])

    def count(self, step: int) -> None:
        if (letter := self.at[step]) in self.calls:
            self.calls[letter] += 1


def _missing(letter: str, at: str, part: NamedDenoiser, given: Mapping[str, Any]) -> str:
    known = f"models has only {', '.join(map(repr, given))}; " if given else ""
    return (
        f"this schedule runs {part.name or 'another'} ({part.class_name}) as {letter} at {at.count(letter)} of "
        f"{len(at)} steps; {known}load its pipeline and type schedule.apply(pipe, models={{{letter!r}: small_pipe}})"
    )


def _check_named(letter: str, denoiser: nn.Module, part: NamedDenoiser, strict: bool) -> None:
    if (name := type(denoiser).__name__) != part.class_name:
        raise ScheduleError(f"models.names.{letter}.class is {part.class_name!r}, but models[{letter!r}] is a {name}")
    if strict and part.fingerprint and part.fingerprint != (found := fingerprint(denoiser)):
        raise ScheduleError(
            f"models.names.{letter}.fingerprint is {part.fingerprint!r}, but that of models[{letter!r}] is {found!r}: "
            f"another architecture than {part.name or 'the one'} that the schedule was made with; apply(pipe, "
            "models=…, strict=False) applies it all the same"
        )


def _check_fits(letter: str, denoiser: nn.Module, own: nn.Module, strict: bool) -> None:
    """Same arguments, same latents, same text states, in one place and type."""
    if denoiser is own:
        raise ScheduleError(f"models[{letter!r}] is the pipeline's own denoiser, which is {OWN}; give another one")
    both = (denoiser, own)
    taken, wanted = (list(inspect.signature(type(module).forward).parameters)[1:] for module in both)
    if taken != wanted:
        raise ScheduleError(
            f"models[{letter!r}] takes the arguments {', '.join(taken)}, but the pipeline's "
            f"{type(own).__name__} takes {', '.join(wanted)}; a denoiser is replaced by one that is called alike"
        )
    configs: list[Mapping[str, Any]] = [getattr(module, "config", {}) for module in both]
    for entry in (*OUTSIDE, *OF_CLASS.get(type(own).__name__, ()), *(SIZED if strict else ())):
        found, expected = (config.get(entry) for config in configs)
        if found != expected:
            raise ScheduleError(
                f"models[{letter!r}] has {entry} {found}, but the pipeline's own denoiser has {expected}; both must "
                "share latents and text states"
            )
    theirs, ours = (f"{p.dtype} on {p.device}" for p in (next(module.parameters()) for module in both))
    offloaded = any(getattr(module, "_hf_hook", None) is not None for module in both)
    if theirs != ours and not offloaded:
        raise ScheduleError(
            f"models[{letter!r}] is {theirs}, but the pipeline's own denoiser is {ours}; type "
            "small_pipe.to(pipe.device, pipe.dtype)"
        )


def _check_scheduler(letter: str, scheduler: Any, own: Any) -> None:
    """The same prediction of the same noise; nothing is known where a bare denoiser was given."""
    if scheduler is None:
        return
    theirs, ours = _trained(scheduler), _trained(own)
    for entry in theirs.keys() & ours.keys():
        if theirs[entry] != ours[entry]:
            raise ScheduleError(
                f"models[{letter!r}] was trained with {entry} {theirs[entry]}, but the pipeline's own denoiser with "
                f"{ours[entry]}; both must predict the same quantity of the same noise"
            )


def _trained(scheduler: Any) -> dict[str, Any]:
    config = scheduler.config
    flow = config.get("prediction_type") == "flow_prediction" or type(scheduler).__name__.startswith("FlowMatch")
    if flow:  # its betas mean nothing
        return {"prediction_type": "flow_prediction", "num_train_timesteps": config.get("num_train_timesteps")}
    return {entry: config[entry] for entry in TRAINED if entry in config}
