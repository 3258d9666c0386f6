"""A space that somebody adds takes part in calibration by what it states itself, whatever its key and class are."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from search.calibrate.propose.proposals import Proposals
from search.evaluate.evaluator import Evaluator
from search.evaluate.memo import Memo
from search.objectives.drift import Drift
from search.objectives.macs import Macs
from search.profile.count import count_costs
from search.profile.tables import Tables
from search.profile.target import Target
from search.spaces.base import Space
from search.spaces.cache import CacheSpace
from search.spaces.gene import Gene
from search.spaces.joint import JointSpace
from search.spaces.skip import SkipSpace
from search.spaces.solver import SolverSpace
from search.spaces.timesteps import TimestepsSpace
from search.testing.models import tiny_model


class PeriodSpace(Space):
    """One gene: the whole denoiser computes at every (x + 1)-th step and is reused in between."""

    key = "period"

    def genes(self, target: Target) -> list[Gene]:
        return [Gene("period", target.reference)]

    def decode(self, x: Sequence[int] | np.ndarray, target: Target) -> Mapping[str, Any]:
        tokens = ["C" if t % (int(x[0]) + 1) == 0 else "R" for t in range(target.steps)]
        return {"plan": {"rules": [["denoiser", "".join(tokens)]]}} if x[0] else {}

    def presets(self, target: Target) -> dict[str, np.ndarray]:
        return {"every 4th step": np.array([3])}


class MeasuredPeriodSpace(PeriodSpace):
    """Proposes the period by the error of reuse at the second step, on an axis of its own."""

    forecast_axis = "timestep"

    def encode(self, tokens: Mapping[str, Sequence[str]], target: Target) -> np.ndarray | None:
        rows = [np.array([period]) for period in range(target.reference)]
        whole = list(tokens.get("denoiser", "C" * target.reference))
        alike = [x for x in rows if whole == ["C" if t % (x[0] + 1) == 0 else "R" for t in range(target.reference)]]
        return alike[0] if alike and not set(tokens) - {"denoiser"} else None

    def propose(self, tables: Tables) -> list[np.ndarray]:
        assert tables.reuse_errors(["denoiser"])[0, 1] > 0 and tables.weights[1] > 0
        return [np.array([2]), np.array([1])]


class GridSpace(TimestepsSpace):
    key = "grid"


class OdeSpace(SolverSpace):
    key = "ode"


@pytest.fixture(scope="module")
def probe(tmp_path_factory) -> Evaluator:
    model = tiny_model()
    costs = count_costs(model.denoiser, model.target.tree, model.target.steps, model.once)
    memo = Memo(Path(tmp_path_factory.mktemp("memo")) / "memo.sqlite")
    return Evaluator(model, ["red apple"], [0], {"drift": Drift()}, costs, memo)


def proposals(space: Space, probe: Evaluator) -> Proposals:
    return Proposals(space, probe.model.target, probe.model, probe, probe.costs, [Drift(), Macs()])


def test_rows_that_a_space_proposes_are_the_first_seeds(probe):
    given = proposals(MeasuredPeriodSpace(), probe)
    assert given.seeds()[:3].tolist() == [[2], [1], [3]]
    assert list(given.tables.drifts.places) == pytest.approx(probe.model.target.sampler["timesteps"])


def test_rows_that_a_space_proposes_are_combined_with_those_of_others(probe):
    space = JointSpace([SkipSpace(), MeasuredPeriodSpace()])
    both = [row for row in proposals(space, probe).combined() if row[:-1].any() and row[-1]]
    assert {int(row[-1]) for row in both} == {1, 2}


def test_a_space_that_encodes_reuse_has_a_prior(probe):
    prior = proposals(MeasuredPeriodSpace(), probe).prior()
    assert prior is not None
    drift, work = prior(np.array([[0], [1], [5]])).T
    assert drift[0] == 0 < drift[1] and work.tolist() == pytest.approx([1, 1 / 2, 1 / 6])


def test_the_log_says_which_space_has_no_rows_and_no_prior(probe, caplog):
    given = proposals(PeriodSpace(), probe)
    with caplog.at_level(logging.INFO, logger="search"):
        assert given.seeds().tolist() == [[3]]
        assert given.prior() is None
    assert "space period proposes no rows from measured tables: the period space has no table" in caplog.text
    assert "no prior: no row of space period reuses a value" in caplog.text


@pytest.mark.parametrize(
    ("spaces", "others"),
    [([TimestepsSpace(), SolverSpace()], [GridSpace(), OdeSpace()]), ([SolverSpace()], [OdeSpace()])],
    ids=["timesteps and solver", "solver"],
)
def test_olss_goes_by_what_spaces_can_encode_and_not_by_their_keys(probe, spaces, others):
    rows, renamed = (proposals(JointSpace(parts), probe) for parts in (spaces, others))
    assert len(rows.methods()["olss"]())
    assert np.array_equal(rows.methods()["olss"](), renamed.methods()["olss"]())
    assert np.array_equal(rows.seeds(), renamed.seeds())


def test_dynamic_programming_without_a_row_says_so(probe):
    with pytest.raises(ValueError, match="no row of cache is on an exact front; use engine=nsga2"):
        proposals(CacheSpace("block"), probe).methods()["dp"]()
