"""The Schedule: how a diffusion model is run, as a small file."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from search.files import write_atomically
from search.schedule.apply.corrections import Affine, affine_corrections, reused_steps
from search.schedule.apply.handle import Handle, apply_document
from search.schedule.bounded_file import read_bounded
from search.schedule.document import FORMAT, Document, document_digest
from search.schedule.errors import ScheduleError
from search.schedule.model.identity import denoiser_of, model_part
from search.schedule.model.nodes import Tree
from search.schedule.parts.bits import CorrectedLayersPart, FormatPart
from search.schedule.parts.certificate import CertificatePart
from search.schedule.parts.corrections import SCALE, SHIFT, CorrectionsPart
from search.schedule.parts.gates import ASK
from search.schedule.parts.guidance import GuidancePart
from search.schedule.parts.model import ModelsPart
from search.schedule.plan.gates import Gate
from search.schedule.plan.notation import ALL_COMPUTED, parse_notation
from search.schedule.plan.plan import Plan
from search.schedule.plan.tokens import ABSENT, OFF
from search.schedule.reading import MAX_BYTES, parse_document, validate_document
from search.schedule.tensors import check_tensors, digest_of, read_tensors, serialise, tensors_path

MEASURED = ("digest", "scores", "certificate")  # parts of a file that hold for its behaviour only


class Schedule:
    """How a diffusion model is run: timesteps, solver, and the action of each node at each step. Immutable.

    Two schedules are equal where they run a model in the same way: where their digests are equal.

    Attributes:
        document: The content of the file, checked.
        tensors: What its parts have in the tensors file beside it, by name; without what was not read.

    Example:
        >>> schedule = Schedule.load("docs/presets/pixart/fora-n-2.json")
        >>> schedule.steps, schedule.plan_text
        (20, 'attn1 + attn2 + ff: (C R)*10')

        Applied to a pipeline of diffusers:

            with schedule.apply(pipe):
                image = pipe("red apple, 3d style", **schedule.call).images[0]
    """

    def __init__(self, document: Document, tensors: Mapping[str, Tensor] | None = None) -> None:
        """`tensors` are those that the document's parts name, or more."""
        self.document = document
        names = [name for group in document.tensor_groups for name in sorted(group.names)] if tensors else []
        self.tensors: Mapping[str, Tensor] = {name: tensors[name] for name in names if tensors and name in tensors}

    @classmethod
    def load(cls, path: str | Path) -> "Schedule":
        """Read a schedule file, and the tensors file next to it where its parts name tensors.

        Args:
            path: The schedule file, `schedule.json`; its tensors file is then `schedule.safetensors`.

        Raises:
            ScheduleError: A file cannot be read, or is wrong; path, field and value are named.
        """
        content = read_bounded(path, MAX_BYTES)
        try:
            document = parse_document(content)
        except ScheduleError as error:
            raise ScheduleError(f"{path}: {error}") from None
        groups = document.tensor_groups
        return cls(document, read_tensors(Path(path), groups) if groups else None)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> "Schedule":
        """A schedule from the content of its file.

        Args:
            data: The decoded JSON: `format`, `model`, and any of the other parts of schedule/1 (docs/format.md).
            tensors: The content of the tensors file beside it, or those of another schedule with the same parts.

        Raises:
            ScheduleError: A part is wrong; the field and the value are named.

        Example:
            >>> model = {"class": "PixArtTransformer2DModel", "stacks": {"transformer_blocks": 28}}
            >>> plan = {"rules": [["transformer_blocks.*:attn1", "(C R)*4"]]}
            >>> Schedule.from_dict({"format": "schedule/1", "model": model, "steps": 8, "plan": plan}).plan_text
            'attn1: (C R)*4'
        """
        return cls(validate_document(dict(data) if isinstance(data, Mapping) else data), tensors)

    @classmethod
    def off(cls, pipe: Any) -> "Schedule":
        """The schedule that changes nothing on this pipeline, at any number of steps."""
        return cls.from_dict({"format": FORMAT, "model": model_part(denoiser_of(pipe))})

    def to_dict(self) -> dict[str, Any]:
        """The file's content, plain data: the plan in canonical rules, and the digest."""
        data = self.document.model_dump(by_alias=True, exclude_none=True, mode="json")
        normal = self.document.normal()
        data |= normal
        for name in ("plan", "gates", "start"):
            if name not in normal:
                data.pop(name, None)
        head = {"format": FORMAT, "digest": self.digest}
        return head | {k: v for k, v in data.items() if k not in head and v != {}}

    def save(self, path: str | Path) -> Path:
        """Write the file, completely or not at all; its tensors go into a .safetensors file next to it.

        Returns:
            The path.

        Raises:
            ScheduleError: Its parts name tensors that were not read.
        """
        path = Path(path)
        for group in (groups := self.document.tensor_groups):
            if not group.names <= set(self.tensors):
                part = group.field.rpartition(".")[0]
                raise ScheduleError(f"{path}: this schedule's {part} were not read, so they cannot be saved")
        if groups:
            write_atomically(tensors_path(path), serialise(self.tensors))
        write_atomically(path, (json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n").encode())
        return path

    def apply(
        self,
        pipe: Any,
        *,
        strict: bool = True,
        compile: bool | Callable[[Callable[..., Any]], Callable[..., Any]] | None = None,
        bits: str = "simulate",
        models: Mapping[str, Any] | None = None,
        guard: bool = False,
    ) -> Handle:
        """Run a pipeline by this schedule until the handle is removed.

        Args:
            pipe: A pipeline of diffusers, or any object with a `scheduler` and a `transformer`, `unet` or `denoiser`.
                Its parameters are not changed, at few bits neither: what is saved or loaded meanwhile are its own.
            strict: False accepts another resolution or configuration of the same architecture.
            compile: True compiles the denoiser's blocks beneath the hooks, once for each set of components that the
                plan computes in them, and makes CUDA graphs on a GPU; a function such as `torch.compile` compiles in
                its place.
            bits: What runs layers at few bits: "simulate" rounds on any device and saves no time, "torchao" runs the
                formats that it has.
            models: The other denoisers that the schedule names, pipelines or denoisers by letter:
                `apply(pipe, models={"S": small_pipe})`.
            guard: True compares each run with those that the certificate rests on: where the denoiser's output changes
                from step to step as in none of them, the rest of the run is computed in full, without cache, skips,
                few bits, guidance per step, other denoisers and a fitted solver. `stats()` counts such runs.

        Returns:
            A handle: a context manager, with `stats()`, and `remove()` to end it.

        Raises:
            ScheduleError: The schedule does not belong to this pipeline, or the pipeline cannot run it.
        """
        return apply_document(
            self.document,
            pipe,
            strict=strict,
            compile=compile,
            bits=bits,
            tensors=self.tensors,
            models=models,
            guard=guard,
        )

    @cached_property
    def digest(self) -> str:
        """`sha256:…` of the normal form: schedules of equal behaviour have equal digests."""
        return document_digest(self.document)

    @property
    def steps(self) -> int | None:
        """Steps of a run; None where the schedule is for any number of steps."""
        return self.document.steps

    @property
    def sampler(self) -> dict[str, Any] | None:
        """The sampler part as in the file; None where the pipeline's own scheduler runs."""
        part = self.document.sampler
        return part.model_dump(by_alias=True, exclude_none=True) if part else None

    @property
    def guidance(self) -> GuidancePart | None:
        """Guidance per step; None where the pipeline's own is used."""
        return self.document.guidance

    @property
    def models(self) -> ModelsPart | None:
        """Which denoiser runs at each step; None where it is the pipeline's own throughout."""
        part = self.document.models
        return None if part is None or part.is_off else part

    @property
    def bits(self) -> Mapping[str, FormatPart]:
        """Formats of the linear layers that are not at full precision, by full layer name."""
        part = self.document.bits
        return {layer: part.formats[name] for layer, name in part.layers.items()} if part else {}

    @property
    def corrected_layers(self) -> Sequence[str]:
        """The rounded layers whose outputs are corrected."""
        part = self.document.bits
        return part.corrected.layers if part and part.corrected else ()

    @property
    def corrections(self) -> Mapping[str, Affine]:
        """The correction of the reused values of each node; {} where there are none, or they were not read."""
        return affine_corrections(self.document.corrections, self.tensors)

    @property
    def scores(self) -> dict[str, Any]:
        """Measured scores by objective, {name: {value, ci, split, unit}}; {} by default."""
        scores: dict[str, Any] = self.to_dict().get("scores", {})
        return scores

    @property
    def certificate(self) -> CertificatePart | None:
        """What is promised about a new run; None by default."""
        return self.document.certificate

    @property
    def made(self) -> dict[str, Any]:
        """What the file records of the search that made the schedule: model, versions, call, …; {} by default."""
        return self.document.made

    @property
    def call(self) -> dict[str, Any]:
        """Arguments of the pipeline call; {} where the file records none.

        They are those of the search. With timesteps of its own a schedule may have fewer steps than its search began
        with: the number is its own then.

        >>> Schedule.load("docs/presets/pixart/fora-n-2.json").call["num_inference_steps"]
        20
        """
        own = self.document.sampler and self.document.sampler.timesteps
        return self.call_of_search | ({"num_inference_steps": self.steps} if self.call_of_search and own else {})

    @property
    def call_of_search(self) -> dict[str, Any]:
        """Arguments of the pipeline call that the search began with, its teacher's; {} where the file has none."""
        call = self.made.get("call")
        return call if isinstance(call, dict) else {}

    @cached_property
    def tree(self) -> Tree:
        """The nodes of the denoiser that the schedule is for."""
        return self.document.model.tree()

    @cached_property
    def plan(self) -> Plan:
        """Effective actions; where the schedule has no plan, everything is computed at each of its steps."""
        off = (OFF,) * (self.steps or 0)
        return self.document.resolved_plan or Plan(self.tree, len(off), {n.name: off for n in self.tree})

    @property
    def gates(self) -> tuple[Gate, ...]:
        """Groups of blocks whose actions may be decided while the denoiser runs."""
        return self.document.resolved_gates

    @cached_property
    def plan_text(self) -> str:
        """The plan and the gates' actions in the plan notation, `attn1: (C R)*10`, where G asks a gate."""
        rules = [] if self.plan.is_off else [str(self.plan)]
        return " | ".join([*rules, *(gate.text(self.tree) for gate in self.gates)]) or ALL_COMPUTED

    @cached_property
    def batched_steps(self) -> list[range]:
        """The steps that one call of the denoiser runs as one batch (search/schedule/apply/ahead.py)."""
        return self.document.batched_steps

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Node names [N] and their effective actions `[N][T]`: C, R, F1.., S, G (a gate decides), or - (not run)."""
        actions = {name: list(tokens) for name, tokens in self.plan.tokens.items()}
        for gate in self.gates:
            runs = [OFF if token in (OFF, ASK) else ABSENT for token in gate.tokens]
            for node in self.tree:
                if f"{node.stack}.{node.block}" in gate.blocks:
                    actions[node.name] = list(gate.tokens) if node.kind == "block" else runs
        return list(actions), list(actions.values())

    def with_plan(self, text: str) -> "Schedule":
        """The same schedule with another plan, a text in the plan notation, and without scores and certificate.

        ScheduleError names the character of the text, what is admissible there and what to type. "off" computes
        everything. The plan's other entries (axis, value, ahead) stay.

        >>> schedule = Schedule.load("docs/presets/pixart/fora-n-2.json")
        >>> schedule.with_plan("attn1: (C R)*10 | ff@0-3: C R*19").plan_text
        'attn1: (C R)*10 | ff@0-3: C R*19'
        """
        if self.steps is None:
            raise ScheduleError(
                "the schedule is for any number of steps, and a plan has an action for each step; write steps into the "
                "schedule first, for example Schedule.from_dict(schedule.to_dict() | {'steps': 20})"
            )
        parts = {k: v for k, v in self.to_dict().items() if k not in MEASURED}
        rules = [list(rule) for rule in parse_notation(text, self.tree, self.steps)]
        return Schedule.from_dict(parts | {"plan": parts.get("plan", {}) | {"rules": rules}}, self.tensors)

    def with_scores(self, scores: Mapping[str, Any]) -> "Schedule":
        """The same behaviour with these scores: {name: {value, ci, split, unit}}."""
        return self._replace(scores=dict(scores))

    def with_certificate(self, certificate: Mapping[str, Any] | None) -> "Schedule":
        """The same behaviour with this certificate; None takes it away."""
        return self._replace(certificate=None if certificate is None else dict(certificate))

    def with_made(self, made: Mapping[str, Any]) -> "Schedule":
        """The same behaviour with this record of the search that made it."""
        return self._replace(made=dict(made))

    def with_corrections(
        self, tensors: Mapping[str, Tensor], steps: Mapping[str, Sequence[int]] | None = None
    ) -> "Schedule":
        """The same schedule with these corrections of reused values, and without scores and certificate.

        {} takes corrections away. `tensors` are `<node>.scale` and `<node>.shift` [steps, C] of every corrected node.
        `steps` are the steps of their rows; by default those of the corrections part, or all at which the node is
        reused or forecast.
        """
        parts = {k: v for k, v in self.to_dict().items() if k not in (*MEASURED, "corrections")}
        if not tensors:
            return Schedule.from_dict(parts, self.tensors)
        nodes = {name.removesuffix(SCALE).removesuffix(SHIFT) for name in tensors}
        part = self.document.corrections
        steps_of_node = steps or (part.steps if part else reused_steps(self.plan))
        if unknown := sorted(nodes - set(steps_of_node)):
            raise ScheduleError(
                f"corrections are given for {unknown[0]!r:.100}, which is reused or forecast at no step; "
                f"these nodes can be corrected: {', '.join(steps_of_node)[:200] or 'none'}"
            )
        rounded = {name: t.detach().to("cpu", torch.float16) for name, t in tensors.items()}
        rows = {name: list(steps_of_node[name]) for name in sorted(nodes)}
        corrections = CorrectionsPart(digest=digest_of(rounded), steps=rows)
        check_tensors(rounded, [corrections.tensors])
        every = {**self.tensors, **rounded}
        if corrections == part:  # the corrections that it has, now read
            return Schedule(self.document, every)
        return Schedule.from_dict(parts | {"corrections": corrections.model_dump()}, every)

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> "Schedule":
        """The same schedule with those of these tensors that its parts name."""
        return Schedule(self.document, {**self.tensors, **tensors}) if tensors else self

    def with_sampler(self, sampler: Mapping[str, Any]) -> "Schedule":
        """The same schedule with another sampler part, and without scores and certificate."""
        parts = {k: v for k, v in self.to_dict().items() if k not in MEASURED}
        return Schedule.from_dict(parts | {"sampler": dict(sampler)}, self.tensors)

    def with_ranges(self, ranges: Mapping[str, Sequence[Sequence[float]]], at: Sequence[float] = ()) -> "Schedule":
        """The same schedule with these ranges of its static layers' inputs, and without scores and certificate.

        `{layer: [(least, greatest)]}`, of a split layer two such pairs, as `search.calibrate.ranges` measures them. A
        layer with ranges per step has as many for each of the falling timesteps `at`.
        """
        parts = {k: v for k, v in self.to_dict().items() if k not in MEASURED}
        lists = {name: [list(span) for span in spans] for name, spans in ranges.items()}
        bits = parts.get("bits", {"formats": {}, "layers": {}}) | {"ranges": lists} | ({"at": list(at)} if at else {})
        return Schedule.from_dict(parts | {"bits": bits}, self.tensors)

    def with_corrected_layers(self, tensors: Mapping[str, Tensor]) -> "Schedule":
        """The same schedule with these corrections of its rounded layers, and without scores and certificate.

        {} takes them away. `tensors` are `bits/<layer>.gain` and `bits/<layer>.offset` [outputs] of every corrected
        layer, as `search.evaluate.fit.rounding` fits them.
        """
        parts = {k: v for k, v in self.to_dict().items() if k not in MEASURED}
        if "bits" not in parts:
            return self
        bits = {k: v for k, v in parts["bits"].items() if k != "corrected"}
        if not tensors:
            return Schedule.from_dict(parts | {"bits": bits}, self.tensors)
        rounded = {name: t.detach().to("cpu", torch.float16) for name, t in tensors.items()}
        layers = sorted({name.removeprefix("bits/").rpartition(".")[0] for name in tensors})
        corrected = CorrectedLayersPart(digest=digest_of(rounded), layers=layers)
        check_tensors(rounded, [corrected.tensors])
        every = {**self.tensors, **rounded}
        return Schedule.from_dict(parts | {"bits": bits | {"corrected": corrected.model_dump()}}, every)

    def _replace(self, **parts: Any) -> "Schedule":
        return Schedule.from_dict(self.to_dict() | parts, self.tensors)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Schedule) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"Schedule({self.tree.model_class}, steps={self.steps}, {self.digest[:15]})"
