"""Applying a schedule to a live pipeline, and taking it off without a trace."""

import weakref
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any

from diffusers.hooks import HookRegistry, ModelHook
from torch import nn
from torch.utils.hooks import RemovableHandle

from search.schedule.apply.admission import BETWEEN, HOOK, check_denoiser, check_free, check_model
from search.schedule.apply.ahead import Ahead
from search.schedule.apply.bits import LayerBits
from search.schedule.apply.clock import Clock
from search.schedule.apply.compiled import Compile, CompiledBlock, Variants, block_variants, compiler
from search.schedule.apply.groups import Group, GroupHook, watch_blocks
from search.schedule.apply.hooks import BlockHook, ComponentHook, DenoiserHook, StepHook
from search.schedule.apply.injection import Injection
from search.schedule.apply.scheduler import (
    LinearSolver,
    plan_scheduler,
    resume_scheduler,
    scheduler_attributes,
    solver_progress,
)
from search.schedule.apply.stitch import DenoiserSwitch
from search.schedule.apply.stores import Correction, HalvedStore, MemoryMeter, Store, merge_halves, split_halves
from search.schedule.apply.tampering import ModuleSnapshot
from search.schedule.document import Document
from search.schedule.errors import ScheduleError
from search.schedule.model.contracts import Contract
from search.schedule.model.identity import denoiser_of
from search.schedule.model.nodes import ROOT, Tree, blocks_of
from search.schedule.plan.gates import Gate
from search.schedule.plan.guidance import is_narrow
from search.schedule.plan.plan import Plan
from search.schedule.plan.tokens import ABSENT, OFF, OWN


