"""The schedule file, format `schedule/1`: a pydantic document, its normal form and its digest.

The file is data. Nothing in it is imported, opened or fetched; every size is bounded.
"""

import hashlib
import json
import math
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from search.schedule.ahead import batches
from search.schedule.contracts import Contract
from search.schedule.errors import ScheduleError
from search.schedule.gates import Gate, GatePart, check_gates
from search.schedule.guidance import GAIN, RADIUS, Approximation, Guidance, check_halves, is_narrow
from search.schedule.nodes import MAX_BLOCKS, Node, Tree
from search.schedule.part import Finite, Name, Part
from search.schedule.plan import MAX_ACTIONS, MAX_STEPS, OWN, Plan, history, since, switches
from search.schedule.sampler import check_order
from search.schedule.start import StartPart

FORMAT = "schedule/1"
MAX_BYTES = 4 * 2**20
MAX_ENTRIES = 20_000  # of one JSON object or array
MAX_TABLE = 1000  # steps of a solver table, whose size is their square


class ModelPart(Part):
    """Which denoiser the schedule is for. `fingerprint` is a digest of its architecture, not of its weights."""

    class_name: Name = Field(alias="class")
    fingerprint: str = Field(default="", max_length=100)
    stacks: dict[Name, int | Annotated[list[dict[Name, int]], Field(max_length=MAX_BLOCKS)]] = Field(max_length=20)
    contract: dict[str, Any] | None = Field(default=None, max_length=5)  # of a class that this version does not know

    def tree(self) -> Tree:
        """The denoiser's nodes; ScheduleError where they make no sense."""
        return Tree(self.class_name, self.stacks, Contract.from_dict(self.contract) if self.contract else None)


class CoefficientsPart(Part):
    """A linear multistep solver as a table: x[i+1] = state[i] * x[0] + sum over j <= i of outputs[i][j] * e[j].

    x[0] is the initial latent, e[j] what the denoiser gave at step j (guided). OLSS (arXiv:2305.14677).
    """

    state: list[Finite] = Field(max_length=MAX_TABLE)
    outputs: list[list[Finite]] = Field(max_length=MAX_TABLE)


class SamplerPart(Part):
    """How the scheduler runs. `timesteps` [T] and post-shift `sigmas` [T+1] go together; `order` is per step.

    With `coefficients` the table is run instead of the class's own solver.
    """

    class_name: Name = Field(alias="class")
    config: dict[str, Any] = Field(default={}, max_length=200)
    timesteps: list[Finite] | None = Field(default=None, max_length=MAX_STEPS)
    sigmas: list[Finite] | None = Field(default=None, max_length=MAX_STEPS + 1)
    order: str | None = Field(default=None, max_length=MAX_STEPS, pattern="^[1-9]+$")
    coefficients: CoefficientsPart | None = None


class PlanPart(Part):
    """Actions per node and step, `[selector, actions]`; a later rule wins.

    `value` is what is kept of blocks and stacks: out, what they give, or residual, what they add to what enters them;
    of other nodes it is always what they give. `axis` is where forecasts place the steps, those of gates too. Up to
    `ahead` steps that reuse a UNet's encoder run as one batch (search/schedule/ahead.py), where they can.
    """

    value: Literal["out", "residual"] = "out"
    axis: Literal["index", "timestep", "sigma", "logsnr"] = "index"
    ahead: int = Field(default=1, ge=1, le=MAX_STEPS)
    rules: list[tuple[Annotated[str, Field(max_length=20_000)], Annotated[str, Field(max_length=100_000)]]] = Field(
        max_length=MAX_ENTRIES
    )


Weight = Annotated[float, Field(ge=-100, le=100)]
Weights = Weight | Annotated[list[Weight], Field(max_length=MAX_STEPS)]


class ApproximatePart(Part):
    """How a step A makes the unconditional output of the conditional one, FasterCache (arXiv:2410.19355).

    It adds the last full step's difference of the halves: its low frequencies times `low`, the others times `high`,
    a number or one per step. Low are those within `radius`, in parts of the shorter side, of the spectrum's centre.
    """

    low: Weights = GAIN
    high: Weights = GAIN
    radius: float = Field(default=RADIUS, ge=0, le=1)


