"""Find the components of a block in a trace: its parts that ran once and returned tensors with the states' rows."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from search.observe.trace import ModuleCall, Trace

LEAST_SHARE = 0.02  # of a block's parameters
# Layers that prepare the inputs of others: norms, modulation, embeddings, gates.
PREPARES = re.compile(
    r"(^|_)(norm|adaln|ada|modulation|mod|scale_shift|time|temb|emb|embedder|pos|rope|gate|drop|dropout|act)\d*(_|$)",
    re.I,
)


@dataclass(frozen=True, eq=False)
class Components:
    """The components of a stack's blocks, as `Stack` has them."""

    paths: tuple[str, ...]
    uniform: bool
    zeros: Mapping[str, tuple[str, ...]]
    passes: tuple[str, ...]


def find_components(blocks: Sequence[ModuleCall], trace: Trace) -> Components:
    """The components of all blocks of a stack together, each one before those that lie in it."""
    of_each = [_of_block(block, trace) for block in blocks]
    kinds = {tuple(path for path, _ in each) for each in of_each}
    lists = any(re.search(r"(^|\.)\d", path) for kind in kinds for path in kind)
    uniform = len(kinds) == 1 and not lists
    order: dict[str, list[ModuleCall]] = {}
    for each in of_each:
        for path, call in each:
            order.setdefault(re.sub(r"(?<=\.)\d+(?=\.|$)", "*", path), []).append(call)
    paths = list(order)
    outer_first = sorted(
        paths, key=lambda path: (paths.index(_outermost(path, paths)), path.count("."), paths.index(path))
    )
    replacing = {type(call.module) for call in trace.calls if list(call.module.children()) and _replaces(call)}
    zeros, passes = {}, []
    for path in outer_first:
        ways = {_skipped(call, type(call.module) in replacing or _replaces(call)) for call in order[path]}
        (way,) = ways if len(ways) == 1 else (None,)
        if way == ():
            passes.append(path)
        elif way:
            zeros[path] = way
    return Components(tuple(outer_first), uniform, zeros, tuple(passes))


def _outermost(path: str, paths: Sequence[str]) -> str:
    return min((outer for outer in paths if path == outer or path.startswith(f"{outer}.")), key=len)


def _of_block(block: ModuleCall, trace: Trace) -> list[tuple[str, ModuleCall]]:
    """Paths of the components of one block, in the order of execution, with their calls."""
    inner = [call for call in trace.calls if call.name.startswith(f"{block.name}.")]
    counts = Counter(call.name for call in inner)
    total = sum(p.numel() for p in block.module.parameters())
    chosen: list[tuple[str, ModuleCall]] = []
    for call in inner:
        path = call.name[len(block.name) + 1 :]
        if counts[call.name] != 1 or not _is_component(call, path, block, total):
            continue
        around = [outer for outer, _ in chosen if path.startswith(f"{outer}.")]
        if around and not _in_inner_block(block.module, path, max(around, key=len)):
            continue  # a projection within attention
        chosen.append((path, call))
    return chosen


def _in_inner_block(block: nn.Module, path: str, around: str) -> bool:
    """Whether a path names a child of a block within a component, `attentions.0` + `.transformer_blocks.0` + `.attn1`.

    A block is an element of a list with two or more children that are not plain layers.
    """
    parts = path[len(around) + 1 :].split(".")
    if len(parts) != 3 or not parts[1].isdigit():
        return False
    element = block.get_submodule(path.rpartition(".")[0])
    return sum(bool(list(child.children())) for child in element.children()) >= 2


def _is_component(call: ModuleCall, path: str, block: ModuleCall, total: int) -> bool:
    *_, name = [part for part in path.split(".") if not part.isdigit()] or [""]
    if not name or PREPARES.search(name) or isinstance(call.module, nn.ModuleList):
        return False
    if path == name and len(list(block.module.children())) == 1 and list(call.module.children()):
        return False  # the block itself, in a wrapper
    if sum(p.numel() for p in call.module.parameters()) < LEAST_SHARE * total * (0.2 if "." in path else 1):
        return False
    outputs = [output for output in call.outputs or () if output is not None]
    states = [given for given in block.given.values() if given is not None and len(given[0]) > 2]
    return bool(outputs) and all(
        len(shape) > 2 and any(len(shape) == len(given[0]) or shape[0] == given[0][0] for given in states)
        for shape, _ in outputs
    )


def _skipped(call: ModuleCall, replaces: bool) -> tuple[str, ...] | None:
    """What stands for a skipped component: () its first argument, or the arguments whose shape zeros take."""
    chosen: list[str] = []
    for output in call.outputs or ():
        free = call.arguments_like(output, chosen)
        if not free:
            return None
        chosen.append(free[0])
    if chosen == [call.first] and replaces:
        return ()
    return tuple(chosen) if call.single or len(chosen) > 1 else None


def _replaces(call: ModuleCall) -> bool:
    """Whether a module's output takes the place of its input, instead of being added to it: others are given it itself.

    A norm that is given it proves nothing, as the sum may come after it.
    """
    outermost = [name for name in call.read_by if not any(name.startswith(f"{other}.") for other in call.read_by)]
    return bool(outermost) and not any(PREPARES.search(name.rpartition(".")[2]) for name in outermost)
