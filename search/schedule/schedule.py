"""The Schedule: how a diffusion model is run, as a small file."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from search.schedule.apply.corrections import SCALE, SHIFT, Affine, Corrections, reused_steps, tensors_path
from search.schedule.apply.handle import Handle, apply_document
from search.schedule.document import FORMAT, Document, document_digest
from search.schedule.errors import ScheduleError
from search.schedule.model.identity import denoiser_of, model_part
from search.schedule.model.nodes import Tree
from search.schedule.parts.bits import FormatPart
from search.schedule.parts.gates import ASK
from search.schedule.parts.guidance import GuidancePart
from search.schedule.parts.model import ModelsPart
from search.schedule.plan.gates import Gate
from search.schedule.plan.notation import ALL_COMPUTED, parse_notation
from search.schedule.plan.plan import Plan
from search.schedule.plan.tokens import ABSENT, OFF
from search.schedule.reading import MAX_BYTES, parse_document, validate_document


class Schedule:
    """Which timesteps, which order and which action at each node and step; immutable.

    >>> with Schedule.load("schedule.json").apply(pipe):
    ...     image = pipe("red apple, 3d style").images[0]
    """

    def __init__(self, document: Document, corrections: Corrections | None = None) -> None:
        """`corrections` is the tensors file that the document's part of that name means."""
        self.document = document
        self.corrections_file = corrections if document.corrections else None

    @classmethod
    def load(cls, path: str | Path) -> "Schedule":
        """Read a schedule file, and its tensors beside it where it has some.

        ScheduleError names the field and the value that is wrong.
        """
        try:
            with open(path, "rb") as file:
                document = parse_document(file.read(MAX_BYTES + 1))
        except ScheduleError as error:
            raise ScheduleError(f"{path}: {error}") from None
        except (OSError, ValueError) as error:  # ValueError: a path that can be no path
            raise ScheduleError(f"cannot read {str(path)!r}: {getattr(error, 'strerror', None) or error}") from None
        return cls(document, Corrections.read(Path(path), document.corrections) if document.corrections else None)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Schedule":
        """A schedule from the content of its file."""
        return cls(validate_document(dict(data) if isinstance(data, Mapping) else data))

    @classmethod
    def off(cls, pipe: Any) -> "Schedule":
        """The schedule that changes nothing on this pipeline, at any number of steps."""
        return cls.from_dict({"format": FORMAT, "model": model_part(denoiser_of(pipe))})

    def to_dict(self) -> dict[str, Any]:
        """The file's content: canonical rules, with digest."""
        data = self.document.model_dump(by_alias=True, exclude_none=True, mode="json")
        normal = self.document.normal()
        data |= normal
        for name in ("plan", "gates", "start"):
            if name not in normal:
                data.pop(name, None)
        head = {"format": FORMAT, "digest": self.digest}
        return head | {k: v for k, v in data.items() if k not in head and v != {}}

    def save(self, path: str | Path) -> Path:
        """Write the file, whole or not at all; corrections go into a .safetensors file beside it."""
        path = Path(path)
        if self.document.corrections:
            if self.corrections_file is None:
                raise ScheduleError(f"{path}: this schedule's corrections were not read, so they cannot be saved")
            _write(tensors_path(path), self.corrections_file.data)
        _write(path, (json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n").encode())
        return path

    def apply(
        self,
        pipe: Any,
        *,
        strict: bool = True,
        compile: bool | Callable[[Callable], Callable] | None = None,
        bits: str = "simulate",
        models: Mapping[str, Any] | None = None,
    ) -> Handle:
        """Run `pipe` by this schedule until the handle is removed.

        `strict=False` accepts another resolution or configuration of the same architecture. `compile=True` compiles
        the denoiser's blocks beneath the hooks, once for each set of components that the plan computes in them, and
        takes CUDA graphs on a GPU; a function such as `torch.compile` compiles in its place. `bits` says who runs
        layers at few bits: `simulate` rounds on any device and saves nothing, `torchao` runs what it can. `models`
        brings the other denoisers that the schedule names: `apply(pipe, models={"S": small_pipe})`, a pipeline or a
        denoiser.
        """
        return apply_document(
            self.document,
            pipe,
            strict=strict,
            compile=compile,
            bits=bits,
            corrections=self.corrections,
            models=models,
        )

    @cached_property
    def digest(self) -> str:
        """`sha256:…` of the normal form: schedules of equal behaviour have equal digests."""
        return document_digest(self.document)

    @property
    def steps(self) -> int | None:
        """Denoiser evaluation slots per run; None where any number will do."""
        return self.document.steps

    @property
    def sampler(self) -> dict[str, Any] | None:
        """The sampler part as in the file; None where the pipeline's own sampler runs."""
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
    def corrections(self) -> Mapping[str, Affine]:
        """What corrects the reused values of each node; nothing where there are none, or they were not read."""
        return self.corrections_file.nodes() if self.corrections_file else {}

    @property
    def scores(self) -> dict[str, Any]:
        return self.to_dict().get("scores", {})

    @property
    def made(self) -> dict[str, Any]:
        """What the file records of the search that made the schedule: model, versions, call, …; {} by default."""
        return self.document.made

    @property
    def call(self) -> dict[str, Any]:
        """Arguments of the pipeline call that the schedule was searched with; {} where the file records none.

        >>> Schedule.load("docs/presets/pixart/fora-n-2.json").call["num_inference_steps"]
        20
        """
        call = self.made.get("call")
        return call if isinstance(call, dict) else {}

    @cached_property
    def tree(self) -> Tree:
        return self.document.model.tree()

    @cached_property
    def plan(self) -> Plan:
        """Effective actions; where the schedule has no plan, everything is computed at each of its steps."""
        off = (OFF,) * (self.steps or 0)
        return self.document.resolved_plan or Plan(self.tree, len(off), {n.name: off for n in self.tree})

    @property
    def gates(self) -> tuple[Gate, ...]:
        """Groups of blocks with actions of their own, which may be decided while the denoiser runs."""
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
        """Node names [N] and their effective actions `[N][T]`: C, R, F1.., S, G ask a gate, or - where not run."""
        found = {name: list(tokens) for name, tokens in self.plan.tokens.items()}
        for gate in self.gates:
            runs = [OFF if token in (OFF, ASK) else ABSENT for token in gate.tokens]
            for node in self.tree:
                if f"{node.stack}.{node.block}" in gate.blocks:
                    found[node.name] = list(gate.tokens) if node.kind == "block" else runs
        return list(found), list(found.values())

    def with_plan(self, text: str) -> "Schedule":
        """The same schedule with the plan that a text in the plan notation means, and without scores.

        ScheduleError names the character of the text, what is admissible there and what to type. "off" computes
        everything. What the plan says beside its rules (axis, value, ahead) stays.

        >>> schedule = Schedule.load("docs/presets/pixart/fora-n-2.json")
        >>> schedule.with_plan("attn1: (C R)*10 | ff@0-3: C R*19").plan_text
        'attn1: (C R)*10 | ff@0-3: C R*19'
        """
        if self.steps is None:
            raise ScheduleError(
                "the schedule is for any number of steps, and a plan has an action for each step; write steps into the "
                "schedule first, for example Schedule.from_dict(schedule.to_dict() | {'steps': 20})"
            )
        parts = {k: v for k, v in self.to_dict().items() if k not in ("digest", "scores")}
        rules = [list(rule) for rule in parse_notation(text, self.tree, self.steps)]
        return Schedule(
            validate_document(parts | {"plan": parts.get("plan", {}) | {"rules": rules}}), self.corrections_file
        )

    def with_scores(self, scores: Mapping[str, Any]) -> "Schedule":
        """The same behaviour with these scores: {name: {value, ci, split, unit}}."""
        return self._replace(scores=dict(scores))

    def with_made(self, made: Mapping[str, Any]) -> "Schedule":
        """The same behaviour with this record of how it was found."""
        return self._replace(made=dict(made))

    def with_corrections(
        self, tensors: Mapping[str, Tensor], steps: Mapping[str, Sequence[int]] | None = None
    ) -> "Schedule":
        """The same schedule with these corrections of reused values, and without scores; {} takes them away.

        `tensors` are `<node>.scale` and `<node>.shift` [steps, C] of every corrected node. `steps` says which steps
        their rows are; by default those of the corrections part, or all at which the plan does not compute the node.
        """
        parts = {k: v for k, v in self.to_dict().items() if k not in ("digest", "scores", "corrections")}
        if not tensors:
            return Schedule.from_dict(parts)
        nodes = {name.removesuffix(SCALE).removesuffix(SHIFT) for name in tensors}
        own = self.document.corrections
        known = steps or (own.steps if own else reused_steps(self.plan))
        if unknown := sorted(nodes - set(known)):
            raise ScheduleError(
                f"corrections are given for {unknown[0]!r:.100}, of which no step is known to be reused or forecast; "
                f"these nodes may be corrected: {', '.join(known)[:200] or 'none'}"
            )
        corrections = Corrections.of(tensors, {name: known[name] for name in sorted(nodes)})
        if corrections.part == own:  # those that it had, now at hand
            return Schedule(self.document, corrections)
        return Schedule(validate_document(parts | {"corrections": corrections.part.model_dump()}), corrections)

    def with_sampler(self, sampler: Mapping[str, Any]) -> "Schedule":
        """The same schedule with another sampler part, and without scores."""
        parts = {k: v for k, v in self.to_dict().items() if k not in ("digest", "scores")}
        return Schedule(validate_document(parts | {"sampler": dict(sampler)}), self.corrections_file)

    def with_ranges(self, ranges: Mapping[str, Sequence[Sequence[float]]]) -> "Schedule":
        """The same schedule with these ranges of its static layers' inputs, and without scores.

        `{layer: [(least, greatest)]}`, of a split layer two such pairs: what search/calibrate/ranges.py calibrates.
        """
        parts = {k: v for k, v in self.to_dict().items() if k not in ("digest", "scores")}
        found = {name: [list(span) for span in spans] for name, spans in ranges.items()}
        bits = parts.get("bits", {"formats": {}, "layers": {}}) | {"ranges": found}
        return Schedule(validate_document(parts | {"bits": bits}), self.corrections_file)

    def _replace(self, **parts: Any) -> "Schedule":
        return Schedule(validate_document(self.to_dict() | parts), self.corrections_file)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Schedule) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"Schedule({self.tree.model_class}, steps={self.steps}, {self.digest[:15]})"


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_bytes(data)
    unfinished.replace(path)