class GuidancePart(Part):
    """Classifier-free guidance per step. `call` is the guidance_scale that the pipeline call is given.

    `scale` [T] is what each step is guided with instead. `branch` [T]: C computes both halves of the batch, O only
    the conditional one (no guidance), R reuses the unconditional half's last output, A approximates it, M runs one
    merged pass on text states extrapolated from the unconditional by the scale.
    """

    call: Finite
    scale: list[Finite] | None = Field(default=None, max_length=MAX_STEPS)
    branch: str | None = Field(default=None, max_length=MAX_STEPS, pattern="^[CORMA]+$")
    approximate: ApproximatePart | None = None

    @property
    def is_off(self) -> bool:
        return self.normal() == {"call": self.call}

    def normal(self) -> dict[str, Any]:
        """What it does: no scale where none is used (O), no weights but those of A, nothing that is the pipeline's."""
        scale, branch = list(self.scale or ()), self.branch or ""
        for i, kind in enumerate(branch[: len(scale)]):
            scale[i] = self.call if kind == "O" else scale[i]
        body: dict[str, Any] = {"call": self.call}
        body |= {"scale": scale} if set(scale) - {self.call} else {}
        body |= {"branch": branch} if set(branch) - {"C"} else {}
        return body | ({"approximate": self._weights(branch)} if "A" in branch else {})

    def approximation(self, steps: int) -> Approximation:
        """The weights of every step [T]."""
        part = self.approximate or ApproximatePart()
        low, high = (tuple(w) if isinstance(w, list) else (w,) * steps for w in (part.low, part.high))
        return Approximation(low, high, part.radius)

    def _weights(self, branch: str) -> dict[str, Any]:
        """What steps A use: one number where they agree, and no radius where low and high weights are the same."""
        weights = self.approximation(len(branch))
        used = [i for i, kind in enumerate(branch) if kind == "A"]
        found: dict[str, Any] = {}
        for name, values in (("low", weights.low), ("high", weights.high)):
            one = len({values[i] for i in used}) == 1
            kept = [value if kind == "A" else 1.0 for value, kind in zip(values, branch, strict=True)]
            found[name] = float(values[used[0]]) if one else kept
        return found | ({"radius": weights.radius} if found["low"] != found["high"] else {})


class FormatPart(Part):
    """How a layer's weight, and if given its input, are rounded. `group` is inputs per scale, null a whole row.

    `static`: the input's range is the file's, where it is else that of each token or picture. `split`: a convolution
    rounds so many of its input channels apart from those after them. `elided`: the layer's outputs depend on the
    timestep alone and are tabulated per step.
    """

    weight: int | None = Field(default=None, ge=2, le=8)
    group: int | None = Field(default=None, ge=1, le=1_000_000)
    activation: int | None = Field(default=None, ge=4, le=8)
    static: bool = False
    split: int | None = Field(default=None, ge=1, le=1_000_000)
    elided: bool = False


class BitsPart(Part):
    """Formats by id, and the id of every linear layer and convolution that is not at full precision.

    `ranges` are least and greatest value of a static layer's input, or those of both sides of its split.
    """

    formats: dict[Name, FormatPart] = Field(max_length=100)
    layers: dict[Name, Name] = Field(max_length=MAX_ENTRIES)
    ranges: dict[Name, Annotated[list[tuple[Finite, Finite]], Field(min_length=1, max_length=2)]] = Field(
        default={}, max_length=MAX_ENTRIES
    )

    def normal(self) -> dict[str, Any]:
        """Without the formats that no layer has."""
        used = sorted(set(self.layers.values()))
        formats = {name: self.formats[name].model_dump(exclude_defaults=True) for name in used}
        body = {"formats": formats, "layers": dict(self.layers)}
        return body | ({"ranges": self.model_dump(mode="json")["ranges"]} if self.ranges else {})


class CorrectionsPart(Part):
    """Channel-wise affine corrections of reused values: a * value + b, CacheQuant (arXiv:2503.01323).

    The numbers lie in a .safetensors file beside the schedule; `digest` is the file's sha256. `steps` names the
    corrected steps of every node, at which the plan reuses or forecasts it.
    """

    digest: str = Field(pattern="^sha256:[0-9a-f]{64}$")
    steps: dict[Name, Annotated[list[int], Field(min_length=1, max_length=MAX_STEPS)]] = Field(
        min_length=1, max_length=MAX_ENTRIES
    )