class Handle:
    """A schedule at work on a pipeline: a context manager, or `.remove()` when you are done."""

    def __init__(
        self,
        document: Document,
        pipe: Any,
        strict: bool = True,
        compile: bool | Compile | None = None,
        solver: LinearSolver | None = None,
        keep: Mapping[str, int] | None = None,
        bits: str = "simulate",
        corrections: Mapping[str, Correction] | None = None,
        models: Mapping[str, Any] | None = None,
    ) -> None:
        """`solver` runs instead of the file's own: what a least-squares fit of the solver uses.

        `keep` is how many of its latest values each node keeps to the end, whether this plan reads them or not:
        what `snapshot` needs. `corrections` are what the document's part of that name stands for, by node. `models`
        are pipelines or denoisers by the letters that the document's part of that name has.
        """
        self.denoiser = denoiser_of(pipe)
        check_denoiser(self.denoiser)
        own = document.model.contract
        self.tree = Tree.of(self.denoiser, Contract.from_dict(own) if own else None)
        check_model(document, self.denoiser, self.tree, strict)
        if document.corrections and not corrections:
            raise ScheduleError(
                "this schedule's corrections were not read; load it from its file with Schedule.load(path), the "
                ".safetensors beside it, or give them by schedule.with_corrections(tensors)"
            )
        self.corrections = dict(corrections or {})
        parts, at = document.models, document.at
        self.stitch = DenoiserSwitch.of(at, parts.names, models or {}, pipe, strict) if parts and at else None
        for other in self.stitch.denoisers.values() if self.stitch else ():
            check_free(other)
        self.bits = LayerBits(document.bits, self.denoiser, bits)
        steps = document.steps
        self.guidance = document.guide()
        self.keep = dict(keep or {})
        gates = document.decide()
        if gates and keep is not None:
            raise ScheduleError(
                f"{gates[0].name} is a group, and runs that are taken step by step (keep, snapshot) know no groups"
            )
        planned = (steps or 0) if self.guidance or gates or keep is not None else 0
        self.plan = document.resolve() or Plan(self.tree, planned, {n.name: (OFF,) * planned for n in self.tree})
        self._halved = self.guidance is not None and is_narrow(self.guidance.branch)
        self.clock, self.memory = Clock(), MemoryMeter()
        self._residual = document.plan is not None and document.plan.value == "residual"
        self.groups = [self._group(gate) for gate in gates]
        sampler, axis = document.sampler, document.plan.axis if document.plan else "index"
        table = sampler.coefficients if sampler else None
        self.solver = solver or (LinearSolver(table.state, table.outputs) if table else None)
        inject = document.start.inject if document.start else None
        self.injection = Injection(inject) if inject else None
        # fmt: off
        self.scheduler = plan_scheduler(
            pipe.scheduler, self.clock, steps=steps, axis=axis,
            class_name=sampler.class_name if sampler else None,
            config=sampler.config if sampler else None,
            timesteps=sampler.timesteps if sampler else None,
            sigmas=sampler.sigmas if sampler else None,
            order=[int(k) for k in sampler.order] if sampler and sampler.order else None,
            solver=self.solver,
            injection=self.injection,
        )
        # fmt: on
        self.stores: dict[str, Store] = {}
        runs = document.together() if keep is None else []  # what is taken step by step is not run ahead
        ahead = Ahead(runs, self.clock, self.memory, lambda: self.scheduler.timesteps)
        self.ahead = ahead if runs else None
        self.runs = 0
        self.clock.on_reset.append(self._reset)
        self._pipe = _weak(pipe)
        self._replaced = pipe.scheduler
        self._hooked: list[nn.Module] = []
        self._watched: list[RemovableHandle] = []
        pipe.scheduler = self.scheduler
        try:
            self._install(compile)
            self._intact = ModuleSnapshot(self.denoiser)
        except BaseException:
            self.remove()
            raise

    def __enter__(self) -> "Handle":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def remove(self) -> None:
        """Give the pipeline back as it was. Safe to call twice and after any exception."""
        self.clock.stop()
        while self._watched:
            self._watched.pop().remove()
        while self._hooked:
            module = self._hooked.pop()
            _beneath_offload(module, _unhook)
        self.bits.remove()
        pipe = self._pipe()
        if pipe is not None and pipe.scheduler is self.scheduler:
            pipe.scheduler = self._replaced

    def stats(self) -> dict[str, Any]:
        """What ran since the schedule was applied.

        `runs`; `denoiser_calls`; `models` {letter: times that it ran}; `nodes` {name: {action: times}} of every node
        that the plan touches and of groups; `gates`, what each group's gate decided (`Group.stats`);
        `block_executions` of the pipeline's own denoiser; `peak_bytes` of kept values.
        """
        nodes = {name: self._counts(tokens) for name, tokens in self.plan.tokens.items()}
        for group in self.groups:
            computed = {OFF: group.counts.get(OFF, 0)}
            within = {*group.gate.blocks}
            nodes |= {node.name: computed for node in self.tree if {node.name, node.parent} & within}
        others = dict(self.stitch.calls) if self.stitch else {}
        own = nodes[ROOT].get(OFF, 0) - sum(others.values())
        touched = {name: nodes[name] for name in (ROOT, *self.plan.planned())}
        touched |= {group.gate.name: dict(group.counts) for group in self.groups}
        return {
            "runs": self.runs,
            "denoiser_calls": sum(nodes[ROOT].values()),
            "models": {OWN: own} | others,
            "nodes": touched,
            "gates": [group.stats() for group in self.groups],
            "block_executions": sum(nodes[n.name].get(OFF, 0) for n in self.tree if n.kind == "block"),
            "peak_bytes": self.memory.peak,
        }

    def snapshot(self) -> dict[str, Any]:
        """All that the steps to come may read, between two steps of a run that keeps values (`keep`).

        Plain data that any number of handles on this pipeline may restore. Tensors are shared, not copied: nothing
        writes into them.
        """
        return {
            "step": self.clock.step,
            "halved": self._halved,
            "values": {name: dict(store.values) for name, store in self.stores.items()},
            "inputs": dict(self._root.inputs),
            "container": self._root.container,
            "scheduler": solver_progress(self.scheduler, self._fresh),
            "solver": list(self.solver.values) if self.solver else [],
            "noise": self.injection.noise if self.injection else None,
        }

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Go on where the snapshot was taken, in a run that has just begun (`scheduler.set_timesteps`)."""
        for name, store in self.stores.items():
            values = snapshot["values"].get(name, {})
            if self._halved != snapshot["halved"]:
                values = split_halves(values) if self._halved else merge_halves(values)
            store.restore(values)
        self.clock.go(snapshot["step"])
        self._root.inputs, self._root.container = dict(snapshot["inputs"]), snapshot["container"]
        resume_scheduler(self.scheduler, self._fresh, snapshot["scheduler"])
        if self.solver:
            self.solver.values = list(snapshot["solver"])
        if self.injection:
            self.injection.noise = snapshot["noise"]

    def _counts(self, tokens: Sequence[str]) -> dict[str, int]:
        """How often a node of these actions did each of them, by the denoiser's calls at each step."""
        found: dict[str, int] = {}
        for step, calls in self._root.calls.items():
            token = tokens[step] if tokens else OFF  # no plan: everything, at any number of steps
            if token != ABSENT:
                found[token] = found.get(token, 0) + calls
        return found

    def _install(self, compile: bool | Compile | None) -> None:
        planned = {*self.plan.planned(), *self.keep}
        self._wholes = [stack for stack in self.tree.stacks if stack in planned]
        self._wholes += [group.gate.name for group in self.groups if len(group.gate.blocks) > 1]
        inside = {block: group for group in self.groups for block in group.gate.blocks}
        root = self._store(ROOT)
        self._root = DenoiserHook(self.clock, root, self._check_run, self.guidance, self.stitch, self.ahead)
        self._add(self.denoiser, self._root)
        self.bits.install(self.clock, self._add, lambda: self.scheduler.timesteps.tolist())
        static = not (self.groups or self.corrections or self.ahead or self.bits.watches)  # the plan is all there is
        compiling, graphs = compiler(compile, self.denoiser, static)
        own = {name: self._store(name) for name in planned}
        stacks = self.tree.stacks if compiling and static else ()
        whole = {name: block_variants(self.tree, self.denoiser, name, self.plan, own) for name in stacks}
        for node in self.tree:
            module: Any = self.tree.module(self.denoiser, node)
            if node.kind == "component" and not whole.get(node.stack):
                if node.name in planned:
                    self._add(module, ComponentHook(self.clock, self._store(node.name), self.tree.skipped(node)))
            elif node.name in inside:
                group = inside[node.name]
                first, last = (node.name == group.gate.blocks[i] for i in (0, -1))
                outputs = self.tree.stack(node.stack).outputs
                self._add(module, GroupHook(self.clock, group, first, last, outputs))
            elif node.kind == "block" and ({node.name, node.parent} & planned or whole.get(node.stack)):
                contract = self.tree.stack(node.stack)
                blocks, kept = blocks_of(self.denoiser, contract), self._residual and bool(contract.outputs)
                stores = self._store(node.name), self._store(node.stack)
                self._add(module, BlockHook(self.clock, *stores, blocks, contract.outputs, kept))
        for group in self.groups:
            self._watched += watch_blocks(group, self.tree, self.denoiser)
        if compiling:
            self._compile(compiling, whole)
            self._root.graphs = graphs
            for store in self.stores.values():
                store.borrowed = graphs and store is not root  # whose hook copies in any case

    def _group(self, gate: Gate) -> Group:
        last = self.tree.nodes[gate.blocks[-1]]
        return Group(gate, self.tree.stack(last.stack).outputs, self.clock, self.memory, self.guidance)

    def _compile(self, compile: Compile, whole: Mapping[str, Variants]) -> None:
        """Compile whole blocks beneath their hooks, or their components: one graph a kind, whatever the plan."""
        around = {node.parent for node in self.tree}
        for node in self.tree:
            module: Any = self.tree.module(self.denoiser, node)
            if found := whole.get(node.stack):
                if node.kind == "block":
                    hook = module._diffusers_hook.get_hook(HOOK)
                    parts, needed = found[node.name]
                    hook.compiled = CompiledBlock(hook, parts, needed, compile).computing
            elif node.kind == "component" and node.name not in around:
                if module not in self._hooked:
                    self._add(module, StepHook(self.clock))
                hook = module._diffusers_hook.get_hook(HOOK)
                hook.compiled = partial(_same, compile(hook.forward))

    def _add(self, module: nn.Module, hook: ModelHook) -> None:
        def register(module: nn.Module) -> None:
            HookRegistry.check_if_exists_or_initialize(module).register_hook(hook, HOOK)
            if isinstance(hook, StepHook):
                hook.attend()

        _beneath_offload(module, register)
        self._hooked.append(module)

    def _store(self, name: str) -> Store:
        if name not in self.stores:
            if not self.plan.steps:
                self.stores[name] = _Idle(name, self)
            elif self.guidance and self._halved:
                self.stores[name] = HalvedStore(name, self.plan, self.memory, self.guidance)
            else:
                self.stores[name] = Store(name, self.plan, self.memory)
            self.stores[name].latest = self.keep.get(name, 0)
            self.stores[name].copies = self.tree.whole.copies and name != ROOT  # whose hook copies in any case
            self.stores[name].correction = self.corrections.get(name)
        return self.stores[name]

    def _reset(self) -> None:
        """Forget the values of the last run; a new one is counted where the pipeline still has our denoiser."""
        for store in self.stores.values():
            store.clear()
            store.weights.clear()
        for group in self.groups:
            group.clear()
        if self.ahead:
            self.ahead.clear()
        if self.clock.step < 0:
            return
        self._fresh = scheduler_attributes(self.scheduler)
        self.runs += 1
        pipe = self._pipe()
        if pipe is not None and (found := denoiser_of(pipe)) is not self.denoiser:
            raise ScheduleError(
                f"the pipeline's denoiser was replaced by a {type(found).__name__} after the schedule was applied; "
                "remove the schedule first (to compile, use schedule.apply(pipe, compile=True))"
            )
        self._intact.check()

    def _check_run(self, given: Mapping[str, Any]) -> None:
        """Refuse a call outside of the run, the scheduler and the pipeline that were planned."""
        if (added := next((name for name in BETWEEN if given.get(name) is not None), None)) and self._wholes:
            raise ScheduleError(
                f"this schedule reuses the whole of {self._wholes[0]}, which would drop {added}, what a ControlNet "
                "adds between its blocks; plan single blocks or components instead"
            )
        pipe = self._pipe()
        if pipe is not None and pipe.scheduler is not self.scheduler:
            raise ScheduleError(
                f"the pipeline's scheduler was replaced by {type(pipe.scheduler).__name__} after the schedule "
                "was applied; remove the schedule, set the scheduler, apply again"
            )
        if self.clock.step < 0:
            raise ScheduleError(
                "the denoiser was called outside of a run; call the pipeline, or scheduler.set_timesteps "
                "before a loop of your own, or remove the schedule"
            )
        if getattr(self.scheduler, "begin_index", None):
            raise ScheduleError(
                f"the run starts at step {self.scheduler.begin_index}; a schedule applies to whole runs, not "
                "to image-to-image or resumed ones"
            )


