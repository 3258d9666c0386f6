"""Installing a resolved schedule on a pipeline, and removing it without a trace."""

from collections.abc import Mapping
from types import TracebackType
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from search.schedule.apply.admission import check_arguments
from search.schedule.apply.compiled import Compile, CompiledBlock, Variants, block_variants, compiler
from search.schedule.apply.denoiser_hook import DenoiserHook, ExpertHook
from search.schedule.apply.group_hooks import GroupHook, watch_blocks
from search.schedule.apply.hooking import add_hook, hook_of, remove_hook
from search.schedule.apply.hooks import BlockHook, ComponentHook, PlannedHook, StepHook
from search.schedule.apply.linear_solver import LinearSolver
from search.schedule.apply.monitor import OutputMonitor, guard_of
from search.schedule.apply.resolved_run import ResolvedRun, resolve_run
from search.schedule.apply.run_checks import check_call, check_ended, check_run
from search.schedule.apply.run_counts import count_runs
from search.schedule.apply.stores import Correction, Store, merge_halves, split_halves
from search.schedule.apply.tampering import ModuleSnapshot
from search.schedule.document import Document
from search.schedule.model.modules import blocks_of
from search.schedule.model.nodes import ROOT, Node


def apply_document(
    document: Document,
    pipe: Any,
    *,
    strict: bool = True,
    compile: bool | Compile | None = None,
    solver: LinearSolver | None = None,
    keep: Mapping[str, int] | None = None,
    bits: str = "simulate",
    tensors: Mapping[str, Tensor] | None = None,
    corrections: Mapping[str, Correction] | None = None,
    models: Mapping[str, Any] | None = None,
    guard: bool | OutputMonitor = False,
) -> "Handle":
    """Run a pipeline by a document until the handle is removed; what `Schedule.apply` calls.

    All checks come before the pipeline is changed.

    Args:
        document: The content of the schedule file.
        pipe: A pipeline of diffusers, or any object with `scheduler` and a denoiser.
        strict: Whether the denoiser's fingerprint has to be that of the file.
        compile: True for torch.compile, or a function that compiles in its place.
        solver: Runs instead of the file's solver: what a least-squares fit of the solver uses.
        keep: How many of its latest values each node keeps to the end, whether the plan reads them or not: what
            `Handle.snapshot` needs.
        bits: What runs layers at few bits, "simulate" or "torchao".
        tensors: Those that the document's parts name, from the file beside the schedule.
        corrections: By node, what corrects its reused values, in the place of those that the document names.
        models: Pipelines or denoisers by the letters of the document's part of that name.
        guard: Whether a run whose outputs change unlike those of certified runs is computed in full from there on; or
            what else is given the outputs.

    Raises:
        ScheduleError: The schedule cannot be applied to this pipeline; the text says what to change.
    """
    check_arguments(strict, compile, bits, models, guard)
    run = resolve_run(
        document,
        pipe,
        strict=strict,
        solver=solver,
        keep=keep,
        bits=bits,
        tensors=tensors or {},
        corrections=corrections,
        models=models,
    )
    run.clock.monitor = guard if isinstance(guard, OutputMonitor) else guard_of(document) if guard else None
    return Handle(run, compile)