class OtherPart(ModelPart):
    """Another denoiser: its architecture, and a name for people. Whoever applies the schedule brings it along."""

    name: str = Field(default="", max_length=200)


class ModelsPart(Part):
    """Which denoiser runs at each step, T-Stitch (arXiv:2402.14167): `at` [T] has a capital letter per step.

    L is the pipeline's own, `names` says what the others are.
    """

    names: dict[Annotated[str, Field(pattern="^[A-KM-Z]$")], OtherPart] = Field(max_length=25)
    at: str = Field(max_length=MAX_STEPS, pattern="^[A-Z]+$")

    @property
    def is_off(self) -> bool:
        return set(self.at) == {OWN}

    def normal(self) -> dict[str, Any]:
        """Without the names that no step has."""
        used = sorted(set(self.at) - {OWN})
        return {
            "names": {k: self.names[k].model_dump(by_alias=True, exclude_defaults=True) for k in used},
            "at": self.at,
        }


class ScorePart(Part):
    """A measured score: mean over prompts, 95 % interval, and on which prompts it was taken."""

    value: Finite
    ci: tuple[Finite, Finite] | None = None
    split: Literal["calibration", "held_out", "device"] = "held_out"
    unit: str = Field(default="", max_length=40)


class Document(Part):
    """One schedule. A missing part means off."""

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
    made: dict[Name, Any] = Field(default={}, max_length=200)

    @model_validator(mode="after")
    def _consistent(self) -> "Document":
        """Everything that can be checked without a model."""
        sampler = self.sampler
        stepwise = self.plan or self.gates or self.guidance or self.models
        if self.steps is None and (stepwise or (sampler and (sampler.timesteps or sampler.order))):
            raise ScheduleError(
                "steps is missing; plan, gates, guidance, models, sampler.timesteps and sampler.order need it"
            )
        if sampler:
            _check_sampler(sampler, self.steps)
        if self.models and self.steps:
            _check_models(self.models, self.steps)
        if self.guidance and self.steps:
            _check_guidance(self.guidance, self.steps, self.at)
        if self.bits:
            _check_bits(self.bits)
        _check_data(self.made, "made")
        plan = self._resolved
        if (guidance := self.guide()) and plan and is_narrow(guidance.branch):
            check_halves(plan, guidance.branch)
        if self.plan and plan and self.plan.value == "residual":
            _check_residual(plan)
        check_gates(self.decide())
        if self.corrections:
            _check_corrections(self.corrections, plan)
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
        """The start part's normal form; {} where a run begins as the pipeline's own does."""
        if self.start is None:
            return {}
        config = self.sampler.config if self.sampler else {}
        timesteps = self.sampler.timesteps if self.sampler else None
        return self.start.normal(timesteps, config.get("num_train_timesteps", 1000))

    def together(self) -> list[range]:
        """The steps that one call of the denoiser takes together; [] with gates, corrections or elided bits."""
        plan = self._resolved
        elided = self.bits and any(form.elided for form in self.bits.formats.values())
        if plan is None or self.plan is None or self.plan.ahead == 1 or self.gates or self.corrections or elided:
            return []
        return batches(plan, self.plan.ahead, self.guidance.branch if self.guidance else None)

    def guide(self) -> Guidance | None:
        """Guidance with an entry per step; None where it is the pipeline's own."""
        part = self.guidance
        if part is None or part.is_off or self.steps is None:
            return None
        weights = part.approximation(self.steps)
        return Guidance.of(self.model.tree(), self.steps, part.call, part.scale, part.branch, weights)

    def resolve(self) -> Plan | None:
        """The plan with every rule expanded; None where there is no plan and only one denoiser."""
        return self._resolved

    def decide(self) -> tuple[Gate, ...]:
        """The gates in the order of execution, each in its simplest form; those that do nothing are left out."""
        return self._decided

    @cached_property
    def _decided(self) -> tuple[Gate, ...]:
        if not self.gates or self.steps is None:
            return ()
        tree, plan, guidance = self.model.tree(), self.resolve(), self.guide()
        branch = guidance.branch if guidance and is_narrow(guidance.branch) else None
        gates = [Gate.of(g, tree, plan, self.steps, branch, f"gates[{i}]") for i, g in enumerate(self.gates)]
        order = list(tree.nodes)
        return tuple(sorted((g for g in gates if not g.is_off), key=lambda g: order.index(g.blocks[0])))

    @cached_property
    def _resolved(self) -> Plan | None:
        tree = self.model.tree()
        if (size := (self.steps or 0) * len(tree.nodes)) > MAX_ACTIONS:
            raise ScheduleError(
                f"steps is {self.steps}: {size} actions of {len(tree.nodes)} nodes; admissible are {MAX_ACTIONS}"
            )
        if self.steps is None or (self.plan is None and not self.at):
            return None
        return Plan.resolve(self.plan.rules if self.plan else (), tree, self.steps, self.at)

    def normal(self) -> dict[str, Any]:
        """The normal form: equal behaviour gives equal data. No scores, no history of how it was made."""
        plan = self.resolve()
        rules = [list(rule) for rule in plan.rules()] if plan else []
        body: dict[str, Any] = {"format": FORMAT, "model": self.model.model_dump(by_alias=True, exclude_none=True)}
        if self.sampler:
            body["sampler"] = self.sampler.model_dump(by_alias=True, exclude_none=True)
        if self.steps is not None:
            body["steps"] = self.steps
        gates = [gate.normal() for gate in self.decide()]
        forecasts = any("F" in actions for _, actions in rules) or any(gate.forecasts for gate in self.decide())
        axis = self.plan.axis if self.plan and forecasts else "index"
        if plan and self.plan and (rules or axis != "index"):
            value = self.plan.value if _kept_whole(plan) else "out"
            runs = self.together()
            together = {"ahead": max(map(len, runs))} if runs else {}
            body["plan"] = {"value": value, "axis": axis, **together, "rules": rules}
        if gates:
            body["gates"] = gates
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


