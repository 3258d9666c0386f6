"""Count the costs of every node in one call of the denoiser."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from search.profile.costs import Costs
from search.schedule.apply.outputs import unpack_output
from search.schedule.model.layers import is_layer, shape_of
from search.schedule.model.nodes import ROOT, Tree
from search.schedule.values import nbytes


def count_costs(
    denoiser: nn.Module, tree: Tree, steps: int, call: Callable[[], object], others: Sequence[nn.Module] = ()
) -> Costs:
    """Cost tables from one call of the denoiser for one picture, by torch's counter of operations.

    Args:
        denoiser: The module that is called.
        tree: Its nodes.
        steps: The number of the teacher's steps.
        call: Runs one step, for one picture (both CFG halves).
        others: Further experts of the pipeline, which may be called as well.

    Returns:
        MACs, bytes of values, and layers; without `milliseconds`, which `search.calibrate.latency` measures.
    """
    from torch.utils.flop_counter import FlopCounterMode

    experts = [denoiser, *others]

    sizes = dict.fromkeys((node.name for node in tree), 0)  # some components are in no call
    counts = dict.fromkeys(sizes, 0)
    counter = FlopCounterMode(display=False)
    removers = []
    modules = {name: module for name, module in denoiser.named_modules() if is_layer(module)}
    layers = dict.fromkeys(modules, 0)
    uncounted = False  # whether the counter fails: then MACs are those of layers, without attention

    def total() -> int:
        return sum(layers.values()) if uncounted else counter.get_total_flops() // 2

    for name in modules:

        def multiply(module: nn.Module, _: object, output: Tensor, name: str = name) -> None:
            layers[name] += output.numel() * shape_of(module)[1]

        removers += [expert.get_submodule(name).register_forward_hook(multiply) for expert in experts]
    for node in tree:
        begun: list[int] = []

        def before(*_: object, begun: list[int] = begun) -> None:
            begun.append(total())

        def after(_: object, __: object, output: object, name: str = node.name, begun: list[int] = begun) -> None:
            # the two branches of guidance may be two calls, with values of their own
            sizes[name] += nbytes(unpack_output(output)[0] if output is not None else None)
            counts[name] += total() - begun.pop()

        for expert in experts:
            if (module := tree.module(expert, node)) is not None:
                removers += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        if uncounted := _uses_flex_attention(denoiser) or not _run_counted(counter, call):
            for table in (sizes, counts, layers):
                table.update(dict.fromkeys(table, 0))
            with torch.no_grad():
                call()
    finally:
        for remover in removers:
            remover.remove()
    for stack in tree.stack_contracts:
        sizes[stack.name] = sizes[f"{stack.name}.{tree.stacks[stack.name] - 1}"]
    components = _components(tree, counts)
    return Costs(
        steps,
        components,
        counts[ROOT] - sum(components.values()),
        sizes,
        layer_macs=layers,
        layer_shapes={name: shape_of(module) for name, module in modules.items()},
        layer_bytes={name: (tensor_bytes(m.weight), tensor_bytes(m.bias)) for name, m in modules.items()},
        weight_bytes=sum(tensor_bytes(parameter) for expert in experts for parameter in expert.parameters()),
    )


def _components(tree: Tree, counts: Mapping[str, int]) -> dict[str, int]:
    """MACs of each component without those within it, and of what a block does beside its components."""
    alone = dict(counts)
    for node in tree:
        if node.kind == "component":
            alone[node.parent or ROOT] -= counts[node.name]
    return {
        node.name: alone[node.name]
        for node in tree
        if node.kind == "component" or (node.kind == "block" and alone[node.name])
    }


def _run_counted(counter: Any, call: Callable[[], object]) -> bool:
    """Make a call with torch's counter of operations; False where it has operations that this fails on."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    try:
        # the math backend spells attention out as matrix products, which are counted on every device
        with torch.no_grad(), counter, sdpa_kernel(SDPBackend.MATH):
            call()
    except AssertionError:  # of the counter, in text encoders that switch gradients on
        return False
    return True


def _uses_flex_attention(denoiser: nn.Module) -> bool:
    """Whether a denoiser's file names flex_attention: torch's counter fails on it, and leaves torch in disorder."""
    try:
        source = inspect.getsource(inspect.getmodule(type(denoiser)))  # type: ignore[arg-type]
    except (OSError, TypeError):  # a class that was typed in
        return False
    return "flex_attention" in source


def tensor_bytes(tensor: Tensor | None) -> int:
    """Bytes of a tensor; 0 for None."""
    return 0 if tensor is None else tensor.numel() * tensor.element_size()
