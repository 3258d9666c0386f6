"""All that a search needs to go on after it was killed, and its schema in the checkpoint."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, PlainValidator, TypeAdapter

from search.calibrate.propose.prior import Prior
from search.engines.base import Engine, EngineInputs
from search.engines.state import Count, EngineState, Flags, Floats, Integers, Matrix, Row, Rows, Scores, check_array
from search.loop import checkpoint
from search.profile.costs import Costs
from search.profile.target import Target
from search.spaces.base import Space

log = logging.getLogger("search")
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Hashes = Annotated[np.ndarray, PlainValidator(lambda value: check_array(value, np.uint64, (None,)))]
Values = Annotated[np.ndarray, PlainValidator(lambda value: check_array(value, (np.float64, np.int64), (None, None)))]
COSTS = TypeAdapter(Costs)
# Attributes of `SearchState` that the checkpoint has as they are.
SAME = ("block_executions", "unshared", "generation", "seconds", "asked", "lost", "failed", "halved", "history")


class SavedPrior(EngineState):
    """Arrays of a `Prior`; the space and the target are those of the configuration."""

    weights: Floats
    errors: dict[str, Matrix]
    shares: dict[str, Amount]


class SavedArchive(EngineState):
    """The archive: entry i has row i of every array. `values` has one column per prompt, of costs a single one."""

    together = (("digests", "x", "scores", "generation", "plain"),)
    digests: list[Annotated[str, Field(max_length=200)]]
    x: Rows
    scores: Scores
    generation: Integers
    plain: Flags
    values: dict[str, Values]

    def entries(self, objectives: Sequence[str]) -> dict[str, dict[str, Any]]:
        """The entries by digest; ValueError where values are of other objectives, or not of every entry."""
        count = len(self.digests)
        if count and list(self.values) != list(objectives):
            raise ValueError(f"archive.values: are of {', '.join(self.values)}; give {', '.join(objectives)}")
        values: dict[str, list[list[float]]] = {name: array.tolist() for name, array in self.values.items()}
        for name, of_entries in values.items():
            if len(of_entries) != count or not all(of_entries):
                raise ValueError(f"archive.values.{name}: has {len(of_entries)} rows; give {count}, none empty")
        columns = zip(self.x, self.scores.tolist(), self.generation.tolist(), self.plain.tolist(), strict=True)
        return {
            digest: {
                "x": x,
                "values": {name: values[name][i] for name in values},
                "scores": scores,
                "generation": generation,
                "plain": plain,
            }
            for i, (digest, (x, scores, generation, plain)) in enumerate(zip(self.digests, columns, strict=True))
        }


class SavedSearch(EngineState):
    """The schema of a checkpoint. `engine` is checked by the engine, `random` by NumPy."""

    engine: dict[str, Any]
    random: dict[str, Any]
    seeds: Rows
    worst: Floats
    prior: SavedPrior | None
    costs: Annotated[Costs, PlainValidator(COSTS.validate_python)]
    presets: dict[str, Row]
    block_executions: Amount
    unshared: Amount
    generation: Count
    seconds: Amount
    asked: Count
    lost: Count
    failed: Count
    counted: Hashes
    halved: dict[str, Count]
    history: list[dict[str, float | int]]
    archive: SavedArchive


@dataclass
class SearchState:
    """All that a search needs to go on after it was killed; written after every generation.

    An entry of `archive` is a dictionary with `x` (the row), `values` (by objective, one per prompt), `scores`
    [M] (minimised), `generation`, and `plain` (whether its solver was left as its genes say).
    """

    engine: Engine
    inputs: EngineInputs  # what the engine was made from; it draws from its random generator
    costs: Costs
    presets: dict[str, np.ndarray]  # rows [G] by name
    block_executions: float
    unshared: float  # block executions if runs shared nothing
    generation: int = 0
    seconds: float = 0.0
    archive: dict[str, dict[str, Any]] = field(default_factory=dict)  # by digest, in the order of evaluation
    asked: int = 0
    lost: int = 0  # candidates that lost their race
    failed: int = 0  # candidates that could not be scored
    counted: set[int] = field(default_factory=set)  # see Evaluator
    halved: dict[str, int] = field(default_factory=dict)  # see Evaluator
    history: list[dict[str, float]] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Write the checkpoint; a search that is killed here resumes from the previous generation."""
        checkpoint.save_checkpoint(self.plain(), path)

    def plain(self) -> dict[str, Any]:
        """Plain data as `SavedSearch` describes them."""
        prior = self.inputs.prior
        if prior is not None and not isinstance(prior, Prior):
            raise TypeError(f"a prior of type {type(prior).__name__} cannot be saved; use {Prior.__name__}")
        return {name: getattr(self, name) for name in SAME} | {
            "engine": self.engine.state(),
            "random": dict(self.inputs.rng.bit_generator.state),
            "seeds": self.inputs.seeds,
            "worst": np.asarray(self.inputs.worst, dtype=float),
            "prior": prior and {"weights": prior.weights, "errors": prior.errors, "shares": prior.shares},
            "costs": COSTS.dump_python(self.costs, mode="json"),
            "presets": {name: np.asarray(row, dtype=np.int64) for name, row in self.presets.items()},
            "counted": np.array(sorted(self.counted), dtype=np.uint64),
            "archive": self._plain_archive(),
        }

    def _plain_archive(self) -> dict[str, Any]:
        entries, genes, objectives = list(self.archive.values()), len(self.inputs.genes), self.inputs.objectives
        names = entries[0]["values"] if entries else {}
        return {
            "digests": list(self.archive),
            "x": np.array([e["x"] for e in entries], dtype=np.int64).reshape(len(entries), genes),
            "scores": np.array([e["scores"] for e in entries], dtype=float).reshape(len(entries), objectives),
            "generation": np.array([e["generation"] for e in entries], dtype=np.int64),
            "plain": np.array([e["plain"] for e in entries], dtype=bool),
            "values": {name: np.array([e["values"][name] for e in entries]) for name in names},
        }