def digest(document: Document) -> str:
    text = json.dumps(document.normal(), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def parse(text: str | bytes) -> Document:
    """Read a schedule file's content. ScheduleError names the field and the value; nothing else is raised."""
    if len(text) > MAX_BYTES:
        raise ScheduleError(f"the file has more than the {MAX_BYTES} bytes that a schedule may have")
    try:
        data = json.loads(text)
    except RecursionError:
        raise ScheduleError("this is no schedule: its JSON is nested too deep") from None
    except ValueError as error:
        raise ScheduleError(f"this is no complete JSON file: {error}") from None
    return validate(data)


def validate(data: Any) -> Document:
    """Check a decoded document; also its digest, where it carries one."""
    if not isinstance(data, dict):
        raise ScheduleError(f"a schedule is a JSON object, not {type(data).__name__}")
    try:
        _check_data(data, "file")
        _check_format(data.get("format", None))
        document = Document.model_validate_json(json.dumps(data))
        found = digest(document)
    except ValidationError as error:
        raise ScheduleError(_explain(error)) from None
    if document.digest not in (None, found):
        raise ScheduleError(
            f"digest is {document.digest!r}, but the content gives {found!r}: the file was edited; "
            "remove the digest field to accept it as it is"
        )
    return document


def _check_format(value: Any) -> None:
    name, slash, major = value.partition("/") if isinstance(value, str) else ("", "", "")
    if name != "schedule" or not slash or not (major.isascii() and major.isdecimal()) or len(major) > 6:
        raise ScheduleError(f"format is {str(value)[:60]!r}; a schedule file says {FORMAT!r}")
    if int(major) != 1:
        raise ScheduleError(f"format is {value!r}, this version reads {FORMAT!r}: upgrade diffusion-schedule-search")


def _kept_whole(plan: Plan) -> list[Node]:
    """The blocks and stacks whose values are reused or forecast."""
    planned = [plan.tree.nodes[name] for name in plan.planned()]
    return [n for n in planned if n.kind in ("stack", "block") and any(history(t) for t in plan.tokens[n.name])]


def _check_residual(plan: Plan) -> None:
    for node in _kept_whole(plan):
        if not plan.tree.stack(node.stack).outputs:
            raise ScheduleError(
                f"plan.value is 'residual', but what enters {node.name} is not what it gives; use 'out', or plan its "
                "components"
            )


def _check_sampler(sampler: SamplerPart, steps: int | None) -> None:
    timesteps, sigmas, order = sampler.timesteps, sampler.sigmas, sampler.order
    for field, values, size in (("timesteps", timesteps, 0), ("sigmas", sigmas, 1), ("order", order, 0)):
        if values is not None and steps is not None and len(values) != steps + size:
            raise ScheduleError(f"sampler.{field} has {len(values)} entries; {steps} steps need {steps + size}")
    if sigmas is not None and timesteps is None:
        raise ScheduleError("sampler.sigmas is given without sampler.timesteps; give both")
    for field, values in (("timesteps", timesteps), ("sigmas", sigmas)):
        for i, (a, b) in enumerate(zip(values or [], (values or [])[1:], strict=False)):
            if not a > b and not (field == "sigmas" and a == b and i == len(values or []) - 2):  # DEIS repeats its last
                raise ScheduleError(f"sampler.{field} must fall strictly, but {a} is followed by {b} at {i}")
        if values and (values[-1] < 0 or values[0] > 1e6):
            raise ScheduleError(f"sampler.{field} runs from {values[0]} to {values[-1]}; admissible is 0 to 1e6")
    if sampler.coefficients is not None:
        _check_coefficients(sampler, steps)
    training = sampler.config.get("num_train_timesteps", 1000)
    if isinstance(training, bool) or not isinstance(training, int) or not 1 <= training <= 100_000:
        raise ScheduleError(f"sampler.config.num_train_timesteps is {training!r:.80}; admissible is 1 to 100000")
    if order is not None:
        check_order(sampler.class_name, [int(k) for k in order], sigmas, sampler.config)


def _check_coefficients(sampler: SamplerPart, steps: int | None) -> None:
    table = sampler.coefficients
    assert table is not None
    if sampler.timesteps is None or steps is None:
        raise ScheduleError("sampler.coefficients is given without sampler.timesteps; a table belongs to its grid")
    if sampler.order is not None:
        raise ScheduleError(
            "sampler.order and sampler.coefficients are both given; the table says the order, leave one"
        )
    for field, found in (("state", len(table.state)), ("outputs", len(table.outputs))):
        if found != steps:
            raise ScheduleError(f"sampler.coefficients.{field} has {found} rows; {steps} steps need {steps}")
    for i, row in enumerate(table.outputs):
        if len(row) != i + 1:
            raise ScheduleError(f"sampler.coefficients.outputs[{i}] has {len(row)} entries; row {i} has {i + 1}")


def _check_models(models: ModelsPart, steps: int) -> None:
    if len(models.at) != steps:
        raise ScheduleError(f"models.at has {len(models.at)} entries; {steps} steps need {steps}")
    for step, letter in enumerate(models.at):
        if letter != OWN and letter not in models.names:
            known = ", ".join([OWN, *models.names])
            raise ScheduleError(f"models.at is {letter!r} at step {step}, which models.names lacks; there are {known}")
    for part in models.names.values():
        part.tree()


def _check_guidance(guidance: GuidancePart, steps: int, at: str) -> None:
    approximate = guidance.approximate or ApproximatePart()
    lists = (("approximate.low", approximate.low), ("approximate.high", approximate.high))
    for field, values in (("scale", guidance.scale), ("branch", guidance.branch), *lists):
        if isinstance(values, list | str) and len(values) != steps:
            raise ScheduleError(f"guidance.{field} has {len(values)} entries; {steps} steps need {steps}")
    if not 1 < guidance.call <= 1000:
        raise ScheduleError(f"guidance.call is {guidance.call}; guidance needs a scale above 1, at most 1000")
    for i, scale in enumerate(guidance.scale or []):
        if not 0 <= scale <= 1000:
            raise ScheduleError(f"guidance.scale is {scale} at step {i}; admissible is 0 to 1000")
    began, full, barriers = 0, False, switches(at)
    for step, kind in enumerate(guidance.branch or ""):
        if step in barriers:
            began, full = step, False
        full |= kind == "C"
        if kind in "RA" and not full:
            raise ScheduleError(
                f"guidance.branch is {kind} at step {step}, but no C came before it{since(began)} to reuse"
            )


def _check_bits(bits: BitsPart) -> None:
    for name, form in bits.formats.items():
        if form.elided and (form.weight or form.activation or form.split):
            raise ScheduleError(f"bits.formats.{name} is elided and has bits; an elided layer has none")
        if not form.elided and not form.weight:
            raise ScheduleError(f"bits.formats.{name} has no weight bits; give weight 2 to 8, or elided true")
        if form.static and not form.activation:
            raise ScheduleError(f"bits.formats.{name} is static, but only activations are; give activation 4 to 8")
    for layer, name in bits.layers.items():
        if name not in bits.formats:
            raise ScheduleError(
                f"bits.layers.{layer} is {name!r}, which bits.formats lacks; it has {', '.join(bits.formats) or 'none'}"
            )
    for layer, ranges in bits.ranges.items():
        wanted = bits.formats[bits.layers[layer]] if layer in bits.layers else None
        if wanted is None or not wanted.static:
            raise ScheduleError(f"bits.ranges.{layer} is given, but bits.layers has no static format for it")
        if len(ranges) != (sides := 2 if wanted.split else 1):
            raise ScheduleError(f"bits.ranges.{layer} has {len(ranges)} ranges; its format needs {sides}")
        for low, high in ranges:
            if not low <= 0 <= high:
                raise ScheduleError(f"bits.ranges.{layer} is {low} to {high}; a range holds 0, which pads pictures")


def _check_corrections(corrections: CorrectionsPart, plan: Plan | None) -> None:
    tokens = plan.tokens if plan else {}
    for name, steps in corrections.steps.items():
        if name not in tokens:
            raise ScheduleError(f"corrections.steps names {name!r:.80}, which is no node of the plan")
        if any(a >= b for a, b in zip(steps, steps[1:], strict=False)):
            raise ScheduleError(f"corrections.steps.{name} must rise strictly")
        for step in steps:
            if not 0 <= step < len(tokens[name]) or not history(tokens[name][step]):
                found = tokens[name][step] if 0 <= step < len(tokens[name]) else "no step"
                raise ScheduleError(
                    f"corrections.steps.{name} has step {step}, which is {found}; only what is reused (R) or forecast "
                    "(F) is corrected"
                )


def _check_data(value: Any, where: str, depth: int = 0) -> None:
    """Plain finite JSON data of bounded depth."""
    if depth > 20:
        raise ScheduleError(f"{where[:80]} is nested more than 20 deep")
    if isinstance(value, dict | list | tuple) and len(value) > MAX_ENTRIES:
        raise ScheduleError(f"{where[:200]} has {len(value)} entries; admissible are {MAX_ENTRIES}")
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise ScheduleError(f"{where}: a key is a {type(key).__name__}; keys are text")
            _check_data(key, where, depth + 1)
            _check_data(inner, f"{where}.{key[:80]}", depth + 1)
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            _check_data(inner, f"{where}[{i}]", depth + 1)
    elif isinstance(value, str):
        if any("\ud800" <= c <= "\udfff" for c in value):
            raise ScheduleError(f"{where}: {value[:40]!r} is not valid Unicode text")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ScheduleError(f"{where} is {value}; numbers must be finite")
    elif isinstance(value, int) and abs(value) >= 2**63:
        raise ScheduleError(f"{where} has {value.bit_length()} bits; whole numbers must fit in 64")
    elif value is not None and not isinstance(value, bool | int | float):
        raise ScheduleError(f"{where} is a {type(value).__name__}, which is no JSON value")


def _explain(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    if isinstance(inner := first.get("ctx", {}).get("error"), ScheduleError):
        return str(inner)
    parts = [str(part) for part in first["loc"] if part != "int" and not str(part).startswith("list[")]  # of a union
    place = ".".join(parts)[:200] or "file"
    if first["type"] == "extra_forbidden":
        known = ", ".join(field.alias or name for name, field in Document.model_fields.items())
        return f"{place} is no field of {FORMAT} that this version knows; at the top it knows {known}"
    return f"{place} is {str(first.get('input'))[:80]!r}: {first['msg']}"


def json_schema() -> dict[str, Any]:
    """The published JSON Schema of the format."""
    return Document.model_json_schema(by_alias=True) | {"$id": FORMAT, "title": "Diffusion schedule"}


if __name__ == "__main__":  # python -m search.schedule.format writes the schema anew
    from pathlib import Path

    text = json.dumps(json_schema(), indent=1, ensure_ascii=False) + "\n"
    Path(__file__).with_name("schedule-1.schema.json").write_text(text, encoding="utf-8")
