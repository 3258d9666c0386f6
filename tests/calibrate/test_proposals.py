"""Rows that calibration proposes: fronts of dynamic programming, minimax, tables of bits, and their combinations."""

from pathlib import Path

import numpy as np
import pytest
from diffusers import DDIMScheduler

from search.calibrate.propose.baselines import shorter_runs
from search.calibrate.propose.proposals import Proposals
from search.evaluate.evaluator import Evaluator
from search.evaluate.memo import Memo
from search.exact.segments import reuse_front
from search.models.base import to_schedule
from search.objectives.bops import Bops
from search.objectives.drift import Drift
from search.objectives.size import Size
from search.profile.count import count_costs
from search.schedule.model.nodes import ROOT
from search.spaces.bits import BitsSpace
from search.spaces.cache import CacheSpace
from search.spaces.joint import JointSpace
from search.spaces.solver import SolverSpace
from search.spaces.timesteps import TimestepsSpace
from search.testing.models import pixart, save_tiny, tiny_model

OBJECTIVES = [Drift(), Bops(), Size()]
BITS = BitsSpace(formats=("w8a8d", "w4a8d"))


@pytest.fixture(scope="module")
def probe(tmp_path_factory) -> Evaluator:
    model = tiny_model()
    costs = count_costs(model.denoiser, model.target.tree, model.target.steps, model.once)
    memo = Memo(Path(tmp_path_factory.mktemp("memo")) / "memo.sqlite")
    return Evaluator(model, ["red apple", "blue boat"], [0, 1], {"drift": Drift()}, costs, memo)


def proposals(space, probe) -> Proposals:
    return Proposals(space, probe.model.target, probe.model, probe, probe.costs, OBJECTIVES)


def test_dynamic_programming_on_a_cache_is_the_front_of_its_table(probe):
    space = CacheSpace("step", max_order=0)
    given = proposals(space, probe)
    found = {tuple(row) for row in given.methods()["dp"]().tolist()}
    for _, mask in reuse_front(given.tables.drifts.reuse([ROOT]), given.tables.weights):
        row = tuple(int(not computed) for computed in mask[1:])
        assert not any(row) or row in found


@pytest.mark.parametrize("aggregation", ["max", "lexicographic"])
def test_minimax_rows_have_the_least_worst_error(probe, aggregation):
    space = CacheSpace("step", max_order=0)
    given = proposals(space, probe)
    errors = given.tables.weights * given.tables.drifts.reuse([ROOT])

    def worst(row) -> float:
        computed, found = 0, 0.0
        for t, reused in enumerate([0, *row]):
            computed, found = (computed, max(found, errors[computed, t])) if reused else (t, found)
        return found

    every = [np.array(row) for row in np.ndindex(*[2] * 5)]
    for row in given.methods()[f"dp_{aggregation}"]():
        alike = [r for r in every if r.sum() == row.sum()]
        assert worst(row) == pytest.approx(min(map(worst, alike)))
    with pytest.raises(ValueError, match=f"engine.of=dp_{aggregation} places reused steps, and bits reuses none"):
        proposals(BITS, probe).methods()[f"dp_{aggregation}"]()


def test_the_table_of_bits_says_what_each_costs(probe):
    """Bit operations and bytes add up over groups, so what an integer program promises is what the schedule costs."""
    given = proposals(BITS, probe)
    table, target, rng = given.table(), probe.model.target, np.random.default_rng(0)
    genes = BITS.genes(target)
    assert [len(e) for e in table.errors] == [g.levels for g in genes]
    for _ in range(5):
        x = rng.integers(0, [g.levels for g in genes])
        schedule, bare = (to_schedule(probe.model, BITS.decode(row, target)) for row in (x, 0 * x))
        for objective, costs in zip(OBJECTIVES[1:], table.costs, strict=True):
            change = objective(schedule, probe.costs) - objective(bare, probe.costs)
            assert change == pytest.approx(sum(c[level] for c, level in zip(costs, x, strict=True)), abs=1e-9)


def test_errors_of_the_table_are_norms_of_its_vectors(probe):
    table = proposals(BITS, probe).table()
    for errors, vectors in zip(table.errors, table.vectors, strict=True):
        assert errors == pytest.approx(np.linalg.norm(vectors, axis=1))
        assert errors[0] == 0
    assert sum(e[2] > e[1] for e in table.errors if len(e) > 2) > len(table.errors) / 2


def test_a_joint_search_begins_with_all_of_its_spaces_at_once(probe):
    parts = [TimestepsSpace(), SolverSpace(), CacheSpace(axis="logsnr"), BITS]
    space, target = JointSpace(parts), probe.model.target
    given = proposals(space, probe)
    seeds = given.seeds()
    assert len({row.tobytes() for row in seeds}) == len(seeds)
    on = [[bool(part.any()) for part in space.split(row, target)] for row in seeds]
    assert all(sum(row) >= 3 for row in on[:20])
    assert any(row == [False, False, True, False] for row in on)
    assert all("sampler" in space.decode(row, target) for row in seeds[:20])
    names = given.presets()
    assert {"FORA N=3", "uniform, 3 steps", "W8A8"} <= set(names)


@pytest.mark.parametrize("granularity", ["interval", "component", "block", "step"])
def test_every_granularity_of_a_cache_has_seeds_or_none(probe, granularity):
    space = CacheSpace(granularity, max_order=1)
    seeds = proposals(space, probe).seeds()
    assert seeds.shape[1] == len(space.genes(probe.model.target))
    assert bool(len(seeds)) == (granularity != "block")


@pytest.mark.parametrize("space", [TimestepsSpace(), CacheSpace("step")], ids=lambda s: s.key)
def test_a_scheduler_without_sigmas_is_searched_all_the_same(space, tmp_path):
    model = pixart(path=save_tiny(tmp_path / "ddim", scheduler=DDIMScheduler()), steps=5, max_sequence_length=8)
    costs = count_costs(model.denoiser, model.target.tree, model.target.steps, model.once)
    probe = Evaluator(model, ["red apple"], [0], {"drift": Drift()}, costs, Memo(tmp_path / "memo.sqlite"))
    seeds = proposals(space, probe).seeds()
    assert len(seeds)
    for row in seeds:
        assert probe.values(to_schedule(model, space.decode(row, model.target)))["drift"][0] >= 0
    with pytest.raises(ValueError, match="DDIMScheduler has no sigmas to fit a solver on"):
        proposals(TimestepsSpace(), probe).methods()["olss"]()


def test_work_is_counted_and_messages_say_what_is_measured(probe):
    messages: list[str] = []
    before = probe.unshared
    given = Proposals(BITS, probe.model.target, probe.model, probe, probe.costs, OBJECTIVES, messages.append)
    given.seeds()
    assert probe.unshared > before
    assert messages[0].startswith("measuring the")


@pytest.mark.parametrize(("steps", "names"), [(8, ["6 steps"]), (4, ["3 steps", "2 steps", "1 step"]), (1, [])])
def test_a_model_of_few_steps_is_compared_with_every_smaller_number(steps, names):
    model = tiny_model(steps=steps)
    runs = shorter_runs(model.target, model.shorter, (10, 6))
    assert list(runs) == names and [str(run.steps) for run in runs.values()] == [name.split()[0] for name in names]
