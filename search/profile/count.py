"""Count the costs of every node in one call of the denoiser."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from search.profile.costs import Costs
from search.schedule.apply.outputs import unpack_output
from search.schedule.model.layers import is_layer, shape_of
from search.schedule.model.nodes import ROOT, Tree
from search.schedule.values import nbytes


def count_costs(denoiser: nn.Module, tree: Tree, steps: int, call: Callable[[], object]) -> Costs:
    """Cost tables from one call of the denoiser for one picture, by torch's counter of operations.

    Args:
        denoiser: The module that is called.
        tree: Its nodes.
        steps: The number of the teacher's steps.
        call: Runs the denoiser once, for one picture (both CFG halves).

    Returns:
        MACs, bytes of values, and layers; without `milliseconds`, which `search.calibrate.latency` measures.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    sizes = dict.fromkeys((node.name for node in tree), 0)  # some components are in no call
    counts = dict.fromkeys(sizes, 0)
    counter = FlopCounterMode(display=False)
    removers = []
    modules = {name: module for name, module in denoiser.named_modules() if is_layer(module)}
    layers = dict.fromkeys(modules, 0)
    for name, module in modules.items():

        def multiply(module: nn.Module, _: object, output: Tensor, name: str = name) -> None:
            layers[name] += output.numel() * shape_of(module)[1]

        removers.append(module.register_forward_hook(multiply))
    for node in tree:
        module = tree.module(denoiser, node)
        if module is None:
            continue
        begun: list[int] = []

        def before(*_: object, begun: list[int] = begun) -> None:
            begun.append(counter.get_total_flops())

        def after(_: object, __: object, output: object, name: str = node.name, begun: list[int] = begun) -> None:
            # the two branches of guidance may be two calls, with values of their own
            sizes[name] += nbytes(unpack_output(output)[0] if output is not None else None)
            counts[name] += (counter.get_total_flops() - begun.pop()) // 2

        removers += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        # the math backend spells attention out as matrix products, which are counted on every device
        with torch.no_grad(), counter, sdpa_kernel(SDPBackend.MATH):
            call()
    finally:
        for remover in removers:
            remover.remove()
    for stack in tree.stack_contracts:
        sizes[stack.name] = sizes[f"{stack.name}.{tree.stacks[stack.name] - 1}"]
    without_components = dict(counts)
    for node in tree:
        if node.kind == "component":
            without_components[node.parent or ROOT] -= counts[node.name]
    components = {
        node.name: without_components[node.name]
        for node in tree
        if node.kind == "component" or (node.kind == "block" and without_components[node.name])
    }
    return Costs(
        steps,
        components,
        counts[ROOT] - sum(components.values()),
        sizes,
        layer_macs=layers,
        layer_shapes={name: shape_of(module) for name, module in modules.items()},
        layer_bytes={name: (tensor_bytes(m.weight), tensor_bytes(m.bias)) for name, m in modules.items()},
        weight_bytes=sum(tensor_bytes(parameter) for parameter in denoiser.parameters()),
    )


def tensor_bytes(tensor: Tensor | None) -> int:
    """Bytes of a tensor; 0 for None."""
    return 0 if tensor is None else tensor.numel() * tensor.element_size()
