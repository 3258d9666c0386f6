"""What a schedule does on one pipeline, resolved and checked; nothing on the pipeline is changed here."""

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from search.schedule.apply.admission import check_experts, check_free, check_model
from search.schedule.apply.ahead import Ahead
from search.schedule.apply.bits import LayerBits
from search.schedule.apply.clock import Clock
from search.schedule.apply.corrections import corrections_to_run
from search.schedule.apply.finite_check import FiniteCheck
from search.schedule.apply.groups import Group
from search.schedule.apply.injection import Injection
from search.schedule.apply.linear_solver import LinearSolver
from search.schedule.apply.pipeline_call import PipelineCall
from search.schedule.apply.scheduler import plan_scheduler
from search.schedule.apply.stitch import DenoiserSwitch, gaussians_of
from search.schedule.apply.stores import Correction, HalvedStore, MemoryMeter, Store, StoreWithoutPlan
from search.schedule.document import Document
from search.schedule.errors import ScheduleError
from search.schedule.model.contracts import Contract
from search.schedule.model.identity import experts_of
from search.schedule.model.nodes import ROOT, Tree
from search.schedule.plan.gates import Gate
from search.schedule.plan.guidance import Guidance, is_narrow
from search.schedule.plan.plan import Plan
from search.schedule.plan.tokens import OFF


@dataclass(frozen=True, eq=False)
class ResolvedRun:
    """A document on one pipeline: its nodes and their actions, and what keeps the state of a run.

    `pipe` gives the pipeline, or None once nothing else holds it. `experts` are its denoisers, mostly one; `bits` has
    the layers of each. `scheduler` is the planned copy of the pipeline's.
    `latest` is how many of its latest values each node keeps to the end of a run. `stepwise`:
    snapshots are taken of its runs. `halved`: some steps compute the conditional half of the batch only. `residual`:
    blocks keep what they add to their inputs.
    """

    pipe: Callable[[], Any]
    experts: tuple[nn.Module, ...]
    tree: Tree
    plan: Plan
    residual: bool
    latest: Mapping[str, int]
    stepwise: bool
    guidance: Guidance | None
    halved: bool
    corrections: Mapping[str, Correction]
    stitch: DenoiserSwitch | None
    bits: tuple[LayerBits, ...]
    clock: Clock
    memory: MemoryMeter
    groups: Sequence[Group]
    solver: LinearSolver | None
    injection: Injection | None
    scheduler: Any
    ahead: Ahead | None

    def new_store(self, name: str) -> Store:
        """A store of one node, for the values that this plan and `latest` keep of it."""
        store: Store
        if not self.plan.steps:
            store = StoreWithoutPlan(name, self.memory)
        elif self.guidance and self.halved:
            store = HalvedStore(name, self.plan, self.memory, self.guidance)
        else:
            store = Store(name, self.plan, self.memory)
        store.latest = self.latest.get(name, 0)
        store.copies = self.tree.contract.copies and name != ROOT  # the denoiser's hook copies in any case
        store.correction = self.corrections.get(name)
        return store


def resolve_run(
    document: Document,
    pipe: Any,
    *,
    strict: bool = True,
    solver: LinearSolver | None = None,
    keep: Mapping[str, int] | None = None,
    bits: str = "simulate",
    tensors: Mapping[str, Tensor],
    corrections: Mapping[str, Correction] | None = None,
    models: Mapping[str, Any] | None = None,
) -> ResolvedRun:
    """Resolve a document on a pipeline, with all checks; the arguments are those of `apply_document`.

    Raises:
        ScheduleError: The schedule cannot be applied to this pipeline.
    """
    experts = experts_of(pipe)
    check_experts(experts, document)
    if not hasattr(getattr(pipe, "scheduler", None), "set_timesteps"):
        raise ScheduleError(f"{type(pipe).__name__} has no scheduler; give it one, as pipelines of diffusers have")
    tree = Tree.of(experts[0], Contract.from_dict(given) if (given := document.model.contract) else None)
    check_model(document, experts[0], tree, strict)
    parts, at = document.models, document.at
    others = {**gaussians_of(at, tensors), **(models or {})}
    stitch = DenoiserSwitch.of(at, parts.names, others, pipe, strict) if parts and at else None
    for other in stitch.denoisers.values() if stitch else ():
        check_free(other)
    layer_bits = tuple(LayerBits(document.bits, expert, bits, tensors) for expert in experts)
    guidance, gates, stepwise = document.resolved_guidance, document.resolved_gates, keep is not None
    if gates and stepwise:
        raise ScheduleError(
            f"{gates[0].name} is a group, and runs that are taken step by step (keep, snapshot) know no groups"
        )
    steps = (document.steps or 0) if guidance or gates or stepwise else 0
    plan = document.resolved_plan or Plan(tree, steps, {node.name: (OFF,) * steps for node in tree})
    weak_pipe = _weak(pipe)
    clock, memory = Clock(partial(PipelineCall.find, weak_pipe), None if stepwise else FiniteCheck()), MemoryMeter()
    solver, injection = solver or _solver(document), _injection(document)
    scheduler = _scheduler(document, pipe.scheduler, clock, solver, injection)
    batched = [] if stepwise else document.batched_steps
    return ResolvedRun(
        pipe=weak_pipe,
        experts=experts,
        tree=tree,
        plan=plan,
        residual=document.plan is not None and document.plan.value == "residual",
        latest=dict(keep or {}),
        stepwise=stepwise,
        guidance=guidance,
        halved=guidance is not None and is_narrow(guidance.branch),
        corrections=corrections_to_run(document.corrections, tensors, corrections),
        stitch=stitch,
        bits=layer_bits,
        clock=clock,
        memory=memory,
        groups=[_group(gate, tree, clock, memory, guidance) for gate in gates],
        solver=solver,
        injection=injection,
        scheduler=scheduler,
        ahead=Ahead(batched, clock, memory, lambda: scheduler.timesteps[clock.begin :]) if batched else None,
    )


def _group(gate: Gate, tree: Tree, clock: Clock, memory: MemoryMeter, guidance: Guidance | None) -> Group:
    last = tree.nodes[gate.blocks[-1]]
    return Group(gate, tree.stack(last.stack).outputs, clock, memory, guidance)


def _solver(document: Document) -> LinearSolver | None:
    table = document.sampler.coefficients if document.sampler else None
    return LinearSolver(table.state, table.outputs) if table else None


def _injection(document: Document) -> Injection | None:
    inject = document.start.inject if document.start else None
    return Injection(inject) if inject else None


def _scheduler(
    document: Document, scheduler: Any, clock: Clock, solver: LinearSolver | None, injection: Injection | None
) -> Any:
    """The planned copy of the pipeline's scheduler."""
    sampler = document.sampler
    return plan_scheduler(
        scheduler,
        clock,
        steps=document.steps,
        axis=document.plan.axis if document.plan else "index",
        class_name=sampler.class_name if sampler else None,
        config=sampler.config if sampler else None,
        timesteps=sampler.timesteps if sampler else None,
        sigmas=sampler.sigmas if sampler else None,
        order=[int(k) for k in sampler.order] if sampler and sampler.order else None,
        solver=solver,
        injection=injection,
    )


def _weak(pipe: Any) -> Callable[[], Any]:
    """The pipeline while something else holds it; for good where its class has no weak references."""
    try:
        return weakref.ref(pipe)
    except TypeError:  # a SimpleNamespace, a class with slots
        return lambda: pipe
