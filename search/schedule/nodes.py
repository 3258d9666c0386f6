"""Which places of a denoiser can be planned: one contract per model class, one tree per model.

A tree knows names, not modules: `denoiser`, its stacks (`transformer_blocks`), their blocks
(`transformer_blocks.3`) and the components of a block (`transformer_blocks.3:attn1`).
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import nn

from search.schedule.errors import ScheduleError

ROOT = "denoiser"
MAX_BLOCKS = 10_000


@dataclass(frozen=True)
class Stack:
    """A ModuleList whose blocks map hidden states to hidden states of the same shape, first argument first.

    `components` are attributes of each block whose output has the shape of their first argument, and whose
    value is taken before the gate that the block multiplies it with.
    """

    name: str
    components: tuple[str, ...]


# To add a model class: its stacks in the order of execution. Both run diffusers' BasicTransformerBlock.
CONTRACTS: Mapping[str, tuple[Stack, ...]] = {
    "PixArtTransformer2DModel": (Stack("transformer_blocks", ("attn1", "attn2", "ff")),),
    "DiTTransformer2DModel": (Stack("transformer_blocks", ("attn1", "ff")),),
}

# Classifier-free guidance: which half of the batch the class's pipelines make the conditional one, and the
# argument with its text states, where it has any.
CONDITIONAL: Mapping[str, int] = {"PixArtTransformer2DModel": 1, "DiTTransformer2DModel": 0}
TEXT: Mapping[str, str] = {"PixArtTransformer2DModel": "encoder_hidden_states"}


@dataclass(frozen=True)
class Node:
    """One place in the tree. `kind` is denoiser, stack, block or component."""

    name: str
    kind: str
    parent: str | None = None
    stack: str = ""
    block: int = -1
    component: str = ""


class Tree:
    """All nodes of one denoiser, ancestors before descendants."""

    def __init__(self, model_class: str, stacks: Mapping[str, int]) -> None:
        """`stacks` gives the number of blocks of every stack, `{"transformer_blocks": 28}`."""
        if model_class not in CONTRACTS:
            raise ScheduleError(
                f"model.class {model_class!r} has no node contract; known: {', '.join(sorted(CONTRACTS))}"
            )
        self.model_class, self.stacks = model_class, dict(stacks)
        self.contract = CONTRACTS[model_class]
        if set(stacks) != {stack.name for stack in self.contract}:
            expected = ", ".join(stack.name for stack in self.contract)
            raise ScheduleError(f"model.stacks {sorted(stacks)} does not fit {model_class}, which has: {expected}")
        for name, size in stacks.items():
            if not 1 <= size <= MAX_BLOCKS:
                raise ScheduleError(f"model.stacks.{name} is {size}; a stack has between 1 and {MAX_BLOCKS} blocks")

    @classmethod
    def of(cls, denoiser: nn.Module) -> "Tree":
        """The tree of a live denoiser; checks that every component of the contract is there."""
        name = type(denoiser).__name__
        contract = CONTRACTS.get(name, ())
        tree = cls(name, {s.name: len(getattr(denoiser, s.name, ())) for s in contract})
        for node in tree:
            tree.module(denoiser, node)
        return tree

    @cached_property
    def nodes(self) -> dict[str, Node]:
        found = [Node(ROOT, "denoiser")]
        for stack in self.contract:
            found.append(Node(stack.name, "stack", ROOT, stack.name))
            for i in range(self.stacks[stack.name]):
                block = f"{stack.name}.{i}"
                found.append(Node(block, "block", stack.name, stack.name, i))
                found += [Node(f"{block}:{c}", "component", block, stack.name, i, c) for c in stack.components]
        return {node.name: node for node in found}

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes.values())

    def module(self, denoiser: nn.Module, node: Node) -> nn.Module | None:
        """The module behind a node; None for a stack, which is only a list of blocks."""
        if node.kind == "denoiser":
            return denoiser
        if node.kind == "stack":
            return None
        block = getattr(denoiser, node.stack)[node.block]
        if node.kind == "block":
            return block
        component = getattr(block, node.component, None)
        if component is None:
            raise ScheduleError(
                f"{self.model_class} has no {node.name}: {type(block).__name__} lacks {node.component!r}"
            )
        return component

    def node_of(self, layer: str) -> Node:
        """The innermost node that a layer lies in, by its full name `transformer_blocks.3.attn1.to_q`."""
        stack, block, component, *_ = [*layer.split("."), "", "", ""]
        inner = self.nodes.get(f"{stack}.{block}:{component}") or self.nodes.get(f"{stack}.{block}")
        return inner or self.nodes[ROOT]

    def select(self, selector: str) -> list[str]:
        """Names of the nodes that a selector means; ScheduleError where it means none.

        `denoiser`, `STACK`, `STACK.BLOCKS`, `STACK.BLOCKS:COMPONENT`, where BLOCKS is `*`, a number or
        `[0-3,7]`, and COMPONENT a name or `*`.
        """
        if selector == ROOT:
            return [ROOT]
        match = re.fullmatch(r"(\w+)(?:\.(\*|\d{1,5}|\[[\d,-]{1,9999}\]))?(?::(\*|\w+))?", selector, re.ASCII)
        stack = match and next((s for s in self.contract if s.name == match[1]), None)
        if not match or not stack or (match[3] and not match[2]):
            raise ScheduleError(self._no_match(selector))
        if match[2] is None:
            return [stack.name]
        blocks = self._blocks(match[2], self.stacks[stack.name])
        if match[3] is None:
            names = [f"{stack.name}.{i}" for i in blocks]
        else:
            components = stack.components if match[3] == "*" else (match[3],)
            names = [f"{stack.name}.{i}:{c}" for i in blocks for c in components]
        if not names or any(name not in self.nodes for name in names):
            raise ScheduleError(self._no_match(selector))
        return names

    @staticmethod
    def _blocks(text: str, size: int) -> list[int]:
        if text == "*":
            return list(range(size))
        found: set[int] = set()
        for part in text.strip("[]").split(","):
            low, dash, high = part.partition("-")
            if not low.isdigit() or (dash and not high.isdigit()) or len(low) > 5 or len(high) > 5:
                return []
            first, last = int(low), int(high or low)
            if not first <= last < size:
                return []
            found.update(range(first, last + 1))
        return sorted(found)

    def _no_match(self, selector: str) -> str:
        stacks = "; ".join(
            f"{s.name}.[0-{self.stacks[s.name] - 1}] with components {', '.join(s.components)}" for s in self.contract
        )
        return (
            f"selector {selector[:80]!r} matches no node of {self.model_class}; nodes are {ROOT}, {stacks}, "
            f"for example '{self.contract[0].name}.*:{self.contract[0].components[-1]}'"
        )
