"""A contract's word against what a denoiser really does, looked at when a node is first computed.

A wrong word is not always an error by itself: where a tuple of one is returned and a tensor promised, a caller that
takes the first of it would go on with the first picture of the batch.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from search.schedule.errors import ScheduleError
from search.schedule.values import Value

MAX_DEPTH = 8
REMEDY = "; a block that is no such map has 'outputs: []', and is then computed, reused or forecast but never skipped"


def check_value(name: str, value: Any, depth: int = 0) -> None:
    """ScheduleError where a node gives back what cannot be kept: anything but tensors and tuples of them."""
    if value is None or isinstance(value, Tensor):
        return
    if type(value) not in (tuple, list) or depth > MAX_DEPTH:
        raise ScheduleError(
            f"{name} gives back {describe_value(value)}; schedules keep tensors and tuples of them, so "
            "plan the modules in "
            "it or around it"
        )
    for inner in value:
        check_value(name, inner, depth + 1)


def check_block(name: str, outputs: Sequence[str], given: Mapping[str, Any], value: Any) -> None:
    """ScheduleError where a block's outputs are not, in number, shapes and types, what they are said to replace.

    `given` are the block's arguments by name. None stands for any output: the last block may end a stream.
    """
    check_value(name, value)
    if not outputs:
        return
    found = (value,) if isinstance(value, Tensor) else tuple(value or ())
    if len(found) != len(outputs) or (len(outputs) == 1) != isinstance(value, Tensor):
        said = f"one tensor, in place of {outputs[0]}" if len(outputs) == 1 else f"a tuple for {', '.join(outputs)}"
        raise ScheduleError(f"{name} gives back {describe_value(value)}, but its contract says {said}{REMEDY}")
    for argument, output in zip(outputs, found, strict=True):
        taken = given.get(argument)
        if output is not None and not _alike(output, taken):
            raise ScheduleError(
                f"{name} gives back {describe_value(value)}, but its contract says that "
                f"{describe_value(output)} is in place of "
                f"{argument}, which is {describe_value(taken)}{REMEDY}"
            )


def check_component(name: str, skipped: Sequence[str], given: Mapping[str, Any], value: Any) -> None:
    """ScheduleError where what a skipped component would give is unlike what it gives: see `Tree.skipped`."""
    check_value(name, value)
    first = next(iter(given.values()), None)
    wanted = [given.get(argument) for argument in skipped] or [first]
    found = (value,) if isinstance(value, Tensor) or not value else tuple(value)
    if len(found) != len(wanted) or (len(skipped) > 0 and (len(skipped) == 1) != isinstance(value, Tensor)):
        word = f"zeros like {', '.join(skipped)}" if skipped else "its first argument"
        raise ScheduleError(
            f"{name} gives back {describe_value(value)}, but its contract says {word} where it is skipped"
        )
    for argument, output, taken in zip(skipped or ("the first argument",), found, wanted, strict=True):
        if not _alike(output, taken):
            raise ScheduleError(
                f"{name} gives back {describe_value(value)}, but its contract says "
                f"{describe_value(taken)} where it is skipped, "
                f"after {argument}"
            )


def argument_of_call(name: str, wanted: str, given: Mapping[str, Any]) -> Any:
    """An argument of a node's call; ScheduleError where it was not given."""
    if wanted not in given:
        raise ScheduleError(f"{name} was called without {wanted}, which its contract names; it got {', '.join(given)}")
    return given[wanted]


def first_tensor(output: Any) -> Tensor:
    """What a denoiser gives back, alone or first in a tuple or a container of diffusers; else a ScheduleError."""
    try:
        found = output if isinstance(output, Tensor) else output[0]
    except (IndexError, KeyError, TypeError):
        found = None
    if not isinstance(found, Tensor):
        raise ScheduleError(
            f"the denoiser gives back {describe_value(output)}; a schedule takes a tensor, a tuple that "
            "begins with one, or "
            "an output with `sample`"
        )
    return found


def describe_value(value: Value) -> str:
    """`float32 [2, 16, 48]`, and of a tuple all of it."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if value is None:
        return "None"
    if type(value) in (tuple, list):
        inner = ", ".join(describe_value(part) for part in value[:5])
        return f"a tuple of {len(value)} ({inner}{', …' if len(value) > 5 else ''})"
    return f"a {type(value).__name__}"


def _alike(output: Any, taken: Any) -> bool:
    """Equal in shape and type; under autocast the types are torch's own choice."""
    if not isinstance(output, Tensor) or not isinstance(taken, Tensor) or output.shape != taken.shape:
        return False
    return output.dtype == taken.dtype or torch.is_autocast_enabled(output.device.type)
