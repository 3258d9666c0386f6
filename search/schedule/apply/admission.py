"""Whether a schedule may be applied to a pipeline as it is now."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from search.schedule.apply.calls import parameter_names
from search.schedule.apply.monitor import OutputMonitor
from search.schedule.apply.tampering import check_caches
from search.schedule.document import Document
from search.schedule.errors import ScheduleError
from search.schedule.model.identity import fingerprint
from search.schedule.model.nodes import Tree

HOOK = "diffusion-schedule-search"  # our hook on a node
LAYER_HOOK = f"{HOOK}: layer"  # on a layer at few bits, which may be a node as well
# Arguments whose values a denoiser adds between the blocks of a stack.
BETWEEN = ("controlnet_block_samples", "controlnet_single_block_samples", "block_controlnet_hidden_states")


def check_denoiser(denoiser: nn.Module) -> None:
    """Raise ScheduleError where the denoiser is compiled, patched or cached, which the hooks do not work with."""
    check_free(denoiser)
    compiled = hasattr(denoiser, "_orig_mod") or any(
        getattr(module, "_compiled_call_impl", None) is not None
        or hasattr(module.forward, "_torchdynamo_orig_callable")
        for module in denoiser.modules()
    )
    if compiled:
        raise ScheduleError(
            "the denoiser is compiled, and a schedule inside of compiled code would be traced again at every "
            "step; apply it to the bare pipeline with schedule.apply(pipe, compile=True)"
        )
    owner = next(cls for cls in type(denoiser).__mro__ if "forward" in vars(cls))  # possibly a base class
    if (source := type(denoiser).forward.__module__) != owner.__module__:
        raise ScheduleError(f"{type(denoiser).__name__}.forward was replaced by one of {source}; undo that patch first")
    modules = list(denoiser.named_modules())
    check_caches(denoiser, modules, "conflicts with the schedule")
    for name, module in modules:
        if getattr(module, "_chunk_size", None) is not None:
            raise ScheduleError(f"{name} runs its feed-forward in chunks; call disable_forward_chunking() first")


def check_free(denoiser: nn.Module) -> None:
    """Raise ScheduleError where a schedule is already applied to a denoiser, or another cache is enabled on it."""
    registry = getattr(denoiser, "_diffusers_hook", None)
    if registry is not None and registry.get_hook(HOOK) is not None:
        raise ScheduleError("a schedule is already applied to this denoiser; call .remove() on it first")
    check_caches(denoiser, [], "conflicts with the schedule")


def check_experts(experts: Sequence[nn.Module], document: Document) -> None:
    """Raise ScheduleError where one cannot be hooked, or a part of the document is for pipelines of one denoiser."""
    for expert in experts:
        check_denoiser(expert)
    if len(experts) > 1 and (document.models or document.batched_steps):
        part = "a part models" if document.models else "steps that are computed in one batch"
        raise ScheduleError(
            f"this schedule has {part}, and this pipeline has two experts, of which it chooses one at each step; "
            "leave that out"
        )


def check_model(document: Document, denoiser: nn.Module, tree: Tree, strict: bool) -> None:
    """Raise ScheduleError where a document is for another denoiser; not `strict`: of another class or shape."""
    model = document.model
    if model.class_name != tree.model_class:
        raise ScheduleError(f"model.class is {model.class_name!r}, but the pipeline's denoiser is a {tree.model_class}")
    if model.stacks != tree.shape:
        raise ScheduleError(
            f"model.stacks is {shorten(model.stacks)}, but this {tree.model_class} has {shorten(tree.shape)}"
        )
    names = parameter_names(type(denoiser))
    for key in ("sample", "text"):
        argument = (model.contract or {}).get(key)
        if argument is not None and argument not in names and "kwargs" not in names:
            raise ScheduleError(
                f"model.contract.{key} is {shorten(argument)!r}, which is not an argument of {tree.model_class}; its "
                f"arguments are {', '.join(names)}"
            )
    if strict and model.fingerprint and model.fingerprint != (fingerprint_here := fingerprint(denoiser)):
        raise ScheduleError(
            f"model.fingerprint is {model.fingerprint!r}, but this denoiser's is {fingerprint_here!r}: another "
            "architecture or resolution; apply(pipe, strict=False) applies the schedule all the same"
        )


def shorten(value: Any) -> str:
    """A value as text of at most 200 characters."""
    text = str(value)
    return text if len(text) <= 200 else f"{text[:200]}…"


def check_arguments(strict: Any, compile: Any, bits: Any, models: Any, guard: Any) -> None:
    """Raise ScheduleError where an argument of `Schedule.apply` is of a wrong type."""
    for name, value, valid, wanted in (
        ("strict", strict, isinstance(strict, bool), "True or False"),
        ("compile", compile, compile is None or isinstance(compile, bool) or callable(compile), "True or a function"),
        ("bits", bits, isinstance(bits, str), "'simulate' or 'torchao'"),
        ("models", models, models is None or isinstance(models, Mapping), "pipelines by letter, {'S': small_pipe}"),
        ("guard", guard, isinstance(guard, bool | OutputMonitor), "True or False"),
    ):
        if not valid:
            raise ScheduleError(f"{name}={value!r:.60} is not valid; give {wanted}")
