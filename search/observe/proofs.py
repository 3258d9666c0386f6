"""Prove a contract on the denoiser itself: what a schedule does there is what plain forward hooks by hand do.

Every proof is two calls of the denoiser for each branch, with the inputs that the pipeline gave it at two steps. The
first computes everything; in the second a part is reused or skipped. What fails is left out of the contract.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from search.observe.run import DenoiserCall
from search.schedule.apply.calls import arguments_by_name
from search.schedule.errors import ScheduleError
from search.schedule.model.contracts import Contract, Stack
from search.schedule.model.identity import model_part
from search.schedule.model.modules import blocks_of
from search.schedule.model.nodes import Tree
from search.schedule.schedule import Schedule

Calls = Sequence[Sequence[DenoiserCall]]  # [2 steps][branches]
Rules = list[list[str]]
Replacement = Callable[[nn.Module, Any, Any, Any], Any]  # module, its arguments, its value at the first step


@dataclass(frozen=True)
class Proof:
    """One thing that was tried: what of which stack or component, and why it cannot be planned ("" where it can)."""

    node: str  # a selector
    action: str  # reuse, skip
    failure: str = ""


def prove(denoiser: nn.Module, contract: Contract, calls: Calls) -> tuple[Contract, list[Proof]]:
    """The part of a contract that holds, and everything that was tried.

    Raises:
        ScheduleError: Not even a schedule that changes nothing gives what the bare denoiser gives.
    """
    with torch.no_grad():
        prover = _Prover(denoiser, contract, calls)
        if not _equal([[_call(denoiser, call) for call in branches] for branches in calls], prover.scheduled([])):
            remedy = "it is not deterministic, or it keeps values of its own from one call to the next"
            if denoiser.training:
                remedy = "it is in training mode, call .eval() on it"
            raise ScheduleError(
                f"{type(denoiser).__name__} gives something else with a schedule that changes nothing, so it cannot be "
                f"planned: {remedy}"
            )
        stacks = tuple(prover.prove_stack(stack) for stack in contract.stacks)
    return replace(contract, stacks=stacks), prover.proofs


class _Prover:
    """Tries the nodes of one contract, and writes down what it tried."""

    def __init__(self, denoiser: nn.Module, contract: Contract, calls: Calls) -> None:
        self.denoiser, self.calls = denoiser, calls
        self.model, self.tree = model_part(denoiser, contract), Tree.of(denoiser, contract)
        self.proofs: list[Proof] = []

    def prove_stack(self, stack: Stack) -> Stack:
        """The stack with the outputs, components, zeros and passes that hold."""
        blocks, every = blocks_of(self.denoiser, stack), f"{stack.name}.*"
        if not self._holds(every, "reuse", every, blocks, _reused):
            return replace(stack, outputs=(), components=(), zeros={}, passes=())
        if stack.outputs:
            middle = len(blocks) // 2
            passed = partial(_passed, stack.outputs)
            if not self._holds(stack.name, "reuse", stack.name, blocks[-1:], _reused) or not self._holds(
                every, "skip", f"{stack.name}.{middle}", blocks[middle : middle + 1], passed
            ):
                stack = replace(stack, outputs=())
        components, zeros, passes = list(stack.components), dict(stack.zeros), list(stack.passes)
        for path in stack.components:
            name = f"{every}:{path}"
            nodes = [self.tree.nodes[node] for node in self.tree.select(name)]
            modules = [m for node in nodes if (m := self.tree.module(self.denoiser, node)) is not None]
            way = self.tree.skipped(nodes[0])
            reused = self._holds(name, "reuse", name, modules, _reused)
            if not reused:
                components.remove(path)
            if not reused or (way is not None and not self._holds(name, "skip", name, modules, partial(_skipped, way))):
                zeros.pop(path, None)
                passes = [each for each in passes if each != path]
        return replace(stack, components=tuple(components), zeros=zeros, passes=tuple(passes))

    def _holds(
        self, node: str, action: str, selector: str, modules: Sequence[nn.Module], replacement: Replacement
    ) -> bool:
        """Whether a plan of one rule gives what hooks by hand give."""
        try:
            planned = self.scheduled([[selector, "C R" if action == "reuse" else "C S"]])
        except Exception as error:  # ours, or the denoiser's own on values that it cannot work with
            failure = str(error) if isinstance(error, ScheduleError) else f"{type(error).__name__}: {error}"
        else:
            by_hand = _by_hand(self.denoiser, self.calls, modules, replacement)
            failure = "" if _equal(planned, by_hand) else "differs from hooks by hand"
        self.proofs.append(Proof(node, action, failure))
        return not failure

    def scheduled(self, rules: Rules) -> list[list[Any]]:
        """What the denoiser gives at each call under a plan of these rules."""
        pipe = SimpleNamespace(denoiser=self.denoiser, scheduler=FlowMatchEulerDiscreteScheduler())
        data: dict[str, Any] = {"format": "schedule/1", "model": self.model, "steps": len(self.calls)}
        if rules:
            data["plan"] = {"rules": rules}
        outputs = []
        with Schedule.from_dict(data).apply(pipe):
            pipe.scheduler.set_timesteps(len(self.calls))
            latents = torch.zeros(1)
            for branches, t in zip(self.calls, pipe.scheduler.timesteps, strict=True):
                outputs.append([_call(self.denoiser, call) for call in branches])
                pipe.scheduler.step(latents, t, latents)
        return outputs


class _Replaced:
    """A forward hook by hand: lets a module compute at the first step, and replaces its output at the second."""

    def __init__(self, replacement: Replacement) -> None:
        self.replacement, self.step, self.branch = replacement, 0, 0
        self.values: dict[tuple[nn.Module, int], Any] = {}

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if self.step == 0:
            self.values[module, self.branch] = tree_map_only(Tensor, torch.clone, output)
            return output
        return self.replacement(module, args, kwargs, self.values[module, self.branch])


def _by_hand(
    denoiser: nn.Module, calls: Calls, modules: Sequence[nn.Module], replacement: Replacement
) -> list[list[Any]]:
    """What the denoiser gives at each call where plain hooks replace the outputs of modules at the second step."""
    hook = _Replaced(replacement)
    outputs: list[list[Any]] = []
    handles = [module.register_forward_hook(hook, with_kwargs=True) for module in modules]
    try:
        for hook.step, branches in enumerate(calls):
            outputs.append([])
            for hook.branch, call in enumerate(branches):
                outputs[-1].append(_call(denoiser, call))
    finally:
        for handle in handles:
            handle.remove()
    return outputs


def _reused(module: nn.Module, args: Any, kwargs: Any, value: Any) -> Any:
    return value


def _passed(outputs: Sequence[str], module: nn.Module, args: Any, kwargs: Any, value: Any) -> Any:
    given = arguments_by_name(module, args, kwargs)
    return given[outputs[0]] if len(outputs) == 1 else tuple(given[name] for name in outputs)


def _skipped(way: Sequence[str], module: nn.Module, args: Any, kwargs: Any, value: Any) -> Any:
    given = arguments_by_name(module, args, kwargs)
    if not way:
        first = next(iter(given.values()))
        return first if isinstance(value, Tensor) else (first,)
    zeros = tuple(torch.zeros_like(given[name]) for name in way)
    return zeros[0] if len(zeros) == 1 else zeros


def _call(denoiser: nn.Module, call: DenoiserCall) -> Any:
    return denoiser(*call.args, **call.kwargs)


def _equal(a: Any, b: Any) -> bool:
    """Equal to the bit, in structure and in every tensor; tensors that are not finite prove nothing."""
    left, right = tree_leaves(a), tree_leaves(b)
    return len(left) == len(right) and all(
        torch.equal(x, y) if isinstance(x, Tensor) and isinstance(y, Tensor) else x is y or x == y
        for x, y in zip(left, right, strict=True)
    )
