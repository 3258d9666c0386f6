"""What a search can be told, and within which limits. The defaults stand in conf/*.yaml, the limits only here."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

import yaml
from annotated_types import Ge, Gt, Le, Lt, MultipleOf
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from typing_extensions import TypedDict  # typing's own lacks what pydantic needs before Python 3.12

BUNDLED = "bundled:"  # a prompt file of conf/prompts/, wherever the project is installed

Count = Annotated[int, Field(ge=1, le=1_000_000_000)]
Pixels = Annotated[int, Field(ge=16, le=8192, multiple_of=8)]
ClassPath = Annotated[str, Field(pattern=r"^\w+(\.\w+)+$")]


def _whole(value: Any) -> Any:
    """An unset variable in `model.steps=$N` arrives as an empty string; booleans would pass as 0 and 1."""
    if isinstance(value, bool | str):
        raise ValueError(f"{value!r} is not a number")
    return value


Number = BeforeValidator(_whole)


class Part(TypedDict):
    """One space, engine or objective: the class, and arguments that its constructor checks."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    _target_: ClassPath


class ModelConfig(TypedDict):
    """The pipeline; handed to the adapter class `_target_` as it is. What is left out is the adapter's default."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]
    _target_: ClassPath
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    path: NotRequired[str | None]
    steps: Annotated[int, Field(ge=2, le=1000), Number]
    guidance_scale: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False), Number]
    height: NotRequired[Pixels | None]
    width: NotRequired[Pixels | None]
    dtype: NotRequired[Literal["float32", "float16", "bfloat16"]]
    max_sequence_length: NotRequired[Annotated[int, Field(ge=1, le=4096), Number]]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Prompts(_Strict):
    """Two text files, one prompt a line, and how many lines of each are used at most."""

    calibration: str
    held_out: str
    calibration_count: Annotated[int, Field(ge=1, le=100_000), Number]
    held_out_count: Annotated[int, Field(ge=1, le=100_000), Number]
    seed: Annotated[int, Field(ge=0, lt=2**32), Number]


class Budget(_Strict):
    """A search ends with the first limit that is reached; null is no limit."""

    evaluations: Count | None
    minutes: Annotated[float, Field(gt=0, le=1_000_000, allow_inf_nan=False)] | None
    block_executions: Count | None

    @model_validator(mode="after")
    def _ends(self) -> "Budget":
        if self.evaluations is None and self.minutes is None and self.block_executions is None:
            raise ValueError("nothing ends the search; set one of them, for example budget.evaluations=300")
        return self


class Compute(_Strict):
    """Where to run. `threads` null leaves torch's own choice."""

    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")]
    threads: Annotated[int, Field(ge=1, le=1024)] | None


class Tracking(_Strict):
    """MLflow. `uri` null is the database in the folder of runs."""

    enabled: bool
    uri: str | None


class Config(_Strict):
    """A whole search, checked. `model`, `space`, `engine` and `objective` stay plain mappings."""

    model: ModelConfig
    space: dict[str, Part]
    engine: Part
    objective: dict[str, Part]
    prompts: Prompts
    budget: Budget
    compute: Compute
    tracking: Tracking
    seed: Annotated[int, Field(ge=0, lt=2**32), Number]
    resume: str | None
    runs: Annotated[str, Field(min_length=1)]

    @model_validator(mode="after")
    def _enough(self) -> "Config":
        if not self.space:
            raise ValueError("nothing to search; add +space=cache")
        if len(self.objective) < 2:
            raise ValueError(
                f"objective={list(self.objective)} leaves no trade-off to find; name at least two, "
                "for example objective=[drift,macs]"
            )
        return self

    @staticmethod
    def check(raw: Mapping[str, Any]) -> "Config":
        """A Config from nested plain data; ValueError with one line per mistake."""
        try:
            return Config.model_validate(raw)
        except ValidationError as error:
            raise ValueError("\n".join(_explain(mistake) for mistake in error.errors())) from None

    @staticmethod
    def load(path: str | Path) -> "Config":
        """Read what `save` wrote."""
        raw = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        if not isinstance(raw, dict):
            raise ValueError(f"{path} is not a configuration; a run folder has one in config.yaml")
        return Config.check(raw)

    def save(self, path: str | Path) -> None:
        text = yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        Path(path).write_text(text, encoding="utf-8")


