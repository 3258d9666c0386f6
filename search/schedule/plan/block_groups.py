"""Groups of blocks: runs of blocks that follow each other, by their selectors."""

from collections.abc import Sequence

from search.schedule.errors import ScheduleError
from search.schedule.model.nodes import Tree
from search.schedule.plan.tokens import format_ranges


def group_of_blocks(text: str, tree: Tree, where: str = "group") -> tuple[str, ...]:
    """The blocks that a selector of a group means, in the order of execution.

    ScheduleError, with `where` in front, where they are not a run of blocks that can be left out together.

    >>> group_of_blocks("transformer_blocks.[1-2]", Tree("PixArtTransformer2DModel", {"transformer_blocks": 4}))
    ('transformer_blocks.1', 'transformer_blocks.2')
    """
    names: list[str] = []
    for selector in text.split("+"):
        try:
            selected = tree.select(selector.strip())
        except ScheduleError as error:
            raise ScheduleError(f"{where}: {error}") from None
        for name in selected:
            node = tree.nodes[name]
            blocks = (
                [n.name for n in tree if n.kind == "block" and n.parent == name] if node.kind == "stack" else [name]
            )
            if node.kind not in ("stack", "block"):
                raise ScheduleError(f"{where}: {name} is a {node.kind}; a group is made of blocks, such as STACK.[1-3]")
            if not tree.stack(node.stack).outputs:
                raise ScheduleError(
                    f"{where}: the blocks of {node.stack} are not a chain that could be left out together"
                )
            names += blocks
    order = block_order(tree)
    places = [order.index(name) for name in names]
    if places != list(range(places[0], places[0] + len(places))):
        raise ScheduleError(f"{where}: {text[:80]!r} are not blocks that follow each other; give a run of blocks")
    streams = {frozenset(tree.stack(tree.nodes[name].stack).outputs) for name in names}
    if len(streams) > 1:
        raise ScheduleError(
            f"{where}: the stacks of {text[:80]!r} pass on unlike values: {sorted(map(sorted, streams))}"
        )
    return tuple(names)


def nodes_inside(blocks: Sequence[str], tree: Tree) -> set[str]:
    """Names of the blocks, of all nodes in them, and of the stacks around them."""
    return {n.name for n in tree if f"{n.stack}.{n.block}" in blocks} | {tree.nodes[block].stack for block in blocks}


def block_order(tree: Tree) -> list[str]:
    """Names of all blocks in the order of execution."""
    return [node.name for node in tree if node.kind == "block"]


def block_selector(blocks: Sequence[str], tree: Tree) -> str:
    """The canonical selector of a group, `transformer_blocks.[1-3]+single_transformer_blocks.*`."""
    indices_of: dict[str, list[int]] = {}
    for block in blocks:
        indices_of.setdefault(tree.nodes[block].stack, []).append(tree.nodes[block].block)
    return "+".join(f"{stack}.{format_ranges(indices, tree.stacks[stack])}" for stack, indices in indices_of.items())
