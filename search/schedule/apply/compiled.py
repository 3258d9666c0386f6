"""Compilation beneath the hooks: whole blocks, one variant for each set of components that a plan does not compute.

A variant is the block's own forward, traced with stand-ins for its components: one that is reused or forecast returns
a value that is passed in, one that is computed passes its output out. So the graph does not depend on steps and plans,
all blocks of a class share it, and what only a reused component reads (its norm, its modulation) is not computed.
Where whole blocks cannot be compiled, each component is compiled by itself.
"""

import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from search.schedule.apply.admission import LAYER_HOOK
from search.schedule.apply.calls import arguments_by_name, parameter_names, skipped_output
from search.schedule.apply.clock import Clock
from search.schedule.apply.hooks import BlockHook, check_output
from search.schedule.apply.stores import Store
from search.schedule.model.nodes import Tree
from search.schedule.plan.plan import Plan
from search.schedule.plan.tokens import ABSENT, OFF
from search.schedule.values import Value

Compile = Callable[[Callable[..., Any]], Callable[..., Any]]
Row = tuple[str, ...]  # what a block's stand-ins do: C compute, R return a stored value, S nothing
MAX_VARIANTS = 8  # variants of a stack: every set of three components; each takes as long to compile as a block does


def compiler(compile: bool | Compile | None, denoiser: nn.Module, static: bool) -> tuple[Compile | None, bool]:
    """The function that compiles (None where nothing is compiled), and whether it makes CUDA graphs.

    `True` is torch.compile, with CUDA graphs on a GPU where the plan is `static`: nothing depends on the latents.
    """
    if not compile or callable(compile):
        return compile or None, False
    graphs = static and any(parameter.is_cuda for parameter in denoiser.parameters())
    return partial(torch.compile, dynamic=False, mode="reduce-overhead" if graphs else None), graphs


@dataclass(frozen=True)
class BlockPart:
    """A component of a block that is planned in some block of the stack; `store` is None where it is not in this one.

    `skipped` are the arguments whose zeros it returns where it is skipped, () for its first one as it is.
    """

    name: str
    module: Any
    skipped: Sequence[str] | None
    store: Store | None

    def kind(self, step: int) -> str:
        """What its stand-in does at a step."""
        token = self.store.tokens[step] if self.store else OFF
        return "C" if token in (OFF, ABSENT) else "S" if token == "S" else "R"


Variants = dict[str, tuple[list[BlockPart], set[Row]]]  # by block


def block_variants(tree: Tree, denoiser: nn.Module, stack: str, plan: Plan, stores: Mapping[str, Store]) -> Variants:
    """Of each block of a stack the planned components, and the rows that it has to be compiled for.

    `stores` are those of the planned nodes. {} where blocks cannot be compiled whole: they have too many rows,
    components within components, or hooks of other code.
    """
    nodes = [node for node in tree if node.stack == stack and node.kind != "stack"]
    modules = {node.name: tree.module(denoiser, node) for node in nodes}
    kinds = {node.component for node in nodes if node.kind == "component" and node.name in stores}
    if tree.contract.copies or any("." in kind for kind in kinds) or not all(map(_plain, modules.values())):
        return {}
    variants: Variants = {}
    for block in (node.name for node in nodes if node.kind == "block"):
        parts = [
            BlockPart(node.component, modules[node.name], tree.skipped(node), stores.get(node.name))
            for node in nodes
            if node.parent == block and node.component in kinds
        ]
        steps = [step for step, token in enumerate(plan.tokens[block]) if token == OFF] if plan.steps else [0]
        variants[block] = parts, {tuple(part.kind(step) for part in parts) for step in steps}
    return variants if len(set().union(*(rows for _, rows in variants.values()))) <= MAX_VARIANTS else {}