def read_prompts(path: str) -> list[str]:
    """The prompts of a text file: one a line, without empty lines and lines that begin with #."""
    bundled = path.startswith(BUNDLED)
    file = _bundled_prompts() / path.removeprefix(BUNDLED) if bundled else Path(path).expanduser()
    hint = "use prompts.calibration=<text file with one prompt a line>, and prompts.held_out=<another>"
    if not file.is_file():
        raise ValueError(f"no prompt file {str(file)!r} (from {path!r}); {hint}")
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{str(file)!r} is not UTF-8 text ({error.reason} at byte {error.start}); {hint}") from None
    prompts = [line for line in lines if line and not line.startswith("#")]
    if not prompts:
        raise ValueError(f"no prompt in {str(file)!r}; {hint}")
    return prompts


def known_keys() -> list[str]:
    """Every dotted key of the sections that are checked here: `model.steps`, `budget.minutes`, ..."""
    return list(_keys(TypeAdapter(Config).json_schema()))


def similar(name: str, known: Iterable[str]) -> str:
    """`; did you mean x?`, or nothing. The last part of a dotted name counts as much as the whole."""
    known = sorted(set(known))
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    if not near:
        last = {key.rsplit(".", 1)[-1]: key for key in reversed(known)}
        near = [last[n] for n in difflib.get_close_matches(name.rsplit(".", 1)[-1], last, n=1, cutoff=0.75)]
    return f"; did you mean {near[0]}?" if near else ""


def _bundled_prompts() -> Path:
    import search.conf

    return Path(search.conf.__path__[0]) / "prompts"


def _keys(schema: Mapping[str, Any], prefix: str = "", definitions: Mapping[str, Any] | None = None) -> Iterable[str]:
    definitions = definitions or schema.get("$defs", {})
    for name, field in schema.get("properties", {}).items():
        yield prefix + name
        if reference := field.get("$ref"):
            yield from _keys(definitions[reference.rsplit("/", 1)[-1]], f"{prefix}{name}.", definitions)


def _explain(mistake: Mapping[str, Any]) -> str:
    """`model.steps=0: from 2 to 1000 is possible`: the rule, the value, what is admissible."""
    path = [part for part in mistake["loc"] if isinstance(part, str)]
    key = ".".join(path)
    match mistake["type"]:
        case "extra_forbidden":
            return f"there is no {key}{similar(key, known_keys())}"
        case "missing":
            return f"{key} is missing"
        case "value_error":
            said = str(mistake["ctx"]["error"])
            return f"{key}: {said}" if key else said
    limits = _limits(mistake["loc"])
    allowed = limits or mistake["msg"].removeprefix("Input should be ")
    return f"{key}={mistake['input']!r} is not possible; give {allowed}"


def _limits(loc: Sequence[Any]) -> str:
    """The range of the field at `loc` in words, from the same annotations that were checked."""
    words = _LIMITS.get(".".join(str(part) for part in loc[:2]), "")
    return words


def _ranges(kind: Any, prefix: str = "") -> Iterable[tuple[str, str]]:
    for name, field in getattr(kind, "model_fields", {}).items():
        yield from _ranges(field.annotation, f"{prefix}{name}.")
        yield prefix + name, _words(field.annotation, field.metadata)
    if hasattr(kind, "__total__"):
        for name, annotation in kind.__annotations__.items():
            yield prefix + name, _words(annotation, ())


def _words(annotation: Any, metadata: Sequence[Any]) -> str:
    found = [*metadata]
    pending = [annotation]
    optional = False
    whole = False
    while pending:
        part = pending.pop()
        found += [m for extra in getattr(part, "__metadata__", ()) for m in getattr(extra, "metadata", [extra])]
        pending += [inner for inner in getattr(part, "__args__", ()) if not isinstance(inner, str)]
        if getattr(part, "__origin__", None) is not None and not getattr(part, "__args__", ()):
            pending.append(part.__origin__)
        optional |= part is type(None)
        whole |= part is int
    low = next((f"from {m.ge}" for m in found if isinstance(m, Ge)), None)
    low = low or next((f"more than {m.gt}" for m in found if isinstance(m, Gt)), None)
    high = next((f"to {m.le}" for m in found if isinstance(m, Le)), None)
    high = high or next((f"to below {m.lt}" for m in found if isinstance(m, Lt)), None)
    if low is None and high is None:
        return ""
    step = next((f" in multiples of {m.multiple_of}" for m in found if isinstance(m, MultipleOf)), "")
    number = "a whole number" if whole else "a number"
    return f"{number} {low or ''} {high or ''}{step}{', or null' if optional else ''}"


_LIMITS = dict(_ranges(Config))
