"""The plain state of an engine: what it may hold, and how it is checked when a search is resumed from a folder."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError, ValidationInfo, model_validator

if TYPE_CHECKING:
    from search.engines.base import EngineInputs


WORST = 1e300  # stands for NaN and infinity: loses against everything, and survives arithmetic


class EngineState(BaseModel):
    """Base of the schemas of states: names, types, shapes and ranges of what `Engine.state` returned.

    Arrays of the names in one group of `together` have the same length.

    Example:
        >>> import numpy as np
        >>> from search.engines.base import EngineInputs
        >>> from search.engines.state import EngineState, Rows, Scores
        >>> from search.spaces.gene import Gene
        >>> class Parents(EngineState):
        ...     together = (("x", "y"),)
        ...     x: Rows
        ...     y: Scores
        >>> inputs = EngineInputs([Gene("a", 2), Gene("b", 3)], objectives=2, rng=np.random.default_rng(0))
        >>> Parents.read({"x": np.array([[1, 2]]), "y": np.array([[0.1, 5.0]])}, inputs).x.tolist()
        [[1, 2]]
        >>> Parents.read({"x": np.array([[1, 3]]), "y": np.array([[0.1, 5.0]])}, inputs)
        Traceback (most recent call last):
        ValueError: x: row 0 has 3 at gene 1; levels are 0 to 2
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, arbitrary_types_allowed=True)
    together: ClassVar[tuple[tuple[str, ...], ...]] = ()

    @classmethod
    def read(cls, state: Mapping[str, Any], inputs: "EngineInputs") -> Self:
        """The state, checked against the genes and the number of objectives; ValueError names the entry."""
        try:
            return cls.model_validate(state, context={"levels": inputs.levels, "objectives": inputs.objectives})
        except ValidationError as error:
            raise ValueError(describe_first_error(error)) from None

    @model_validator(mode="after")
    def _same_lengths(self) -> Self:
        for names in self.together:
            lengths = [len(getattr(self, name)) for name in names]
            if len(set(lengths)) > 1:
                raise ValueError(f"{', '.join(names)} have the lengths {lengths}; they must be equal")
        return self


def describe_first_error(error: ValidationError) -> str:
    """`queue.waiting: row 0 has 3 at gene 1; levels are 0 to 2`: the first entry that is wrong, and why."""
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part)[:100] for part in first["loc"])
    words = first["msg"].removeprefix("Value error, ")
    return f"{place}: {words}" if place else words


def check_array(value: Any, kinds: type | tuple[type, ...], shape: tuple[int | None, ...]) -> np.ndarray:
    """The array, if it is of one of these types and has this shape (None: any length); ValueError if not."""
    types = [np.dtype(kind) for kind in (kinds if isinstance(kinds, tuple) else (kinds,))]
    if not isinstance(value, np.ndarray) or value.dtype not in types:
        raise ValueError(f"give an array of {' or '.join(map(str, types))}")
    fits = [size is None or size == given for size, given in zip(shape, value.shape, strict=False)]
    if len(value.shape) != len(shape) or not all(fits):
        words = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"has shape {value.shape}; give [{words}]")
    return value


def _row(value: Any, info: ValidationInfo) -> np.ndarray:
    row = check_array(value, np.int64, (len(_context(info)["levels"]),))
    _rows(row[None], info)
    return row


def _rows(value: Any, info: ValidationInfo) -> np.ndarray:
    levels = _context(info)["levels"]
    rows = check_array(value, np.int64, (None, len(levels)))
    for row, gene in np.argwhere((rows < 0) | (rows >= levels))[:1]:
        raise ValueError(f"row {row} has {rows[row, gene]} at gene {gene}; levels are 0 to {levels[gene] - 1}")
    return rows


def _context(info: ValidationInfo) -> Mapping[str, Any]:
    if not isinstance(info.context, Mapping):
        raise ValueError("read a state with EngineState.read, which knows the genes")
    return info.context


def _scores(value: Any, info: ValidationInfo) -> np.ndarray:
    return check_array(value, np.float64, (None, _context(info)["objectives"]))


def _bounded_scores(value: Any, info: ValidationInfo) -> np.ndarray:
    scores = _scores(value, info)
    for row, column in np.argwhere(~(np.abs(scores) <= WORST))[:1]:
        raise ValueError(f"row {row} has {scores[row, column]}; give numbers from {-WORST:g} to {WORST:g}")
    return scores


Row = Annotated[np.ndarray, PlainValidator(_row)]  # [G] of int64, within the levels of the genes
Rows = Annotated[np.ndarray, PlainValidator(_rows)]  # [N, G] of int64, within the levels of the genes
Scores = Annotated[np.ndarray, PlainValidator(_scores)]  # [N, M] of float64, not finite where a run diverged
Bounded = Annotated[np.ndarray, PlainValidator(_bounded_scores)]  # [N, M] of float64, at most WORST
Floats = Annotated[np.ndarray, PlainValidator(lambda value: check_array(value, np.float64, (None,)))]
Matrix = Annotated[np.ndarray, PlainValidator(lambda value: check_array(value, np.float64, (None, None)))]
Integers = Annotated[np.ndarray, PlainValidator(lambda value: check_array(value, np.int64, (None,)))]
Flags = Annotated[np.ndarray, PlainValidator(lambda value: check_array(value, np.bool_, (None,)))]
Count = Annotated[int, Field(ge=0, lt=2**63)]


def stack_rows(rows: Iterable[bytes | np.ndarray], genes: int) -> np.ndarray:
    """Rows, or the bytes of rows, as one array [N, G] of int64."""
    keys = [row if isinstance(row, bytes) else np.asarray(row, dtype=np.int64).tobytes() for row in rows]
    return np.frombuffer(b"".join(keys), dtype=np.int64).reshape(len(keys), genes).copy()


def keys_of_rows(rows: np.ndarray) -> list[bytes]:
    """The bytes of each row of x [N, G]."""
    return [row.tobytes() for row in rows]
