"""AutoDiffusion's evolution: two stages, the limit on cost, and children that keep the number of steps."""

from functools import partial

import numpy as np
import pytest

from search.engines.autodiffusion import AutoDiffusionEngine
from search.engines.base import EngineInputs
from search.spaces.gene import Gene
from search.testing.engine_contract import EvolutionContract

STEPS, LAYERS = 8, 5
WIDTH = 2 + LAYERS
DROPPED = np.arange(STEPS) * WIDTH
MOVED = DROPPED + 1
SKIPPED = (DROPPED[:, None] + 2 + np.arange(LAYERS)).ravel()


def plan(seeds: object = (), worst: object = (1.0, 1.0), seed: int = 0) -> EngineInputs:
    """Eight steps that can be dropped and moved, of five layers each; the seeds drop every second step."""
    genes = []
    for t in range(STEPS):
        genes += [
            Gene(f"timesteps.dropped@{t}", 2, f"step {t}", ordered=False),
            Gene(f"timesteps.moved@{t}", 50, f"step {t}"),
            *(Gene(f"skip.skip b.{i}@{t}", 2, f"step {t}", ordered=False) for i in range(LAYERS)),
        ]
    half = np.zeros(len(genes), dtype=np.int64)
    half[DROPPED[::2]] = 1
    rows = np.array([half, *np.array(seeds, dtype=np.int64).reshape(-1, len(genes))])
    return EngineInputs(genes, 2, np.random.default_rng(seed), rows, np.array(worst))


def cost(x: np.ndarray) -> np.ndarray:
    """Share of all layers that run [N]."""
    kept = 1 - x[:, DROPPED]
    return (kept * (LAYERS - x[:, SKIPPED].reshape(len(x), STEPS, LAYERS).sum(axis=2))).sum(axis=1) / STEPS / LAYERS


def scores(x: np.ndarray) -> np.ndarray:
    """Quality: how far the moved steps are from 20, and a little for every skipped layer; and the cost."""
    kept = 1 - x[:, DROPPED]
    far = (np.abs(x[:, MOVED] - 20) * kept).sum(axis=1) / 50 + 8 * (1 - kept.mean(axis=1))
    return np.stack([far + 0.01 * x[:, SKIPPED].sum(axis=1), cost(x)], axis=1)


def epochs(engine: AutoDiffusionEngine, count: int, better: float = 0.0) -> list[np.ndarray]:
    """The rows of each epoch; every epoch's qualities are lower by `better`, so that the best row is a new one."""
    found = []
    for _ in range(count):
        found.append(engine.ask(engine.population + 100))
        engine.tell(found[-1], scores(found[-1]) - [better * engine.epoch, 0])
    return found


class TestAutoDiffusion(EvolutionContract):
    make = AutoDiffusionEngine


class TestWithNamedStages(EvolutionContract):
    """The contract's own genes are of the second stage, but for those named `g0` and `g0.x`."""

    make = partial(AutoDiffusionEngine, first="g0")

    def engine(self, *args: object, **kwargs: object) -> AutoDiffusionEngine:
        start = self.start(*args, **kwargs)  # type: ignore[arg-type]
        start.genes[0] = Gene("g0.x", start.genes[0].levels, start.genes[0].group)  # type: ignore[index]
        return AutoDiffusionEngine(start, first="g0")


def test_no_layer_is_left_out_in_stage_1_and_ever_more_in_stage_2() -> None:
    engine = AutoDiffusionEngine(plan(), epochs=3, prune=1.0)
    most, bounds = [], []
    for _ in range(10):
        (x,) = epochs(engine, 1, better=100)
        most.append(int(x[:, SKIPPED].reshape(-1, STEPS, LAYERS).sum(axis=2).max()))
        bounds.append(engine.bound)
    assert bounds == pytest.approx([0, 0, 0, 0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    assert most == [0, 0, 0, 0, 1, 2, 3, 4, 5, 5]


def test_stage_2_begins_when_the_best_row_stays_the_best() -> None:
    engine = AutoDiffusionEngine(plan(), epochs=100)
    for _ in range(3):
        x = engine.ask(500)
        engine.tell(x, np.column_stack([np.ones(len(x)), cost(x)]) - (engine.epoch == 0))
    assert (engine.epoch, engine.grown) == (2, 1)


@pytest.mark.parametrize("seed", range(3))
def test_children_of_stage_1_have_as_many_steps_as_their_parents(seed: int) -> None:
    engine = AutoDiffusionEngine(plan(seed=seed), epochs=3, limit=0.5)
    first, *rest = epochs(engine, 4, better=100)
    assert set(first[1:, DROPPED].sum(axis=1)) == {4}  # after the teacher, all are like the seed
    for x in rest:
        assert set(x[:, DROPPED].sum(axis=1)) == {4}
        assert not x[:, MOVED][x[:, DROPPED] == 1].any()


def test_layers_pay_for_steps_in_stage_2() -> None:
    engine = AutoDiffusionEngine(plan(), epochs=1, prune=0.6)
    found = np.concatenate(epochs(engine, 20))
    within = found[cost(found) <= 0.5]
    kept = STEPS - within[:, DROPPED].sum(axis=1)
    assert kept.max() > 4  # four whole steps are half of the cost


def test_rows_within_the_limit_are_parents_however_good_others_are() -> None:
    engine = AutoDiffusionEngine(plan(), limit=0.5)
    epochs(engine, 1)
    assert engine.best[0][0] == 0
    assert cost(np.array([row for over, _, row in engine.best if over == 0])).max() <= 0.5
    assert not engine.best[-1][2].any()  # the teacher is the best and the dearest
    assert engine.best[-1][0] == pytest.approx(1.0)  # beyond 0.5 by once the limit


def test_a_broken_row_is_the_last_even_where_its_cost_fits() -> None:
    engine = AutoDiffusionEngine(plan())
    x = engine.ask(60)
    y = scores(x)
    y[1] = [np.nan, 0.0]
    engine.tell(x, y)
    assert engine.best[-1][2].tolist() == x[1].tolist()


def test_it_finds_better_than_as_many_mutants_of_the_seed_and_random_rows() -> None:
    for seed in range(3):
        engine = AutoDiffusionEngine(plan(seed=seed), population=30)
        evolved = np.concatenate(epochs(engine, 10))
        drawn = AutoDiffusionEngine(plan(seed=seed), population=300).ask(300)
        best, before = (scores(x)[cost(x) <= 0.5, 0].min() for x in (evolved, drawn))
        assert len(evolved) <= len(drawn)
        assert best < before


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"population": 4}, "population 4 is too small; use engine.population=50, at least 5"),
        ({"epochs": -1}, "epochs -1 is too small; use engine.epochs=5, at least 0"),
        ({"limit": 0}, "limit 0 is not a valid share; use engine.limit=0.5, above 0 and at most 1"),
        ({"chance": 2}, "chance 2 is not a valid share"),
        ({"prune": 1.5}, "prune 1.5 is not a valid share"),
    ],
)
def test_what_cannot_be_is_told(options: dict[str, float], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        AutoDiffusionEngine(plan(), **options)  # type: ignore[arg-type]
