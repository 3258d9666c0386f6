"""The settings of a search and their limits. Defaults are in conf/, limits only here."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from typing_extensions import TypedDict

import search.conf
from search.config.hints import closest_name_hint
from search.config.limits import (
    ClassPath,
    Limit,
    Pixels,
    Seed,
    Trusted,
    as_list,
    integer,
    is_address,
    real_number,
    rule,
)
from search.config.saved import read_saved_config
from search.files import write_atomically
from search.pareto.certificates import StoppingRule

MISTAKES = 8  # that one message has at most
CONF = Path(search.conf.__path__[0])  # folder of the YAML files, in a checkout and when installed


class ComponentConfig(TypedDict):
    """One space, engine or objective: its class, and arguments that the constructor checks."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    _target_: ClassPath


class ModelConfig(TypedDict):
    """The pipeline: arguments of the class `_target_`, which has defaults for those that are left out."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]
    _target_: ClassPath
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    path: NotRequired[str | None]
    steps: NotRequired[Annotated[int | None, integer(1, 1000, null=True)]]
    guidance_scale: NotRequired[Annotated[float | None, real_number(0, 100, null=True)]]
    height: NotRequired[Pixels]
    width: NotRequired[Pixels]
    dtype: NotRequired[Literal["float32", "float16", "bfloat16"]]
    scheduler: NotRequired[str | None]
    small: NotRequired[str | None]
    vae_dtype: NotRequired[Literal["float32", "float16", "bfloat16"] | None]
    max_sequence_length: NotRequired[Annotated[int | None, integer(1, 4096, null=True)]]
    num_frames: NotRequired[Annotated[int | None, integer(1, 10_000, null=True)]]
    call: NotRequired[dict[str, Any]]
    output: NotRequired[str | None]
    tuned_on: NotRequired[list[str]]
    chunks: NotRequired[Annotated[int, integer(1, 10_000)]]
    contract: NotRequired[dict[str, Any]]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Prompts(_Strict):
    """The prompts of a search.

    Attributes:
        calibration: Text file with one prompt per line, on which candidates are scored; or a list of prompts.
        held_out: Another one, on which the front is scored at the end.
        calibration_count: How many lines of it are used at most; null for all.
        held_out_count: The same for the held-out prompts.
        batch: So many prompts are denoised together. Candidates that are surely dominated on the first batches skip the
            others.
        seed: Of the noise of the first prompt; each further prompt has the next one.
    """

    calibration: str | list[str]
    held_out: str | list[str]
    calibration_count: Annotated[int | None, integer(1, 100_000, null=True)]
    held_out_count: Annotated[int | None, integer(1, 100_000, null=True)]
    batch: Annotated[int, integer(1, 4096)] = 8  # config.yaml of older searches may lack this key
    seed: Seed


class Budget(_Strict):
    """When a search ends: at the first limit that is reached; null means no limit.

    Attributes:
        evaluations: Candidates that are evaluated, with those that lose a race.
        minutes: Time of the search itself, without preparation and held-out scores.
        block_executions: Work in executions of one block for one picture.
        generation: How many candidates the engine proposes at once.
        failures: The search ends when objectives have failed for so many candidates.
        patience: Seconds after which a call of an objective counts as failed.
    """

    evaluations: Limit
    minutes: Annotated[float | None, real_number(0.01, 1e6, null=True)]
    block_executions: Limit
    generation: Annotated[int, integer(1, 100_000)] = 24
    failures: Limit = 10
    patience: Annotated[float | None, real_number(0.01, 1e6, null=True)] = 600

    @model_validator(mode="after")
    def _ends(self) -> "Budget":
        if self.evaluations is None and self.minutes is None and self.block_executions is None:
            raise ValueError("nothing ends the search; set one of them, for example budget.evaluations=300")
        return self

    def is_spent(self, evaluations: int, seconds: float, block_executions: float) -> bool:
        """Whether one of the limits is reached."""
        return (
            (self.evaluations is not None and evaluations >= self.evaluations)
            or (self.minutes is not None and seconds >= 60 * self.minutes)
            or (self.block_executions is not None and block_executions >= self.block_executions)
        )

    def next_generation(self, evaluations: int) -> int:
        """How many candidates the next generation has at most, after so many evaluations."""
        return self.generation if self.evaluations is None else min(self.generation, self.evaluations - evaluations)


class Certify(_Strict):
    """What is promised about the next run of a schedule (docs/certificates.md).

    Attributes:
        criterion: The condition that every run is held to, such as `psnr>=30`; null promises nothing.
        share: The probability that a new run meets it, at least.
        confidence: The probability that no promise is made which does not hold.
        runs: How many held-out runs a schedule is tested on at most.
    """

    criterion: str | None = None
    share: Annotated[float, real_number(0.01, 0.9999)] = 0.9
    confidence: Annotated[float, real_number(0.01, 0.9999)] = 0.95
    runs: Annotated[int, integer(1, 100_000)] = 96

    @model_validator(mode="after")
    def _can_decide(self) -> "Certify":
        if self.criterion is not None:
            self.rule()
        return self

    def rule(self, runs: int | None = None) -> StoppingRule:
        """When a certificate is decided on, after at most `runs` runs, or as many as are set."""
        return StoppingRule.of(self.share, self.confidence, max(self.runs, runs or 0))


class Compute(_Strict):
    """Where to run. The last three are for `executor` ray.

    Attributes:
        device: `auto` is the GPU where there is one.
        threads: Of torch on the CPU; null lets torch decide.
        states: GiB of latents and stored values that are held on the device, and four times as much in the memory next
            to a GPU, so that runs with the same first steps share them; 0 shares nothing.
        executor: This process, or Ray workers.
        workers: The number of workers; null for as many as there is room for.
        gpus: The share of a GPU that a worker takes; null for a whole one if the device is a GPU.
        address: Of a Ray cluster; null starts Ray on this machine.
    """

    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")]
    threads: Annotated[int | None, integer(1, 1024, null=True)]
    states: Annotated[float, real_number(0, 100_000)] = 2.0
    executor: Literal["local", "ray"] = "local"
    workers: Annotated[int | None, integer(1, 10_000, null=True)] = None
    gpus: Annotated[float | None, real_number(0.01, 1, null=True)] = None
    address: Annotated[str | None, rule(is_address, "auto, <host>:<port> or ray://<host>:<port>", null=True)] = None

    @model_validator(mode="after")
    def _together(self) -> "Compute":
        given = {name: value for name in ("workers", "gpus", "address") if (value := getattr(self, name)) is not None}
        if self.executor == "local" and given:
            name, value = next(iter(given.items()))
            raise ValueError(f"compute.{name}={value} is for workers; type compute=ray compute.{name}={value}")
        return self


class Tracking(_Strict):
    """MLflow; with `uri` null its store is a database in the folder of runs."""

    enabled: bool
    uri: str | None


class Config(_Strict):
    """All settings of a search, checked. `model`, `space`, `engine`, `objective` and `guard` are plain mappings."""

    model: ModelConfig
    space: dict[str, ComponentConfig]
    engine: ComponentConfig
    objective: dict[str, ComponentConfig]
    guard: dict[str, ComponentConfig] = {}  # config.yaml of older searches may lack this key
    prompts: Prompts
    budget: Budget
    compute: Compute
    tracking: Tracking
    certify: Certify = Certify()  # config.yaml of older searches may lack this key
    initial: str = "proposals"  # of which rows an engine begins with; older runs that lack this key resume
    refit: bool
    correct: bool
    seed: Seed
    resume: str | None
    runs: Annotated[str, Field(min_length=1)]
    trust: Annotated[list[Trusted], BeforeValidator(as_list)] = Field(default=[], exclude=True)  # not saved

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
        """A Config from nested plain data.

        Raises:
            ValueError: One line for each of the first mistakes, with the value and what is admissible.
        """
        try:
            return Config.model_validate(raw)
        except ValidationError as error:
            lines = [_message(mistake) for mistake in error.errors()]
            more = [f"and {len(lines) - MISTAKES} more"] if len(lines) > MISTAKES else []
            raise ValueError("\n".join(lines[:MISTAKES] + more)) from None

    @staticmethod
    def load(path: str | Path) -> "Config":
        """Read a file that `save` wrote; ValueError if it is not a configuration."""
        return Config.check(_with_current_names(read_saved_config(path)))

    def save(self, path: str | Path) -> None:
        """Write the configuration as YAML; a search that is killed here can be resumed."""
        text = yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        write_atomically(Path(path), text)


def _with_current_names(saved: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a config.yaml in today's names. The only place that knows names of earlier versions."""
    current = dict(saved)
    if "begin" in current and "initial" not in current:  # "begin: seeds" is today's "initial: proposals"
        value = current.pop("begin")
        current["initial"] = "proposals" if value == "seeds" else value
    return current


