"""The nodes of a denoiser that can be planned: a tree of names, built from a contract and a shape.

A tree has names, not modules: `denoiser`, its stacks (`transformer_blocks`), their blocks
(`transformer_blocks.3`) and the components of a block (`transformer_blocks.3:attn1`). A component may lie in
another one (`up_blocks.1:attentions.0.transformer_blocks.0.ff`), which is its parent.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn

from search.schedule.errors import ScheduleError
from search.schedule.model.contracts import CONTRACTS, Contract, Stack
from search.schedule.model.modules import (
    Shape,
    blocks_of,
    check_stack,
    child_module,
    child_names,
    expand_components,
    stack_shape,
)

ROOT = "denoiser"
MAX_BLOCKS = 10_000
MAX_NODES = 200_000
_BLOCKS = re.compile(r"(?:\.(\*|\d{1,5}|\[[\d,-]{1,9999}\]))?(?::([\w.*]{1,200}))?", re.ASCII)


@dataclass(frozen=True)
class Node:
    """One node of the tree.

    Attributes:
        name: `denoiser`, `transformer_blocks`, `transformer_blocks.3` or `transformer_blocks.3:attn1`.
        kind: denoiser, stack, block or component.
        parent: Name of the node that it lies in; None for the denoiser.
        stack: Name of its stack; "" for the denoiser.
        block: Number of its block; -1 for the denoiser and stacks.
        component: Its path in the block; "" for other nodes than components.
    """

    name: str
    kind: str
    parent: str | None = None
    stack: str = ""
    block: int = -1
    component: str = ""

    @property
    def nested(self) -> bool:
        """Whether it is a component inside of another component."""
        return self.kind == "component" and ":" in (self.parent or "")


class Tree:
    """All nodes of one denoiser, ancestors before descendants, blocks and components in the order of execution."""

    def __init__(self, model_class: str, shape: Mapping[str, Shape], contract: Contract | None = None) -> None:
        """`shape` has for every stack the number of its equal blocks, `{"transformer_blocks": 28}`, or for each of
        its blocks the lengths of the lists in it, `{"down_blocks": [{"resnets": 2, "attentions": 2}, …]}`.

        `contract` is for a class that is not among CONTRACTS.
        """
        if contract is None and model_class not in CONTRACTS:
            raise ScheduleError(
                f"model.class {model_class!r} has no node contract; classes with one: {', '.join(sorted(CONTRACTS))}; "
                "describe any other module by a contract in YAML"
            )
        self.model_class, self.contract = model_class, contract or CONTRACTS[model_class]
        self.has_given_contract = contract is not None
        self.stack_contracts = self.contract.stacks
        if set(shape) != {stack.name for stack in self.stack_contracts}:
            expected = ", ".join(stack.name for stack in self.stack_contracts)
            raise ScheduleError(f"model.stacks {sorted(shape)} does not fit {model_class}, which has: {expected}")
        for stack in self.stack_contracts:
            self._check(stack, shape[stack.name])
        self.shape = {stack.name: shape[stack.name] for stack in self.stack_contracts}
        self.stacks = {name: size if isinstance(size, int) else len(size) for name, size in self.shape.items()}

    @staticmethod
    def _check(stack: Stack, shape: Shape) -> None:
        size = shape if isinstance(shape, int) else len(shape)
        if not 1 <= size <= MAX_BLOCKS:
            raise ScheduleError(f"model.stacks.{stack.name} is {size}; a stack has between 1 and {MAX_BLOCKS} blocks")
        if isinstance(shape, int) != stack.uniform:
            wanted = "a number of equal blocks" if stack.uniform else "a list with the contents of each block"
            raise ScheduleError(f"model.stacks.{stack.name} is {str(shape)[:60]}; it must be {wanted}")
        if isinstance(shape, int) and size * len(stack.components) > MAX_NODES:
            raise ScheduleError(f"model.stacks.{stack.name} has more than {MAX_NODES} components in all")
        lists = [count for block in ([] if isinstance(shape, int) else shape) for count in block.values()]
        if any(not 0 <= count <= 1000 for count in lists) or sum(lists) * len(stack.components) > MAX_NODES:
            raise ScheduleError(f"model.stacks.{stack.name} has lists of 0 to 1000 modules, not {max(lists)}")

    @classmethod
    def of(cls, denoiser: nn.Module, contract: Contract | None = None) -> "Tree":
        """The tree of a live denoiser.

        Args:
            denoiser: The module; its class is in CONTRACTS, or `contract` describes it.
            contract: For a class that is not in CONTRACTS.

        Raises:
            ScheduleError: Something that the contract names is missing in the module.
        """
        name = type(denoiser).__name__
        used = contract or CONTRACTS.get(name)
        stacks = used.stacks if used else ()
        for stack in stacks:
            check_stack(denoiser, stack)
        shape = {s.name: stack_shape(s, blocks_of(denoiser, s)) for s in stacks}
        tree = cls(name, shape, contract)
        node_of_module: dict[int, str] = {}
        for node in tree:
            module = tree.module(denoiser, node)
            if module is not None and (other := node_of_module.setdefault(id(module), node.name)) != node.name:
                raise ScheduleError(f"{node.name} and {other} are one module, which cannot be planned twice")
        return tree

    @cached_property
    def nodes(self) -> dict[str, Node]:
        """All nodes by name."""
        nodes = [Node(ROOT, "denoiser")]
        for stack in self.stack_contracts:
            nodes.append(Node(stack.name, "stack", ROOT, stack.name))
            for i in range(self.stacks[stack.name]):
                block = f"{stack.name}.{i}"
                nodes.append(Node(block, "block", stack.name, stack.name, i))
                components = self.components(stack.name, i)
                for component in components:
                    around = [c for c in components if component.startswith(f"{c}.")]
                    if late := [c for c in around if components.index(c) > components.index(component)]:
                        raise ScheduleError(f"contract.stacks: {component} lies in {late[0]}; name {late[0]} before it")
                    parent = f"{block}:{max(around, key=len)}" if around else block
                    nodes.append(Node(f"{block}:{component}", "component", parent, stack.name, i, component))
        return {node.name: node for node in nodes}

    def components(self, stack: str, block: int | None = None) -> list[str]:
        """Component names of a block of a stack, by default of all its blocks together."""
        contract, shape = self.stack(stack), self.shape[stack]
        if isinstance(shape, int):
            return list(contract.components)
        if block is None:
            return list(dict.fromkeys(c for i in range(len(shape)) for c in self.components(stack, i)))
        return expand_components(contract.components, shape[block])

    def stack(self, name: str) -> Stack:
        """The contract of a stack."""
        return next(stack for stack in self.stack_contracts if stack.name == name)

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """Names of the components that lie in no other component, in the order of the stacks."""
        return tuple(dict.fromkeys(n.component for n in self if n.kind == "component" and not n.nested))

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes.values())

    def path(self, node: Node) -> str:
        """The attribute path of a node's module in the denoiser, "" for the denoiser itself."""
        if node.kind == "denoiser":
            return ""
        block = node.stack if node.block < 0 or self.stack(node.stack).single else f"{node.stack}.{node.block}"
        return f"{block}.{node.component}" if node.component else block

    def module(self, denoiser: nn.Module, node: Node) -> nn.Module | None:
        """The module behind a node; None for a stack, which is only a list of blocks."""
        if node.kind == "stack":
            return None
        module: Any = denoiser
        for part in filter(None, self.path(node).split(".")):
            module = child_module(module, part)
            if module is None:
                break
        if not isinstance(module, nn.Module):
            block = blocks_of(denoiser, self.stack(node.stack))[node.block]
            raise ScheduleError(
                f"{self.model_class} has no {node.name}: {type(block).__name__} lacks {node.component!r}; it has "
                f"{child_names(block)}"
            )
        return module

    def node_of(self, layer: str) -> Node:
        """The innermost node that a layer lies in, by its full name `transformer_blocks.3.attn1.to_q`."""
        while layer:
            if layer in self._by_path:
                return self._by_path[layer]
            layer = layer.rpartition(".")[0]
        return self.nodes[ROOT]

    @cached_property
    def _by_path(self) -> dict[str, Node]:
        return {self.path(node): node for node in self if node.kind in ("block", "component")}

    def skipped(self, node: Node) -> tuple[str, ...] | None:
        """The arguments that replace a skipped node's outputs: of a block those that it passes on, of a component
        those whose shapes its zeros take, or () for its first one as it is. None where a node cannot be skipped.
        """
        if node.kind in ("denoiser", "stack", "block"):
            return None if node.kind == "denoiser" else self.stack(node.stack).outputs or None
        contract = self.stack(node.stack)
        pattern = re.sub(r"(?<=\.)\d+", "*", node.component)
        if pattern in contract.passes or node.component in contract.passes:
            return ()
        return contract.zeros.get(node.component, contract.zeros.get(pattern))

    def select(self, selector: str) -> list[str]:
        """Names of the nodes that a selector means, in the order of execution; ScheduleError where there are none.

        `denoiser`, `STACK`, `STACK.BLOCKS`, `STACK.BLOCKS:COMPONENT`, where BLOCKS is `*`, a number or `[0-3,7]`,
        and COMPONENT a name, which may have `*` in it (`resnets.*`), or `*` for all that lie in no other component.

        >>> Tree("PixArtTransformer2DModel", {"transformer_blocks": 28}).select("transformer_blocks.[0-1]:ff")
        ['transformer_blocks.0:ff', 'transformer_blocks.1:ff']
        """
        if selector == ROOT:
            return [ROOT]
        stack = next((s for s in self.stack_contracts if f"{selector}.".startswith(f"{s.name}.")), None)
        match = stack and _BLOCKS.fullmatch(selector, len(stack.name))
        if not match or not stack or (match[2] and not match[1]):
            raise ScheduleError(self._no_match(selector))
        if match[1] is None:
            if not stack.outputs:
                raise ScheduleError(
                    f"selector {selector!r}: the blocks of {stack.name} are not a chain that could be planned "
                    f"together; use '{stack.name}.*'"
                )
            return [stack.name]
        blocks = self._blocks(match[1], self.stacks[stack.name])
        if match[2] is None:
            names = [f"{stack.name}.{i}" for i in blocks]
        else:
            names = [f"{stack.name}.{i}:{c}" for i in blocks for c in self._matching(stack.name, i, match[2])]
        if not names or any(name not in self.nodes for name in names):
            raise ScheduleError(self._no_match(selector))
        return names

    def _matching(self, stack: str, block: int, pattern: str) -> list[str]:
        if pattern == "*":
            prefix = f"{stack}.{block}:"
            return [c for c in self.components(stack, block) if not self.nodes[prefix + c].nested]
        if "*" not in pattern:
            return [pattern] if pattern in self.components(stack, block) or self.stack(stack).uniform else []
        wanted = re.compile(r"[\w]+".join(re.escape(part) for part in pattern.split("*")))
        return [c for c in self.components(stack, block) if wanted.fullmatch(c)]

    @staticmethod
    def _blocks(text: str, size: int) -> list[int]:
        if text == "*":
            return list(range(size))
        blocks: set[int] = set()
        for part in text.strip("[]").split(","):
            low, dash, high = part.partition("-")
            if not low.isdigit() or (dash and not high.isdigit()) or len(low) > 5 or len(high) > 5:
                return []
            first, last = int(low), int(high or low)
            if not first <= last < size:
                return []
            blocks.update(range(first, last + 1))
        return sorted(blocks)

    def _no_match(self, selector: str) -> str:
        stacks = "; ".join(
            f"{s.name}.[0-{self.stacks[s.name] - 1}] with components {', '.join(s.components) or 'none'}"
            for s in self.stack_contracts
        )
        example = next((f"{s.name}.*:{s.components[-1]}" for s in self.stack_contracts if s.components), ROOT)
        return (
            f"selector {selector[:80]!r} matches no node of {self.model_class}; nodes are {ROOT}, {stacks}, "
            f"for example '{example}'"
        )
