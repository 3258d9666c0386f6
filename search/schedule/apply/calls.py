"""Arguments of a block's call by name."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from search.schedule.apply.outputs import argument_of_call
from search.schedule.values import Value


def skipped_output(name: str, names: Sequence[str], skipped: Sequence[str] | None, *args: Any, **kwargs: Any) -> Value:
    """What stands for a skipped component: zeros like these arguments, or its first argument as it is.

    `names` are those of all its arguments; `name` is the component's, for errors.
    """
    given = dict(zip(names, args, strict=False)) | kwargs
    if not skipped:
        hidden = next(iter(given.values()))
        return (hidden,) if given.get("return_dict") is False else hidden
    zeros = [torch.zeros_like(argument_of_call(name, wanted, given)) for wanted in skipped]
    return zeros[0] if len(zeros) == 1 else tuple(zeros)


def replaced_arguments(
    module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], outputs: Sequence[str]
) -> Value:
    """The arguments that a block's outputs replace, in the structure of its outputs."""
    given = arguments_by_name(module, args, kwargs)
    inputs = tuple(argument_of_call(type(module).__name__, name, given) for name in outputs)
    return inputs[0] if len(inputs) == 1 else inputs


def arguments_by_name(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call of a module by name, positional ones first."""
    return dict(zip(parameter_names(type(module)), args, strict=False)) | dict(kwargs)


_PARAMETERS: dict[Any, tuple[str, ...]] = {}  # by module class: inspecting a signature takes longer than a small block


def parameter_names(cls: Any) -> tuple[str, ...]:
    """Names of the arguments of a module class's forward."""
    if cls not in _PARAMETERS:
        _PARAMETERS[cls] = tuple(inspect.signature(cls.forward).parameters)[1:]
    return _PARAMETERS[cls]


def describe_input(signature: Sequence[tuple[Any, ...]] | None) -> str:
    """Shape, type and device of the tensors of an input, for an error."""
    if signature is None:
        return "None"
    return ", ".join(str((shape, *map(str, rest))) for shape, *rest in signature) or "no tensors"
