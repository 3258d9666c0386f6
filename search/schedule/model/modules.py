"""The live modules behind a contract's stacks: their blocks, their shapes, and whether they are there."""

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from search.schedule.errors import ScheduleError
from search.schedule.model.contracts import Stack

Shape = (
    int | Sequence[Mapping[str, int]]
)  # of a stack: how many equal blocks, or of each block the lengths of its lists


def child_module(module: Any, part: str) -> Any:
    """The child of a module by one part of an attribute path, an index or a name; None where there is none."""
    if not part.isdigit():
        return getattr(module, part, None)
    children = list(module) if isinstance(module, nn.ModuleList | nn.Sequential) else []
    return children[int(part)] if int(part) < len(children) else None


def check_stack(denoiser: nn.Module, stack: Stack) -> None:
    """Raise ScheduleError where the denoiser lacks a stack, or its blocks the arguments that outputs replace."""
    module: Any = denoiser
    for part in stack.name.split("."):
        within, module = module, getattr(module, part, None)
        if not isinstance(module, nn.Module):
            raise ScheduleError(
                f"{type(denoiser).__name__} has no {stack.name}: {type(within).__name__} has {child_names(within)}"
            )
    if not stack.single and not isinstance(module, nn.ModuleList | nn.Sequential):
        raise ScheduleError(
            f"{stack.name} is a {type(module).__name__} instead of a list of blocks; if it is one block, write "
            "'single: true'"
        )
    for i, block in enumerate(blocks_of(denoiser, stack)):
        parameters = inspect.signature(type(block).forward).parameters
        if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            continue
        if missing := [name for name in stack.outputs if name not in parameters]:
            raise ScheduleError(
                f"{stack.name}.{i}: the contract's outputs name {missing[0]!r}, which is not an argument of "
                f"{type(block).__name__}.forward; it takes {', '.join(list(parameters)[1:])}"
            )


def child_names(module: nn.Module) -> str:
    """The names of a module's children, for an error."""
    return ", ".join(name for name, _ in module.named_children()) or "no modules"


def blocks_of(denoiser: nn.Module, stack: Stack) -> Sequence[nn.Module]:
    """The live blocks of a stack; () where the denoiser lacks it."""
    blocks: Any = denoiser
    for part in stack.name.split("."):
        blocks = getattr(blocks, part, None)
    if blocks is None:
        return ()
    return (blocks,) if stack.single else blocks


def stack_shape(stack: Stack, blocks: Sequence[nn.Module]) -> Shape:
    """How many blocks a stack has, or where they are not equal what each one has."""
    if stack.uniform:
        return len(blocks)
    return [_lists(stack.components, block) for block in blocks]


def _lists(components: Sequence[str], block: nn.Module) -> dict[str, int]:
    """Lengths of the lists that the component paths run through, and 1 for each single component that is there."""
    lengths: dict[str, int] = {}
    for path in components:
        head, star, rest = path.partition(".*")
        module: Any = block
        for part in head.split("."):
            module = getattr(module, part, None)
        if module is None:
            continue
        lengths[head] = len(module) if star else 1
        for i in range(lengths[head] if rest else 0):
            inner = rest.lstrip(".").partition(".*")[0]
            if ".*" in rest:
                lengths |= {
                    f"{head}.{i}.{k}": n for k, n in _lists([rest.lstrip(".")], module[i]).items() if k == inner
                }
    return {name: count for name, count in lengths.items() if count}


def expand_components(components: Sequence[str], lists: Mapping[str, int]) -> list[str]:
    """Component names of a block with these lists, in the order of execution (resnets.0, attentions.0, resnets.1)."""
    ordered: list[tuple[bool, list[int], int, str]] = []
    for order, path in enumerate(components):
        names = [""]
        for i, part in enumerate(path.split(".*")):
            if i:
                names = [f"{name}.{j}" for name in names for j in range(lists.get(name, 0))]
            names = [name + part for name in names]
        if ".*" not in path:
            names = [path] if lists.get(path) else []
        for name in names:
            ordered.append(("sampler" in path, [int(i) for i in re.findall(r"\.(\d+)", name)], order, name))
    return [name for *_, name in sorted(ordered)]