@cache
def all_keys() -> tuple[str, ...]:
    """Every dotted key that a command line can set: `model.steps`, `space.cache.granularity`, ..."""
    keys = []
    for name, field in Config.model_fields.items():
        inner = getattr(field.annotation, "__annotations__", {})
        keys += [name, *(f"{name}.{key}" for key in inner if not key.startswith(("_", "model_config")))]
    for file in CONF.glob("*/*.yaml"):  # arguments that only their own class knows
        group = file.parent.name
        section = group if group in ("engine", "model") else f"{group}.{file.stem}"
        if group in ("space", "engine", "objective", "model"):
            loaded = yaml.safe_load(file.read_text(encoding="utf-8"))
            keys += [f"{section}.{key}" for key in loaded if not key.startswith("_") and key != "defaults"]
    return tuple(sorted(set(keys)))


def _message(mistake: Mapping[str, Any]) -> str:
    """`model.steps=0: give a whole number from 1 to 1000`: the value and what is admissible."""
    key = ".".join(str(part) for part in mistake["loc"])[:200]
    match mistake["type"]:
        case "extra_forbidden":
            return f"there is no {key}.{closest_name_hint(key, all_keys())}"
        case "missing":
            return f"{key} is missing"
        case "value_error" if not isinstance(mistake["input"], Mapping | BaseModel):
            return f"{key}={mistake['input']!s:.200}: {mistake['ctx']['error']}"
        case "value_error":
            return f"{key}: {mistake['ctx']['error']}" if key else str(mistake["ctx"]["error"])
    words = "auto, cpu, mps, cuda or cuda:<number>" if key == "compute.device" else mistake["msg"]
    return f"{key}={mistake['input']!s:.200}: give {words.removeprefix('Input should be ')}"