class _Idle(Store):
    """The denoiser of a schedule without a plan: computes at every step, whatever their number."""

    def __init__(self, name: str, handle: Handle) -> None:
        self.name, self.memory = name, handle.memory
        self.tokens, self.last_use = defaultdict(lambda: OFF), {}
        self.values, self.weights = {}, {}


def _same(compiled: Callable, step: int) -> Callable:
    return compiled


def _weak(pipe: Any) -> Callable[[], Any]:
    """The pipeline while somebody else holds it; for good where its class knows no weak references."""
    try:
        return weakref.ref(pipe)
    except TypeError:  # a SimpleNamespace, a class with slots
        return lambda: pipe


def _unhook(module: nn.Module) -> None:
    """Remove our hook, and what diffusers leaves behind once no other hook is there."""
    module._diffusers_hook.remove_hook(HOOK, recurse=False)
    if not module._diffusers_hook.hooks:
        del module._diffusers_hook
        if getattr(module.__dict__.get("forward"), "__func__", None) is type(module).forward:
            del module.forward  # the class's own method shows through again


def _beneath_offload(module: nn.Module, change: Callable[[nn.Module], Any]) -> None:
    """Run `change` beneath an accelerate offload hook, which would otherwise throw our hook away with itself."""
    offload = getattr(module, "_hf_hook", None)
    if offload is None:
        change(module)
        return
    from accelerate.hooks import add_hook_to_module, remove_hook_from_module

    remove_hook_from_module(module)
    try:
        change(module)
    finally:
        add_hook_to_module(module, offload)
