"""The state of a search in its checkpoint: it comes back as it was, and what does not fit is refused with its entry."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from search.calibrate.propose.prior import Prior
from search.engines.base import EngineInputs
from search.engines.predictor import PredictorEngine
from search.loop import checkpoint
from search.loop.checkpoint import from_bytes, save_checkpoint, to_bytes
from search.loop.state import SearchState, load_state
from search.profile.costs import Costs
from search.schedule.model.nodes import ROOT
from search.spaces.cache import CacheSpace
from search.testing.models import tiny_model

SEED, OBJECTIVES = 5, ["drift", "memory"]
SPACE = CacheSpace(granularity="step")


@pytest.fixture(scope="module")
def target():
    return tiny_model(steps=4).target


@pytest.fixture
def state(target) -> SearchState:
    """A search after three generations of an engine that has learned."""
    steps, genes = target.reference, SPACE.genes(target)
    errors = np.linspace(0, 1, steps * steps).reshape(steps, steps)
    prior = Prior(SPACE, target, np.linspace(1, 2, steps), {ROOT: errors}, {ROOT: 1.0})
    inputs = EngineInputs(genes, 2, np.random.default_rng(SEED), worst=np.array([1.0, 2.0]), prior=prior)
    costs = Costs(
        4,
        {"a:attn": 3, "a": 1},
        2,
        {"a:attn": 8},
        {"run": 0.1 + 0.2},
        layer_shapes={"a.q": (4, 2)},
        others={"S": Costs(4, {"b": 1}, 1, {})},
    )
    engine = PredictorEngine(inputs, population=4, warmup=4)
    row = np.zeros(len(genes), dtype=np.int64)
    made = SearchState(engine, inputs, costs, {"rule": row}, 0.1 + 0.2, 1.0, counted={2**64 - 1, 3}, halved={"x": 2})
    for generation in range(3):
        x = engine.ask(4)
        y = np.stack([x.mean(axis=1), (x == 0).sum(axis=1)], axis=1)
        for row, scores in zip(x, y, strict=True):
            values = {"drift": [scores[0] / 3, 1 / 3], "memory": [int(scores[1])]}
            digest = f"sha256:{len(made.archive)}"
            made.archive[digest] = {"x": row.copy(), "values": values, "scores": scores.tolist()}
            made.archive[digest] |= {"generation": generation, "plain": generation == 1}
        engine.tell(x, y)
        made.history.append({"generation": generation, "hypervolume": 0.1 * generation})
        made.generation, made.asked = generation + 1, made.asked + len(x)
    return made


def load(path: Path, target, **arguments: Any) -> SearchState:
    given = {"objectives": OBJECTIVES, "space": SPACE} | arguments
    return load_state(
        path,
        given["space"],
        target,
        given["objectives"],
        SEED,
        lambda inputs: PredictorEngine(inputs, population=4, warmup=4),
        lambda text: None,
    )


def test_a_state_comes_back_as_it_was_and_continues_identically(state: SearchState, target, tmp_path: Path) -> None:
    state.save(tmp_path / checkpoint.NAME)
    twin = load(tmp_path / checkpoint.NAME, target)
    assert twin.costs == state.costs and asdict(twin.costs) == asdict(state.costs)
    assert list(twin.archive) == list(state.archive)
    for one, other in zip(twin.archive.values(), state.archive.values(), strict=True):
        assert (one.pop("x") == other.pop("x")).all()
        assert one == other and repr(one) == repr(other).replace("np.float64(", "").replace(")", "")
    for name in ("block_executions", "unshared", "generation", "asked", "counted", "halved", "history", "seconds"):
        assert getattr(twin, name) == getattr(state, name)
    assert (twin.presets["rule"] == state.presets["rule"]).all()
    assert (twin.inputs.prior(np.eye(3, dtype=int)) == state.inputs.prior(np.eye(3, dtype=int))).all()
    for _ in range(3):
        x, same = state.engine.ask(3), twin.engine.ask(3)
        assert len(x) and x.tolist() == same.tolist()
        for engine in (state.engine, twin.engine):
            engine.tell(x, np.stack([x.mean(axis=1), (x == 1).sum(axis=1)], axis=1))


def changed(plain: Any, place: tuple[str, ...], value: Any) -> Any:
    """The data with another value at a place."""
    if not place:
        return value
    assert isinstance(plain, Mapping)
    return {**plain, place[0]: changed(plain.get(place[0]), place[1:], value)}


ROW = np.zeros((1, 3), dtype=np.int64)


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        ("generation", -1, "generation: "),
        ("generation", 1.5, "generation: "),
        ("seconds", float("nan"), "seconds: "),
        ("asked", 2**70, "asked: "),
        ("counted", np.zeros((2, 2), dtype=np.uint64), r"counted: has shape \(2, 2\); give \[any\]"),
        ("history", [{"front": "many"}], "history.0.front"),
        ("presets.rule", np.full(3, 9), "presets.rule: row 0 has 9 at gene 0"),
        ("archive.x", ROW, "archive: digests, x, .* have the lengths"),
        ("archive.x", np.zeros((24, 3)), "archive.x: give an array of int64"),
        ("archive.values.drift", np.zeros((2, 2)), "archive.values.drift: has 2 rows; give"),
        ("archive.values.other", np.zeros((24, 2)), "archive.values: are of drift, memory, other; give drift, memory"),
        ("archive.digests", ["x" * 1000], "archive.digests.0"),
        ("costs.component_macs", {"a": "many"}, "costs.component_macs.a"),
        ("costs.others.S.steps", None, "costs.others.S.steps"),
        ("prior.weights", np.zeros(9), r"has shape \(9,\); give \[4\]"),
        ("prior.errors.denoiser", np.zeros((9, 4)), r"has shape \(9, 4\); give \[4, 4\]"),
        ("worst", np.zeros(3), "worst: has 3 numbers; give 2"),
        ("seeds", np.full((1, 3), -1), "seeds: row 0 has -1 at gene 0"),
        ("random", {"bit_generator": "os.system"}, "PCG64"),
        ("random.state.state", 2**200, "int too big|OverflowError"),
        ("engine.inner.queue.asked", "text", "queue.asked: give an array of int64"),
        ("engine.more", 1, "more: "),
        ("more", 1, "more: "),
    ],
)
def test_what_does_not_fit_is_refused_with_its_entry(
    state: SearchState, target, tmp_path: Path, place: str, value: Any, words: str
) -> None:
    """By a reader that would take the digest for right: a stranger can compute one."""
    plain = from_bytes(to_bytes(state.plain()))
    save_checkpoint(changed(plain, tuple(place.split(".")), value), tmp_path / checkpoint.NAME)
    with pytest.raises(ValueError, match=rf"no checkpoint in .* can be read \(.*{words}"):
        load(tmp_path / checkpoint.NAME, target)


def test_a_checkpoint_of_another_space_or_of_other_objectives_is_refused(state, target, tmp_path: Path) -> None:
    path = tmp_path / checkpoint.NAME
    state.save(path)
    with pytest.raises(ValueError, match=r"seeds: has shape \(0, 3\); give \[any, 27"):
        load(path, target, space=CacheSpace(granularity="component"))
    with pytest.raises(ValueError, match="archive.scores: has shape"):
        load(path, target, objectives=["drift"])
    with pytest.raises(ValueError, match="archive.values: are of drift, memory; give drift, size"):
        load(path, target, objectives=["drift", "size"])
    path.with_name("checkpoint.old.bin").unlink(missing_ok=True)
    path.unlink()
    save_checkpoint([1], path)
    with pytest.raises(ValueError, match="Input should be a valid dictionary"):
        load(path, target)


def test_a_prior_that_is_no_data_is_refused_when_it_is_saved(state: SearchState) -> None:
    object.__setattr__(state.inputs, "prior", lambda x: x)
    with pytest.raises(TypeError, match="a prior of type function cannot be saved; use Prior"):
        state.plain()