def load_state(
    path: Path,
    space: Space,
    target: Target,
    objectives: Sequence[str],
    seed: int,
    make_engine: Callable[[EngineInputs], Engine],
    on_message: Callable[[str], None] = log.warning,
) -> SearchState:
    """The state that `SearchState.save` wrote.

    Args:
        path: The checkpoint.
        space: The space of the search, as its configuration says.
        target: The model that the space decides on.
        objectives: The names of the objectives that are searched.
        seed: What the random generator began with; it continues as it was saved.
        make_engine: Makes the engine of the configuration, which then takes over its state.
        on_message: Gets the reason where the newest checkpoint is not used.

    Raises:
        ValueError: No checkpoint in the folder is intact and fits the space and the objectives.
    """
    genes, count = space.genes(target), len(objectives)

    def parse(plain: Any) -> SearchState:
        saved = SavedSearch.read(plain, EngineInputs(genes, count, np.random.default_rng(seed)))
        if len(saved.worst) not in (0, count):
            raise ValueError(f"worst: has {len(saved.worst)} numbers; give {count}")
        prior, rng = _prior(saved.prior, space, target), np.random.default_rng(seed)
        inputs = EngineInputs(genes, count, rng, saved.seeds, saved.worst, prior=prior)
        engine = make_engine(inputs)
        engine.restore(saved.engine)
        rng.bit_generator.state = saved.random
        return SearchState(
            engine,
            inputs,
            saved.costs,
            saved.presets,
            **{name: getattr(saved, name) for name in SAME},
            counted=set(saved.counted.tolist()),
            archive=saved.archive.entries(objectives),
        )

    return checkpoint.load_checkpoint(path, parse, on_message)


def _prior(saved: SavedPrior | None, space: Space, target: Target) -> Prior | None:
    """The prior of these tables; ValueError where they are of another number of steps."""
    if saved is None:
        return None
    steps = target.reference
    check_array(saved.weights, np.float64, (steps,))
    for errors in saved.errors.values():
        check_array(errors, np.float64, (steps, steps))
    return Prior(space, target, saved.weights, saved.errors, saved.shares)
