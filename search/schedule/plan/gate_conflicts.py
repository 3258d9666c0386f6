"""Conflicts of gates with each other, and the nodes that gates leave to a plan."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from search.schedule.errors import ScheduleError
from search.schedule.model.nodes import Tree
from search.schedule.parts.gates import OF_BEFORE
from search.schedule.plan.block_groups import block_order, group_of_blocks, nodes_inside
from search.schedule.plan.gates import Gate
from search.schedule.plan.tokens import Tokens


def undecided_tokens(tokens: Mapping[str, Tokens], gates: Iterable[Mapping[str, Any]], tree: Tree) -> dict[str, Tokens]:
    """The actions of the nodes that these gates, as parts of the file, neither decide nor read."""
    decided: set[str] = set()
    order = block_order(tree)
    for part in gates:
        blocks = group_of_blocks(part["group"], tree)
        before = order[order.index(blocks[0]) - 1] if part.get("signal") in OF_BEFORE else blocks[0]
        decided |= nodes_inside(blocks, tree) | {before, tree.nodes[before].stack}
    return {name: actions for name, actions in tokens.items() if name not in decided}


def check_gates(gates: Sequence[Gate]) -> None:
    """Raise ScheduleError where two groups share a block, or one reads its signal from a block of another."""
    owner: dict[str, str] = {}
    for gate in gates:
        for block in gate.blocks:
            if block in owner:
                raise ScheduleError(f"gates {owner[block]} and {gate.name} share {block}; a block has one gate")
            owner[block] = gate.name
    for gate in gates:
        if gate.before in owner:
            raise ScheduleError(
                f"gates: the signal of {gate.name} reads {gate.before}, which the gate of {owner[gate.before]} may "
                "leave out; use signal modulated_input or model_input, or one group of both"
            )
