"""The schedule file, format `schedule/1`: its document, normal form and digest."""

import hashlib
import json
from functools import cached_property
from typing import Any

from pydantic import Field, model_validator

from search.schedule.errors import ScheduleError
from search.schedule.parts.bits import BitsPart, check_bits
from search.schedule.parts.certificate import CertificatePart
from search.schedule.parts.corrections import CorrectionsPart, check_corrections
from search.schedule.parts.gates import GatePart
from search.schedule.parts.guidance import GuidancePart, check_guidance
from search.schedule.parts.model import ModelPart, ModelsPart, check_models
from search.schedule.parts.part import Name, Part, check_data
from search.schedule.parts.plan import PlanPart, check_residual, reused_blocks
from search.schedule.parts.sampler import SamplerPart, check_sampler
from search.schedule.parts.scores import ScorePart
from search.schedule.parts.start import StartPart
from search.schedule.plan.batches import batched_steps
from search.schedule.plan.gate_conflicts import check_gates
from search.schedule.plan.gates import Gate
from search.schedule.plan.guidance import Guidance, check_halves, is_narrow
from search.schedule.plan.plan import Plan
from search.schedule.plan.tokens import MAX_ACTIONS, MAX_STEPS, OWN
from search.schedule.tensors import TensorGroup

FORMAT = "schedule/1"


