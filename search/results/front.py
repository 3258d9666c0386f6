"""front.json, the scores of a finished search: its schema with bounds, reading it, and the schedules that it names."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from search.files import FileRefused, read_regular_file
from search.results.scores import Speedup

if TYPE_CHECKING:
    from search.schedule import Schedule

FILE = "front.json"
MAX_BYTES = 64 * 2**20  # a hundred thousand candidates are 20 MiB
DEEPEST, MOST_SETTINGS = 20, 10_000  # of the configuration in it
REMEDY = "write it again with: "
LARGEST = 1e15  # of a number; bytes, operations and milliseconds are far below
COSTS = ("macs", "latency", "memory", "bops", "size", Speedup.key)  # of searches that did not record their kinds


def _check_settings(config: dict[str, Any]) -> dict[str, Any]:
    for count, (depth, _) in enumerate(_values(config)):
        if depth > DEEPEST or count > MOST_SETTINGS:
            raise ValueError(f"it has more than {MOST_SETTINGS} values, or is nested more than {DEEPEST} deep")
    return config


def _check_generation(record: dict[str, float]) -> dict[str, float]:
    if not (float(generation := record.get("generation", -1)).is_integer() and 0 <= generation <= 1e9):
        raise ValueError("generation is not a whole number from 0 to 1000000000")
    return record


Number = Annotated[float, Field(ge=-LARGEST, le=LARGEST, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, le=10**12)]
Key = Annotated[str, Field(pattern=r"^\w[\w.-]{0,99}$")]  # name of a score or of an objective
Name = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f-\x9f]{1,200}$")]  # of a schedule; it is printed
Word = Annotated[str, Field(max_length=200)]
Text = Annotated[str, Field(max_length=10_000)]
Group = Annotated[str, Field(pattern=r"^\w[\w.+-]{0,199}$")]  # names folders, and models of a registry
Texts = Annotated[list[Text], Field(max_length=100_000)]
Keys = Annotated[list[Key], Field(max_length=200)]
ScheduleFile = Annotated[str, Field(pattern=r"^schedules/[A-Za-z0-9][A-Za-z0-9._-]{0,199}\.json$")]
PictureFile = Annotated[str, Field(pattern=r"^pictures/[A-Za-z0-9][A-Za-z0-9._-]{0,199}\.png$")]
Generation = Annotated[dict[Key, Number], Field(max_length=200), AfterValidator(_check_generation)]
Settings = Annotated[dict[str, JsonValue], AfterValidator(_check_settings)]


class _Part(BaseModel):
    """No conversions between types. Fields of a later version are left out."""

    model_config = ConfigDict(extra="ignore", strict=True)


class _Score(_Part):
    value: Number
    low: Number | None = None
    high: Number | None = None


Scores = Annotated[dict[Key, _Score], Field(max_length=200)]


class _Tested(_Part):
    runs: Count
    misses: Count
    certified: bool


class _Worst(_Part):
    name: Key
    value: Number
    prompt: Text
    seed: Count
    picture: PictureFile | None = None


class _Certify(_Part):
    criterion: Word
    share: Number
    confidence: Number
    runs: Count
    new_runs: Count = 0
    block_executions: Number = 0


class _WithoutPart(_Part):
    name: Word
    drift: Number
    difference: Number
    low: Number
    high: Number
    macs: Number


class _Attribution(_Part):
    drift: Number
    macs: Number
    block_executions: Number
    parts: Annotated[list[_WithoutPart], Field(max_length=100)]


class _Row(_Part):
    """A schedule with its scores."""

    name: Name
    role: Literal["front", "preset", "teacher"]
    file: ScheduleFile
    picture: PictureFile | None = None
    behind: Word = ""
    calibration: Scores = {}
    held_out: Scores
    gap: Scores = {}
    change: Scores = {}
    tested: _Tested | None = None
    worst: _Worst | None = None


class _Front(_Part):
    """The content of front.json; what has a default was not written by the first versions."""

    search_id: Name
    model: Group
    space: Group
    objectives: Keys
    units: dict[Key, Word] = {}
    better: dict[Key, Literal["lower", "higher"]]
    kinds: dict[Key, Literal["cost", "quality"]] | None = None
    labels: dict[Key, Word] = {}
    shares: Keys | None = None
    entries: Annotated[list[_Row], Field(min_length=1, max_length=1000)]
    history: Annotated[list[Generation], Field(max_length=1_000_000)]
    points: Annotated[list[dict[Key, Number | Word]], Field(max_length=1_000_000)]
    prompts: Annotated[dict[Key, Texts], Field(max_length=10)]
    shown: Annotated[list[Text], Field(max_length=100)] = []
    recommended: Word
    config: Settings
    environment: Annotated[dict[Word, Text], Field(max_length=200)]
    certify: _Certify | None = None
    attribution: _Attribution | None = None
    stopped: Text = ""
    guard: Keys = []
    notes: Annotated[list[Text], Field(max_length=1000)] = []

    @model_validator(mode="after")
    def _consistent(self) -> "_Front":
        """The teacher is last, every schedule has the scores of the search, and candidates have numbers as scores."""
        if [i for i, row in enumerate(self.entries) if row.role == "teacher"] != [len(self.entries) - 1]:
            raise ValueError("entries does not end with its one teacher")
        for i, row in enumerate(self.entries):
            if lacking := [name for name in (*self.objectives, *self.entries[0].held_out) if name not in row.held_out]:
                raise ValueError(f"entries.{i}.held_out.{lacking[0]} is missing, which other schedules have")
        for i, point in enumerate(self.points):
            if wrong := [name for name, value in point.items() if isinstance(value, str) and name != "digest"]:
                raise ValueError(f"points.{i}.{wrong[0]} is {point[wrong[0]]!r:.80}, and not a number")
        return self


def read_front(folder: Path) -> dict[str, Any]:
    """The content of front.json, checked; the first versions' is completed.

    Raises:
        ValueError: There is none, or it is wrong; the message names the field and says what to type.
    """
    file = folder / FILE
    try:
        data = json.loads(read_regular_file(file, MAX_BYTES, inside=folder))
    except FileNotFoundError:
        raise ValueError(f"the search in {folder} has no front yet; finish it with: {resume_command(folder)}") from None
    except FileRefused:
        raise
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deep" if isinstance(error, RecursionError) else error
        raise ValueError(f"{file} is not a complete JSON file ({reason}); {REMEDY}{resume_command(folder)}") from None
    try:
        front = _Front.model_validate(data).model_dump()
    except ValidationError as error:
        raise ValueError(f"{file}: {_explain(error)}; {REMEDY}{resume_command(folder)}") from None
    return with_descriptions(front)


def with_descriptions(front: dict[str, Any]) -> dict[str, Any]:
    """The content of a front.json with `kinds` and `shares`, also if it was written before these existed.

    The only place that has a list of objectives: those that existed then.
    """
    names = sorted({name for row in front["entries"] for name in row["held_out"]} | set(front["objectives"]))
    kinds = {name: "cost" if name in COSTS else "quality" for name in names}
    shares = [name for name in ("macs", "bops") if name in names]
    return front | {"kinds": front["kinds"] or kinds, "shares": shares if front["shares"] is None else front["shares"]}


def load_schedule(folder: Path, row: dict[str, Any]) -> "Schedule":
    """The schedule of an entry of front.json; ValueError, with what to type, where its file is gone or damaged."""
    from search.schedule import Schedule

    try:
        return Schedule.load(folder / row["file"])
    except ValueError as error:
        raise ValueError(f"{error}; {REMEDY}{resume_command(folder)}") from None


def resume_command(folder: Path) -> str:
    """What to type so that the files of a result are written anew, from what the search has stored."""
    return f"python -m search resume={folder.name}"


def _values(value: Any) -> Iterator[tuple[int, Any]]:
    """All values in nested data, each with its depth; nothing here is recursive."""
    left = [(0, value)]
    while left:
        depth, inner = left.pop()
        yield depth, inner
        children = inner.values() if isinstance(inner, dict) else inner if isinstance(inner, list) else ()
        left += [(depth + 1, child) for child in children]


def _explain(error: ValidationError) -> str:
    """The first mistake in one line: the field, its value, and what is admissible."""
    first = error.errors(include_url=False)[0]
    place = "".join(c if c.isprintable() else "?" for c in ".".join(map(str, first["loc"])))[:200]
    if first["type"] == "missing":
        return f"{place} is missing"
    if first["type"] == "value_error":
        return f"{place}: {first['ctx']['error']}".removeprefix(": ")
    return f"{place or 'the content'} is {first['input']!r:.80}: {first['msg']}"
