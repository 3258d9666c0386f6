"""SmoothCache's files (arXiv:2411.10510): a list of bits for every component, of all blocks or of one."""

import re
from typing import Any

from search.schedule.errors import ScheduleError
from search.schedule.exchange import masks
from search.schedule.exchange.check import action_of, list_of, object_of
from search.schedule.exchange.loss import first_lines, refuse_losses, unsupported_parts
from search.schedule.exchange.masks import Parts
from search.schedule.model.nodes import Tree
from search.schedule.schedule import Schedule

ALIASES = {"attn": "attn1", "cross_attn": "attn2", "mlp": "ff", "ffn": "ff"}  # names of components in other models
REASON = "a SmoothCache file has bits of components, nothing else"


def from_smoothcache(data: Any, tree: Tree) -> Parts:
    """SmoothCache's lists, `{"attn1": [1, 0, …], "ff-12": [1, 1, …]}`: 1 computes, 0 reuses the last output.

    A component with a number is that of one block, without it of all blocks.
    """
    tokens: dict[str, list[str]] = {}
    for key, given in object_of(data, "file").items():
        actions = [action_of(bit, f"{key}[{t}]") for t, bit in enumerate(list_of(given, str(key)))]
        if tokens and len(actions) != (steps := len(next(iter(tokens.values())))):
            raise ScheduleError(f"{key} has {len(actions)} entries, but {next(iter(data))} has {steps}")
        tokens |= dict.fromkeys(_nodes(str(key), tree), actions)
    return masks.parts(tokens, tree, "1")


def to_smoothcache(schedule: Schedule, lossy: bool = False) -> dict[str, list[int]]:
    """The content of a SmoothCache file; ScheduleError names what it would lose."""
    masks.need_steps(schedule, "SmoothCache")
    _check(schedule.tree)
    refuse_losses("smoothcache", losses(schedule), lossy)
    bits, content = masks.component_bits(schedule), {}
    for component, names in _kinds(schedule.tree).items():
        lists = [bits[name] for name in names]
        if all(one == lists[0] for one in lists):
            content[component] = lists[0]
        elif _shared(schedule.tree, component):
            content[component] = [max(column) for column in zip(*lists, strict=True)]
        else:
            content |= {f"{component}-{schedule.tree.nodes[name].block}": bits[name] for name in names}
    return content


def losses(schedule: Schedule) -> list[str]:
    """What a SmoothCache file would lose of this schedule, in words."""
    _check(schedule.tree)
    lines = first_lines(masks.component_losses(schedule, REASON))
    bits = masks.component_bits(schedule) if schedule.steps else {}
    for component, names in _kinds(schedule.tree).items() if bits else ():
        if _shared(schedule.tree, component) and any(bits[name] != bits[names[0]] for name in names):
            lines.append(f"plan: {component} differs between blocks, and two stacks have it (one list is for both)")
    return lines + unsupported_parts(schedule, ("plan",), REASON)


def _kinds(tree: Tree) -> dict[str, list[str]]:
    """Names of nodes by component."""
    names: dict[str, list[str]] = {}
    for node in tree:
        if node.kind == "component":
            names.setdefault(node.component, []).append(node.name)
    return names


def _shared(tree: Tree, component: str) -> bool:
    return len({node.stack for node in tree if node.component == component}) > 1


def _check(tree: Tree) -> None:
    """Raise ScheduleError where a component lies deeper than in a block, which SmoothCache cannot name."""
    if any("." in component for component in _kinds(tree)):
        raise ScheduleError(f"SmoothCache files are for stacks of transformer blocks; this is a {tree.model_class}")


def _nodes(key: str, tree: Tree) -> list[str]:
    component, _, block = key.partition("-") if re.fullmatch(r"[\w.]+-\d{1,5}", key, re.ASCII) else (key, "", "")
    nodes = [node for node in tree if node.kind == "component"]
    components = dict.fromkeys(node.component for node in nodes)
    component = component if component in components else ALIASES.get(component, component)
    selected = [n for n in nodes if n.component == component and block in ("", str(n.block))]
    if not selected:
        raise ScheduleError(
            f"{key[:80]!r} names no component of this {tree.model_class}; it has {', '.join(components)[:300]}, in a "
            f"single block for example {next(iter(components))}-0"
        )
    if block and len(stacks := {node.stack for node in selected}) > 1:
        raise ScheduleError(f"{key!r}: {' and '.join(sorted(stacks))} both have a block {block} with {component}")
    return [node.name for node in selected]