class Document(Part):
    """The content of a schedule file; a part that is missing is off.

    Attributes:
        format: `schedule/1`.
        digest: `sha256:…` of the normal form; null in a file that was written by hand.
        model: The denoiser that the schedule is for.
        steps: The number of steps T; null where the schedule is for any number.
        sampler: Timesteps and solver.
        plan: What is reused, forecast or skipped at which step.
        gates: Groups of blocks whose actions may be decided while the denoiser runs.
        guidance: Classifier-free guidance per step.
        models: Other denoisers at some steps.
        start: How a run begins.
        bits: Number formats of layers.
        corrections: Corrections of reused values.
        scores: Measured scores by objective; they do not change the digest.
        certificate: What is promised about a new run; it does not change the digest either.
        made: A record of the search that made it: model, call, versions; nor does it.
    """

    format: str = Field(default=FORMAT, max_length=40)
    digest: str | None = Field(default=None, max_length=100)
    model: ModelPart
    steps: int | None = Field(default=None, ge=1, le=MAX_STEPS)
    sampler: SamplerPart | None = None
    plan: PlanPart | None = None
    gates: list[GatePart] = Field(default=[], max_length=100)
    guidance: GuidancePart | None = None
    models: ModelsPart | None = None
    start: StartPart | None = None
    bits: BitsPart | None = None
    corrections: CorrectionsPart | None = None
    scores: dict[Name, ScorePart] = Field(default={}, max_length=200)
    certificate: CertificatePart | None = None
    made: dict[Name, Any] = Field(default={}, max_length=200)

    @model_validator(mode="after")
    def _consistent(self) -> "Document":
        """Raise ScheduleError for all mistakes that show without a model."""
        sampler = self.sampler
        stepwise = self.plan or self.gates or self.guidance or self.models
        if self.steps is None and (stepwise or (sampler and (sampler.timesteps or sampler.order))):
            raise ScheduleError(
                "steps is missing; plan, gates, guidance, models, sampler.timesteps and sampler.order need it"
            )
        if sampler:
            check_sampler(sampler, self.steps)
        if self.models and self.steps:
            check_models(self.models, self.steps)
        if self.guidance and self.steps:
            check_guidance(self.guidance, self.steps, self.at)
        if self.bits:
            check_bits(self.bits)
        check_data(self.made, "made")
        plan, guidance = self.resolved_plan, self.resolved_guidance
        if guidance and plan and is_narrow(guidance.branch):
            check_halves(plan, guidance.branch)
        if self.plan and plan and self.plan.value == "residual":
            check_residual(plan)
        check_gates(self.resolved_gates)
        if self.corrections:
            check_corrections(self.corrections, plan)
        if self._start() and sampler and sampler.coefficients:
            raise ScheduleError(
                "start.inject and sampler.coefficients are both given; a table's own state[i] says how much of the "
                "initial latents step i is given, leave one"
            )
        return self

    @property
    def at(self) -> str:
        """The denoiser of every step by its letter; "" where the pipeline's own runs throughout."""
        return self.models.at if self.models and not self.models.is_off else ""

    def _start(self) -> dict[str, Any]:
        """The start part's normal form; {} where a run begins as without a schedule."""
        if self.start is None:
            return {}
        config = self.sampler.config if self.sampler else {}
        timesteps = self.sampler.timesteps if self.sampler else None
        return self.start.normal(timesteps, config.get("num_train_timesteps", 1000))

    @property
    def tensor_groups(self) -> list[TensorGroup]:
        """What the parts have in the tensors file beside the schedule."""
        corrected = self.bits.corrected if self.bits and OWN in (self.at or OWN) else None
        groups = [part.tensors for part in (self.corrections, corrected) if part]
        return groups + (self.models.tensors if self.models and self.at else [])

    @property
    def batched_steps(self) -> list[range]:
        """The steps that one call of the denoiser runs as one batch; [] where steps differ otherwise.

        They do with gates, corrections, elided layers and ranges per step.
        """
        plan = self.resolved_plan
        stepwise = self.bits and any(form.elided or form.per_step for form in self.bits.formats.values())
        if plan is None or self.plan is None or self.plan.ahead == 1 or self.gates or self.corrections or stepwise:
            return []
        return batched_steps(plan, self.plan.ahead, self.guidance.branch if self.guidance else None)

    @property
    def resolved_guidance(self) -> Guidance | None:
        """Guidance with an entry per step; None where it is the pipeline's own."""
        part = self.guidance
        if part is None or part.is_off or self.steps is None:
            return None
        weights = part.approximation(self.steps)
        return Guidance.of(self.model.tree(), self.steps, part.call, part.scale, part.branch, weights)

    @cached_property
    def resolved_gates(self) -> tuple[Gate, ...]:
        """The gates in the order of execution, each in its simplest form, without those that change nothing."""
        if not self.gates or self.steps is None:
            return ()
        tree, plan, guidance = self.model.tree(), self.resolved_plan, self.resolved_guidance
        branch = guidance.branch if guidance and is_narrow(guidance.branch) else None
        gates = [Gate.of(g, tree, plan, self.steps, branch, f"gates[{i}]") for i, g in enumerate(self.gates)]
        order = list(tree.nodes)
        return tuple(sorted((g for g in gates if not g.is_off), key=lambda g: order.index(g.blocks[0])))

    @cached_property
    def resolved_plan(self) -> Plan | None:
        """The plan with every rule expanded; None where there is no plan and only one denoiser."""
        tree = self.model.tree()
        if (size := (self.steps or 0) * len(tree.nodes)) > MAX_ACTIONS:
            raise ScheduleError(
                f"steps is {self.steps}: {size} actions of {len(tree.nodes)} nodes; admissible are {MAX_ACTIONS}"
            )
        if self.steps is None or (self.plan is None and not self.at):
            return None
        return Plan.resolve(self.plan.rules if self.plan else (), tree, self.steps, self.at)

    def normal(self) -> dict[str, Any]:
        """The normal form, plain data: equal behaviour gives equal data. Without scores, certificate and `made`."""
        plan, gates = self.resolved_plan, self.resolved_gates
        rules = [list(rule) for rule in plan.rules()] if plan else []
        body: dict[str, Any] = {"format": FORMAT, "model": self.model.model_dump(by_alias=True, exclude_none=True)}
        if self.sampler:
            body["sampler"] = self.sampler.model_dump(by_alias=True, exclude_none=True)
        if self.steps is not None:
            body["steps"] = self.steps
        forecasts = any("F" in actions for _, actions in rules) or any(gate.forecasts for gate in gates)
        axis = self.plan.axis if self.plan and forecasts else "index"
        if plan and self.plan and (rules or axis != "index"):
            value = self.plan.value if reused_blocks(plan) else "out"
            runs = self.batched_steps
            ahead = {"ahead": max(map(len, runs))} if runs else {}
            body["plan"] = {"value": value, "axis": axis, **ahead, "rules": rules}
        if gates:
            body["gates"] = [gate.normal() for gate in gates]
        if self.guidance and not self.guidance.is_off:
            body["guidance"] = self.guidance.normal()
        if self.models and self.at:
            body["models"] = self.models.normal()
        if start := self._start():
            body["start"] = start
        if self.bits and self.bits.layers and OWN in (self.at or OWN):
            body["bits"] = self.bits.normal()
        if self.corrections and "plan" in body:
            body["corrections"] = self.corrections.model_dump()
        return body


def document_digest(document: Document) -> str:
    """`sha256:…` of the normal form."""
    text = json.dumps(document.normal(), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def json_schema() -> dict[str, Any]:
    """The published JSON Schema of the format."""
    return Document.model_json_schema(by_alias=True) | {"$id": FORMAT, "title": "Diffusion schedule"}


if __name__ == "__main__":  # python -m search.schedule.document writes the schema file again
    from pathlib import Path

    text = json.dumps(json_schema(), indent=1, ensure_ascii=False) + "\n"
    Path(__file__).with_name("schedule-1.schema.json").write_text(text, encoding="utf-8")
