"""Hooks on the blocks of a group, and on the modules that its gate's signal reads."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from search.schedule.apply.calls import arguments_by_name, parameter_names, replaced_arguments
from search.schedule.apply.clock import Clock
from search.schedule.apply.groups import Group
from search.schedule.apply.hooks import StepHook
from search.schedule.apply.outputs import check_block
from search.schedule.errors import ScheduleError
from search.schedule.model.nodes import Tree
from search.schedule.plan.tokens import OFF
from search.schedule.values import Value


class GroupHook(StepHook):
    """A block of a group: at the first one the gate decides; the last one returns the value of a skipped group."""

    def __init__(self, clock: Clock, group: Group, first: bool, last: bool, outputs: Sequence[str]) -> None:
        super().__init__(clock)
        self.group, self.first, self.last, self.outputs = group, first, last, outputs
        self.verified = False

    def action(self, step: int) -> Callable[..., Any]:
        return self._run

    def _run(self, *args: Any, **kwargs: Any) -> Value:
        group, module = self.group, self.module
        if self.first:
            inputs = replaced_arguments(module, args, kwargs, group.streams)
            group.enter(inputs, _first(module, args, kwargs), lambda: self._probe(args, kwargs))
        if group.token == OFF:
            output = self.forward(*args, **kwargs)
            if not self.verified:
                name = f"{group.gate.name}: a {type(module).__name__}"
                check_block(name, self.outputs, arguments_by_name(module, args, kwargs), output)
                self.verified = True
            if self.last:
                group.leave(output)
            return output
        return group.value() if self.last else replaced_arguments(module, args, kwargs, self.outputs)

    def _probe(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
        """The input of the block's first component: the block is run up to there and left by an exception."""
        self.group.probing = True
        try:
            self.forward(*args, **kwargs)
        except _Reached as reached:
            return reached.value
        finally:
            self.group.probing = False
        raise ScheduleError(f"{self.group.gate.blocks[0]} runs none of its components; use signal model_input")


class _Reached(Exception):
    """A component is about to run, on this value."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value


def watch_blocks(group: Group, tree: Tree, denoiser: nn.Module) -> list[RemovableHandle]:
    """Hook the modules outside of the group, or in its first block, whose inputs the group's signal needs."""
    first, signal = group.gate.blocks[0], group.gate.signal

    def record_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        group.recorded = _first(module, args, kwargs)

    def stop_probe(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if group.probing:
            raise _Reached(_first(module, args, kwargs))

    hooked: list[tuple[nn.Module | None, Callable[..., Any]]] = []
    if signal == "first_block_residual":
        hooked = [(tree.module(denoiser, tree.nodes[group.gate.before]), record_input)]
    elif signal == "model_input":
        hooked = [(denoiser, record_input)]
    elif signal == "modulated_input":
        hooked = [(tree.module(denoiser, node), stop_probe) for node in tree if node.parent == first]
    return [module.register_forward_pre_hook(hook, with_kwargs=True) for module, hook in hooked if module is not None]


def _first(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    """The first argument of a call: the main stream."""
    return arguments_by_name(module, args, kwargs)[parameter_names(type(module))[0]]
