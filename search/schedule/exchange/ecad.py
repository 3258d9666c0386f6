"""ECAD's files (arXiv:2506.15682): a bit for every step, block and component."""

from typing import Any

from search.schedule.errors import ScheduleError
from search.schedule.exchange import masks
from search.schedule.exchange.check import action_of, object_of, same_keys, steps_of
from search.schedule.exchange.loss import first_lines, refuse_losses, unsupported_parts
from search.schedule.exchange.masks import Parts
from search.schedule.model.nodes import Tree
from search.schedule.schedule import Schedule

COUNTS = (("num_blocks", "transformer_blocks"), ("num_single_blocks", "single_transformer_blocks"))
REASON = "an ECAD file has bits of components, nothing else"


def from_ecad(data: Any, tree: Tree) -> Parts:
    """ECAD's bits, `cache_schedule.schedule["007"]["12"]["attn1"]`: true computes, false reuses the last output.

    Blocks are `0`, `1`, … and for Flux also `single_0`, …, whose components carry `full_` and `single_`.
    """
    body = object_of(object_of(data, "file").get("cache_schedule"), "cache_schedule")
    table = object_of(body.get("schedule"), "cache_schedule.schedule")
    places = _places(tree)
    for field, stack in COUNTS:
        if (size := body.get(field)) is not None and size != tree.stacks.get(stack):
            raise ScheduleError(
                f"cache_schedule.{field} is {size!r:.40}, but this {tree.model_class} has "
                f"{tree.stacks.get(stack, 'no')} {stack}"
            )
    steps = steps_of(body.get("num_inference_steps", len(table)), "cache_schedule.num_inference_steps")
    names_of_steps = [f"{t:03}" for t in range(steps)]
    same_keys(table, names_of_steps, "cache_schedule.schedule")
    tokens: dict[str, list[str]] = {name: [] for names in places.values() for name in names.values()}
    for step in names_of_steps:
        where = f"cache_schedule.schedule.{step}"
        same_keys(blocks := object_of(table[step], where), places, where)
        for block, names in places.items():
            given = object_of(blocks[block], f"{where}.{block}")
            if code := [key for key in given if str(key).startswith("custom_compute")]:
                raise ScheduleError(f"{where}.{block} has {code[0]}: it runs code of its own, which no schedule holds")
            same_keys(given, names, f"{where}.{block}")
            for component, name in names.items():
                tokens[name].append(action_of(given[component], f"{where}.{block}.{component}"))
    return masks.parts(tokens, tree, "true")


def to_ecad(schedule: Schedule, lossy: bool = False) -> dict[str, Any]:
    """The content of an ECAD file; ScheduleError names what it would lose."""
    steps, places = masks.need_steps(schedule, "ECAD"), _places(schedule.tree)
    refuse_losses("ecad", losses(schedule), lossy)
    bits = masks.component_bits(schedule)
    table = {
        f"{t:03}": {block: {c: bool(bits[name][t]) for c, name in names.items()} for block, names in places.items()}
        for t in range(steps)
    }
    sizes = {count: schedule.tree.stacks[stack] for count, stack in COUNTS if stack in schedule.tree.stacks}
    body = sizes | {"num_inference_steps": steps}
    return {"cache_schedule": body | {"name": schedule.digest[7:19], "attributes": {}, "schedule": table}}


def losses(schedule: Schedule) -> list[str]:
    """What an ECAD file would lose of this schedule, in words."""
    return first_lines(masks.component_losses(schedule, REASON)) + unsupported_parts(schedule, ("plan",), REASON)


def _places(tree: Tree) -> dict[str, dict[str, str]]:
    """Node names by ECAD's block and component."""
    prefixes = {"transformer_blocks": ("", "full_"), "single_transformer_blocks": ("single_", "single_")}
    if not set(tree.stacks) <= set(prefixes):
        raise ScheduleError(f"ECAD files are for PixArt, DiT and Flux; this is a {tree.model_class}")
    names_of: dict[str, dict[str, str]] = {}
    for stack, size in tree.stacks.items():
        block, prefix = prefixes[stack] if len(tree.stacks) > 1 else ("", "")
        for i in range(size):
            names = tree.components(stack, i)
            names_of[f"{block}{i}"] = {f"{prefix}{component}": f"{stack}.{i}:{component}" for component in names}
    return names_of