class Handle:
    """A schedule that is applied to a pipeline: a context manager; `.remove()` ends it as well."""

    def __init__(self, run: ResolvedRun, compile: bool | Compile | None = None) -> None:
        """Install the run: the planned scheduler on the pipeline, hooks on the denoiser's modules."""
        self.run, self.clock, self.memory, self.groups = run, run.clock, run.memory, run.groups
        self.stores: dict[str, Store] = {}
        self.runs = 0  # that began since the schedule was applied
        self._continued: Mapping[str, Any] | None = None  # the snapshot that the next run goes on from
        self.clock.on_reset.append(self._reset)
        self._hooked: list[tuple[nn.Module, PlannedHook]] = []
        self._watched: list[RemovableHandle] = []
        pipe = run.pipe()
        self._replaced_scheduler = pipe.scheduler
        object.__setattr__(pipe, "scheduler", run.scheduler)  # the pipeline's configuration still names its own
        try:
            self._install(compile)
            self._modules = [ModuleSnapshot(expert) for expert in run.experts]
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
        """Give the pipeline back as it was. Safe to call twice and after any exception.

        Raises:
            ScheduleError: A call of the pipeline is in the middle of a run; nothing was changed.
        """
        check_ended(self.clock)
        self.clock.removed = True
        self.clock.stop()
        while self._watched:
            self._watched.pop().remove()
        while self._hooked:
            remove_hook(*self._hooked.pop())
        pipe = self.run.pipe()
        if pipe is not None and pipe.scheduler is self.run.scheduler:
            object.__setattr__(pipe, "scheduler", self._replaced_scheduler)

    def stats(self) -> dict[str, Any]:
        """Count what ran since the schedule was applied.

        Returns:
            `runs`; `denoiser_calls`; `models` {letter: calls}; `nodes` {name: {action: times}} of every node that the
            plan touches and of groups; `gates`, what each group's gate decided (`Group.stats`); `block_executions` of
            the pipeline's own denoiser; `peak_bytes` of stored values. With `guard`: `unusual_runs`, how many were
            computed in full from some step on, and `full_calls`, those of the denoiser there.
        """
        return count_runs(self)

    def snapshot(self) -> dict[str, Any]:
        """Take all that later steps may read, between two steps of a run that keeps values (`keep`).

        Plain data that any number of handles on this pipeline may restore. Tensors are shared, not copied: nothing
        writes into them.
        """
        return {
            "halved": self.run.halved,
            "values": {name: dict(store.values) for name, store in self.stores.items()},
            "inputs": dict(self.root.inputs),
            "container": self.root.container,
            "outputs": tuple(self.root.recorded),
        }

    def continue_from(self, snapshot: Mapping[str, Any] | None) -> None:
        """Let the next run begin with the steps of a snapshot: the denoiser is answered there, all else runs.

        Scheduler, guidance, noise that is drawn, masks and callbacks then are where they would be, by themselves.
        """
        self._continued = snapshot

    def _restore(self, snapshot: Mapping[str, Any]) -> None:
        """The values that the later steps of a run read; its first steps touch none."""
        run = self.run
        for name, store in self.stores.items():
            values = snapshot["values"].get(name, {})
            if run.halved != snapshot["halved"]:
                values = split_halves(values) if run.halved else merge_halves(values)
            store.restore(values)
        self.root.inputs, self.root.container = dict(snapshot["inputs"]), snapshot["container"]

    def _install(self, compile: bool | Compile | None) -> None:
        """Put a hook on each expert and on every module that the plan, a group or a format concerns."""
        run = self.run
        planned = {*run.plan.planned(), *run.latest}
        self._reused_stacks = [stack for stack in run.tree.stacks if stack in {*run.plan.planned()}]
        self._reused_stacks += [group.gate.name for group in self.groups if len(group.gate.blocks) > 1]
        root = self._store(ROOT)
        self.root = DenoiserHook(self.clock, self.stores, self._begin_call, run.guidance, run.stitch, run.ahead)
        self.root.records = run.stepwise
        changing = any(bits.runs_hooks for bits in run.bits)
        static = not (self.groups or run.corrections or run.ahead or changing)  # the plan is all there is
        if run.stitch:
            run.stitch.timesteps = self._timesteps
        compiling, graphs = compiler(compile, run.experts[0], static)
        for number, expert in enumerate(run.experts):
            self._add(expert, ExpertHook(self.root, number) if number else self.root)
            run.bits[number].install(self.clock, self._add, self._timesteps, lambda: run.scheduler)
            self._install_nodes(expert, planned, compiling, static)
        self.root.strict = bool(compiling or self.groups or run.guidance or run.ahead)
        if compiling:
            self.root.graphs = graphs
            for store in self.stores.values():
                store.borrowed = graphs and store is not root  # the denoiser's hook copies in any case

    def _install_nodes(self, expert: nn.Module, planned: set[str], compiling: Compile | None, static: bool) -> None:
        """Put hooks on the nodes of one expert; the values of a node are in one store, whichever expert runs."""
        run = self.run
        stores = {name: self._store(name) for name in planned}
        stacks = run.tree.stacks if compiling and static else ()
        variants = {name: block_variants(run.tree, expert, name, run.plan, stores) for name in stacks}
        for node in run.tree:
            if (hook := self._hook(expert, node, planned, bool(variants.get(node.stack)))) is not None:
                module: Any = run.tree.module(expert, node)
                self._add(module, hook)
        for group in self.groups:
            self._watched += watch_blocks(group, run.tree, expert)
        if compiling:
            self._compile(expert, compiling, variants)

    def _hook(self, expert: nn.Module, node: Node, planned: set[str], compiled_whole: bool) -> PlannedHook | None:
        """The hook that a node's module needs; None where it runs as it is.

        `compiled_whole`: the node's block is compiled with its components, which then need no hooks.
        """
        run = self.run
        if node.kind == "component":
            if compiled_whole or node.name not in planned:
                return None
            return ComponentHook(self.clock, self._store(node.name), run.tree.skipped(node))
        if node.kind != "block":
            return None
        stack = run.tree.stack(node.stack)
        for group in self.groups:
            if node.name in group.gate.blocks:
                first, last = (node.name == group.gate.blocks[i] for i in (0, -1))
                return GroupHook(self.clock, group, first, last, stack.outputs)
        if not ({node.name, node.parent} & planned or compiled_whole):
            return None
        residual = run.residual and bool(stack.outputs)
        stores = self._store(node.name), self._store(node.stack)
        return BlockHook(self.clock, *stores, blocks_of(expert, stack), stack.outputs, residual)

    def _compile(self, expert: nn.Module, compile: Compile, variants: Mapping[str, Variants]) -> None:
        """Compile whole blocks beneath their hooks, or their components: one graph a kind, whatever the plan."""
        run = self.run
        parents = {node.parent for node in run.tree}
        for node in run.tree:
            module: Any = run.tree.module(expert, node)
            if whole_blocks := variants.get(node.stack):
                if node.kind == "block":
                    parts, rows = whole_blocks[node.name]
                    hook = hook_of(module)
                    hook.compiled = CompiledBlock(hook, parts, rows, compile).computing
            elif node.kind == "component" and node.name not in parents:
                if hook_of(module) is None:
                    self._add(module, StepHook(self.clock))
                hook = hook_of(module)
                compiled = compile(hook.forward)
                hook.compiled = lambda step, compiled=compiled: compiled

    def _timesteps(self) -> list[float]:
        """Those of the current run, without the first ones where it begins later, from a picture."""
        scheduler = self.run.scheduler
        timesteps: list[float] = scheduler.timesteps.tolist()
        left_out = max(0, len(timesteps) - getattr(scheduler, "schedule_steps", len(timesteps)))
        return timesteps[self.clock.begin or left_out or getattr(scheduler, "begin_index", None) or 0 :]

    def _add(self, module: nn.Module, hook: PlannedHook) -> None:
        add_hook(module, hook)
        self._hooked.append((module, hook))

    def _store(self, name: str) -> Store:
        if name not in self.stores:
            self.stores[name] = self.run.new_store(name)
        return self.stores[name]

    def _reset(self) -> None:
        """Forget the values of the last run; count a new one, and check that the pipeline has the same denoiser."""
        for store in self.stores.values():
            store.clear()
            store.weights.clear()
        for group in self.groups:
            group.clear()
        if self.run.ahead:
            self.run.ahead.clear()
        if self.run.injection:
            self.run.injection.noise = None
        if self.run.solver:
            self.run.solver.values = []
        if self.clock.step < 0:
            self.root.begin_run()
            for bits in self.run.bits:
                bits.end_run()
            return
        self.runs += 1
        snapshot, self._continued = self._continued, None
        self.root.begin_run(snapshot["outputs"] if snapshot else ())
        if snapshot:
            self._restore(snapshot)
        check_run(self.run)
        for modules, bits in zip(self._modules, self.run.bits, strict=True):
            modules.check()
            bits.begin_run()

    def _begin_call(self, expert: int, arguments: Mapping[str, Any]) -> None:
        """Before an expert is called: check the call, and take the weights that it runs with."""
        clock = self.clock
        check_call(self.run, arguments, self._reused_stacks)
        if clock.calls == 0 or expert:  # the second one may be called second
            self.run.bits[expert].take_weights()
