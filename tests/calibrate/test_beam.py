"""The beam: the true front where it is wide enough, more than random rows for the same steps where it is not."""

from functools import cache

import numpy as np
import pytest

from search.calibrate.propose.beam import beam_rows, beam_survivors
from search.engines.base import EngineInputs
from search.engines.random import RandomEngine
from search.evaluate.evaluator import Evaluator
from search.evaluate.memo import Memo
from search.models.base import to_schedule
from search.objectives.drift import Drift
from search.pareto.domination import hypervolume, non_dominated
from search.profile.count import count_costs
from search.spaces.base import Space
from search.spaces.cache import CacheSpace
from search.spaces.gene import Gene
from search.spaces.guidance import GuidanceSpace
from search.spaces.joint import JointSpace
from search.spaces.skip import SkipSpace
from search.spaces.timesteps import TimestepsSpace
from search.testing.models import lively, tiny_model

STEPS = 6
SPACE = CacheSpace("step", max_order=0)


@cache
def parts() -> tuple:
    model = lively(tiny_model(STEPS))
    return model, count_costs(model.denoiser, model.target.tree, STEPS, model.once)


@pytest.fixture
def probe(tmp_path) -> Evaluator:
    model, costs = parts()
    prompts = ["red apple", "blue boat, flat style"]
    return Evaluator(model, prompts, [0, 1], {"drift": Drift()}, costs, Memo(tmp_path / "memo.sqlite"))


def beam(space: Space, probe: Evaluator, seeds: np.ndarray, **more) -> np.ndarray:
    return beam_rows(space, probe.model.target, probe, seeds, probe.costs, **more)


def scores(space: Space, probe: Evaluator, rows: np.ndarray) -> np.ndarray:
    """MACs as a share, drift in the space's own scale: [N, 2]."""
    found = []
    for row in rows:
        schedule = to_schedule(probe.model, space.decode(row, probe.model.target))
        drift = float(np.mean(probe.values(schedule)["drift"]))
        found.append([probe.costs.macs(schedule) / probe.costs.teacher_macs, drift])
    return np.array(found)


def every_plan() -> np.ndarray:
    return np.arange(2 ** (STEPS - 1))[:, None] >> np.arange(STEPS - 1)[::-1] & 1


def test_a_wide_beam_finds_the_true_front(probe):
    rows = beam(SPACE, probe, np.ones((1, STEPS - 1), dtype=np.int64), width=32)
    truth = scores(SPACE, probe, every_plan())
    found = scores(SPACE, probe, rows)
    expected = truth[non_dominated(truth)]
    front = found[non_dominated(found)]
    assert sorted(map(tuple, front)) == sorted(map(tuple, expected))
    assert len(np.unique(rows, axis=0)) == len(rows) == 32


def test_a_narrow_beam_beats_random_rows_of_as_many_steps(probe):
    before, steps = probe.block_executions, []
    rows = beam(SPACE, probe, np.ones((1, STEPS - 1), dtype=np.int64), width=4, on_step=lambda _, n: steps.append(n))
    assert len(rows) == 4 and len(steps) == STEPS
    assert steps[-1] == STEPS + 1 + 2 + 4 + 3 * 2 * 4  # the teacher, then every option of every survivor
    assert 0 < probe.block_executions - before <= steps[-1] * 3 * 2  # blocks, prompts
    truth = scores(SPACE, probe, every_plan())
    worst = truth.max(axis=0) * 1.01
    found = hypervolume(scores(SPACE, probe, rows), worst)
    genes, count = SPACE.genes(probe.model.target), round(steps[-1] / STEPS)
    drawn = [RandomEngine(EngineInputs(genes, 2, np.random.default_rng(seed))).ask(count) for seed in range(20)]
    random = [hypervolume(scores(SPACE, probe, rows), worst) for rows in drawn]
    assert found >= np.median(random)


@pytest.mark.parametrize(
    "space",
    [
        CacheSpace("interval"),
        CacheSpace("component", max_order=2),
        SkipSpace(),
        JointSpace([CacheSpace("interval"), GuidanceSpace()]),
    ],
)
def test_other_spaces_of_steps(probe, space):
    target = probe.model.target
    levels = np.array([gene.levels for gene in space.genes(target)])
    seeds = np.random.default_rng(0).integers(0, levels, size=(5, len(levels)))
    rows = beam(space, probe, seeds, width=3, options=3)
    assert 1 <= len(rows) <= 3 and (rows >= 0).all() and (rows < levels).all()
    assert len(scores(space, probe, rows)) == len(rows)
    for index, gene in enumerate(space.genes(target)):
        group = [i for i, g in enumerate(space.genes(target)) if g.group == gene.group]
        options = {tuple(seed[group]) for seed in seeds} | {(0,) * len(group)}
        assert {tuple(row[group]) for row in rows} <= options, index


def test_without_seeds_there_is_the_teacher(probe):
    assert beam(SPACE, probe, np.zeros((0, STEPS - 1), dtype=np.int64)).tolist() == [[0] * (STEPS - 1)]


class Groupless(CacheSpace):
    key = "groupless"

    def genes(self, target):
        return [Gene(gene.name, gene.levels) for gene in super().genes(target)]


def test_spaces_without_genes_of_steps_are_refused(probe):
    with pytest.raises(ValueError, match="space groupless has no genes of steps; use engine=milp"):
        beam(Groupless("step"), probe, np.zeros((0, STEPS - 1), dtype=np.int64))
    with pytest.raises(ValueError, match="width 1 is too narrow for a front; use at least 2"):
        beam(SPACE, probe, np.zeros((0, STEPS - 1), dtype=np.int64), width=1)
    space = TimestepsSpace()
    with pytest.raises(ValueError, match="and space timesteps moves the steps or changes the solver; use engine=olss"):
        beam(space, probe, np.zeros((0, len(space.genes(probe.model.target))), dtype=np.int64))


def test_survivors_are_whole_fronts_and_then_what_lies_apart():
    points = np.array([[1, 5], [2, 4], [2.1, 3.9], [5, 1], [3, 4.5], [6, 6]])
    assert beam_survivors(points, 3) == [0, 1, 3] or beam_survivors(points, 3) == [0, 2, 3]
    assert beam_survivors(points, 5) == [0, 1, 2, 3, 4]
    assert beam_survivors(points, 9) == [0, 1, 2, 3, 4, 5]
    assert beam_survivors(np.array([[1, np.nan], [2, 1], [0, np.inf]]), 3) == [2, 1]
    assert beam_survivors(np.array([[1.0, 1.0], [1.0, 1.0]]), 2) == [0, 1]