class CompiledBlock:
    """One block compiled beneath its hook, without hooks of its components."""

    def __init__(self, hook: BlockHook, parts: Sequence[BlockPart], rows: Iterable[Row], compile: Compile) -> None:
        self.hook, self.parts, self.verified = hook, parts, False
        block, names = hook.module, tuple(part.name for part in parts)
        cls: Any = type(block)
        self.graphs = {row: (compile(compiled_variant(cls, names, row)), self._shadow(block, row)) for row in rows}

    def computing(self, step: int) -> Callable[..., Any]:
        """What computes the block at a step."""
        row = tuple(part.kind(step) for part in self.parts)
        graph, shadow = self.graphs[row]
        clock: Clock = self.hook.clock
        pairs = list(zip(self.parts, row, strict=True))
        read_stores = [part.store for part, kind in pairs if kind == "R" and part.store]
        kept_stores = [
            part.store if part.store and part.store.keeps(step) else None for part, kind in pairs if kind == "C"
        ]

        def run(*args: Any, **kwargs: Any) -> Value:
            if not self.verified:
                self._verify(args, kwargs)
            branch = clock.calls - 1
            values = [store.read(step, branch, clock) for store in read_stores]
            streams = {name: _even(kwargs[name]) for name in self.hook.outputs if name in kwargs}
            output, computed = graph(shadow, values, tuple(map(_even, args)), kwargs | streams)
            for store, value in zip(kept_stores, computed, strict=True):
                if store is not None:
                    store.keep(step, branch, value)
            return output

        return run

    def _verify(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Run the block once without compilation, to check its components' outputs against the contract."""

        def check(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Value, part: BlockPart
        ) -> None:
            if part.store:
                check_output(part.store, part.skipped, arguments_by_name(module, args, kwargs), output)

        watched = [
            part.module.register_forward_hook(partial(check, part=part), with_kwargs=True) for part in self.parts
        ]
        try:
            self.hook.forward(*args, **kwargs)
        finally:
            for remover in watched:
                remover.remove()
        self.verified = True

    def _shadow(self, block: nn.Module, row: Row) -> nn.Module:
        """A copy of the block with stand-ins; parameters, buffers and other attributes are shared."""
        shadow: nn.Module = object.__new__(type(block))  # copy.copy is refused while a schedule is applied
        shadow.__dict__.update(block.__dict__)
        for name in ("forward", "_diffusers_hook", "__reduce_ex__"):
            shadow.__dict__.pop(name, None)
        shadow.__dict__["_modules"] = dict(block._modules)
        for part, kind in zip(self.parts, row, strict=True):
            del shadow._modules[part.name]
            shadow.__dict__[part.name] = {"C": ComputedComponent, "R": GivenComponent, "S": SkippedComponent}[kind](
                part
            )
        return shadow


def _even(value: Any) -> Any:
    """A stream in contiguous memory, as blocks return it: a transposed first input would need more graphs."""
    return value.contiguous() if isinstance(value, Tensor) else value


class ComputedComponent:
    """In place of a component that runs; its output is recorded."""

    value: Value = None

    def __init__(self, part: BlockPart) -> None:
        self.forward = part.module.forward

    def __call__(self, *args: Any, **kwargs: Any) -> Value:
        self.value = self.forward(*args, **kwargs)
        return self.value


class GivenComponent:
    """In place of a component that is reused or forecast."""

    value: Value = None

    def __init__(self, part: BlockPart) -> None:
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> Value:
        return self.value


class SkippedComponent:
    """In place of a component that is skipped."""

    value: Value = None

    def __init__(self, part: BlockPart) -> None:
        self.names, self.skipped = parameter_names(type(part.module)), part.skipped

    def __call__(self, *args: Any, **kwargs: Any) -> Value:
        return skipped_output("a component", self.names, self.skipped, *args, **kwargs)


@cache
def compiled_variant(block: Any, names: tuple[str, ...], row: Row) -> Callable[..., Any]:
    """`_run` for these stand-ins, as a code object of its own: torch keeps graphs and counts recompilations by code."""
    name = f"{block.__name__}_{''.join(row)}"
    code = _run.__code__.replace(co_name=name, co_qualname=name)
    return types.FunctionType(code, _run.__globals__, argdefs=(names, row))


def _run(
    block: nn.Module,
    values: list[Value],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    names: tuple[str, ...] = (),
    row: Row = (),
) -> tuple[Value, list[Value]]:
    """Run a block with stand-ins on stored `values`: its output, and those of its computed components."""
    stand_ins = [getattr(block, name) for name in names]
    for i, stand_in in enumerate([s for s, kind in zip(stand_ins, row, strict=True) if kind == "R"]):
        stand_in.value = values[i]
    output = block.forward(*args, **kwargs)
    computed = [stand_in.value for stand_in, kind in zip(stand_ins, row, strict=True) if kind == "C"]
    for stand_in in stand_ins:
        stand_in.value = None
    return output, computed


def _plain(module: Any) -> bool:
    """Whether a module's forward is its class's own, or a layer's at few bits, so that a copy can run in its place."""
    hooks = getattr(module.__dict__.get("_diffusers_hook"), "hooks", {})
    replaced = "forward" in module.__dict__ and list(hooks) != [LAYER_HOOK]
    return not (replaced or module._forward_hooks or module._forward_pre_hooks)
