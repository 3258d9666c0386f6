"""Compare a contract with the outputs of a denoiser's modules, when a node is first computed.

A wrong contract does not always cause an error by itself: where a tuple of one is returned and the contract promises a
tensor, a caller that takes its first element would go on with the first picture of the batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from search.schedule.errors import ScheduleError
from search.schedule.values import Value

MAX_DEPTH = 8
REMEDY = (
    "; a block that does not replace arguments has 'outputs: []', and is then computed, reused or forecast but never "
    "skipped"
)


def check_value(name: str, value: Any, depth: int = 0) -> None:
    """Raise ScheduleError where a node returns anything but tensors and tuples of them, which could not be stored."""
    if value is None or isinstance(value, Tensor):
        return
    if type(value) not in (tuple, list) or depth > MAX_DEPTH:
        raise ScheduleError(
            f"{name} returns {describe_value(value)}; schedules store tensors and tuples of them, so plan the modules "
            "in it or around it"
        )
    for inner in value:
        check_value(name, inner, depth + 1)


def check_block(name: str, outputs: Sequence[str], given: Mapping[str, Any], value: Any) -> None:
    """Raise ScheduleError where a block's outputs differ in number, shape or type from the arguments that they replace.

    `given` are the block's arguments by name. None is allowed for any output: the last block may end a stream.
    """
    check_value(name, value)
    if not outputs:
        return
    outputs_given = (value,) if isinstance(value, Tensor) else tuple(value or ())
    if len(outputs_given) != len(outputs) or (len(outputs) == 1) != isinstance(value, Tensor):
        promised = f"one tensor, in place of {outputs[0]}" if len(outputs) == 1 else f"a tuple for {', '.join(outputs)}"
        raise ScheduleError(f"{name} returns {describe_value(value)}, but its contract promises {promised}{REMEDY}")
    for argument, output in zip(outputs, outputs_given, strict=True):
        taken = given.get(argument)
        if output is not None and not _alike(output, taken):
            raise ScheduleError(
                f"{name} returns {describe_value(value)}, but its contract says that "
                f"{describe_value(output)} is in place of "
                f"{argument}, which is {describe_value(taken)}{REMEDY}"
            )


def check_component(name: str, skipped: Sequence[str], given: Mapping[str, Any], value: Any) -> None:
    """Raise ScheduleError where a component's output is unlike that of a skipped one (`Tree.skipped`)."""
    check_value(name, value)
    first = next(iter(given.values()), None)
    wanted = [given.get(argument) for argument in skipped] or [first]
    returned = (value,) if isinstance(value, Tensor) or not value else tuple(value)
    if len(returned) != len(wanted) or (len(skipped) > 0 and (len(skipped) == 1) != isinstance(value, Tensor)):
        promised = f"zeros like {', '.join(skipped)}" if skipped else "its first argument"
        raise ScheduleError(
            f"{name} returns {describe_value(value)}, but its contract promises {promised} where it is skipped"
        )
    for argument, output, taken in zip(skipped or ("the first argument",), returned, wanted, strict=True):
        if not _alike(output, taken):
            raise ScheduleError(
                f"{name} returns {describe_value(value)}, but its contract promises "
                f"{describe_value(taken)} where it is skipped, "
                f"after {argument}"
            )


def argument_of_call(name: str, wanted: str, given: Mapping[str, Any]) -> Any:
    """An argument of a node's call by name; ScheduleError where it was not given."""
    if wanted not in given:
        raise ScheduleError(f"{name} was called without {wanted}, which its contract names; it got {', '.join(given)}")
    return given[wanted]


def first_tensor(output: Any) -> Tensor:
    """The tensor that a denoiser returns, alone or first in a tuple or a container; else a ScheduleError."""
    try:
        first = output if isinstance(output, Tensor) else output[0]
    except (IndexError, KeyError, TypeError):
        first = None
    if not isinstance(first, Tensor):
        raise ScheduleError(
            f"the denoiser returns {describe_value(output)}; a schedule takes a tensor, a tuple that begins "
            "with one, or an output with `sample`"
        )
    return first


@dataclass(frozen=True)
class Container:
    """How a denoiser packs its tensors: in a tuple, an output with names, lists within these.

    `others` are the leaves that are not tensors, by their places among all leaves.
    """

    spec: Any
    others: Mapping[int, Any]

    def pack(self, value: Value) -> Any:
        """An output with these tensors, one or a tuple of them in the order of `unpack_output`."""
        tensors = iter((value,) if isinstance(value, Tensor) else value)
        leaves = [self.others[i] if i in self.others else next(tensors) for i in range(self.spec.num_leaves)]
        return tree_unflatten(leaves, self.spec)


@dataclass(frozen=True)
class SampleClass:
    """An output of a class of one's own, which torch cannot take apart: its first value is `sample`."""

    cls: Any

    def pack(self, value: Value) -> Any:
        """An output with this tensor."""
        return self.cls(sample=value)


def unpack_output(output: Any) -> tuple[Value, Container | SampleClass]:
    """The tensors that a denoiser returns, one by itself and several as a tuple, and what they were packed in.

    Raises:
        ScheduleError: There is no tensor in it.
    """
    leaves, spec = tree_flatten(output)
    tensors = tuple(leaf for leaf in leaves if isinstance(leaf, Tensor))
    if not tensors:
        return first_tensor(output), SampleClass(type(output))
    others = {i: leaf for i, leaf in enumerate(leaves) if not isinstance(leaf, Tensor)}
    return tensors[0] if len(tensors) == 1 else tensors, Container(spec, others)


def describe_value(value: Value) -> str:
    """Type and shape of a value for an error, `float32 [2, 16, 48]`; of a tuple those of its first five elements."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if value is None:
        return "None"
    if type(value) in (tuple, list):
        inner = ", ".join(describe_value(part) for part in value[:5])
        return f"a tuple of {len(value)} ({inner}{', …' if len(value) > 5 else ''})"
    return f"a {type(value).__name__}"


def _alike(output: Any, taken: Any) -> bool:
    """Equal in shape and type; under autocast torch chooses the types."""
    if not isinstance(output, Tensor) or not isinstance(taken, Tensor) or output.shape != taken.shape:
        return False
    return bool(output.dtype == taken.dtype or torch.is_autocast_enabled(output.device.type))
