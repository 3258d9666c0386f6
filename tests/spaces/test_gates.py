"""The gates space: thresholds and signals as genes, its rules, and gates beside other spaces."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from search import Schedule
from search.calibrate.propose.beam import beam_rows
from search.calibrate.propose.proposals import Proposals
from search.evaluate.evaluator import Evaluator
from search.evaluate.memo import Memo
from search.models.base import to_schedule
from search.objectives.drift import Drift
from search.objectives.macs import Macs
from search.profile.count import count_costs
from search.profile.target import Target
from search.schedule.model.contracts import Contract, Stack
from search.schedule.model.nodes import Tree
from search.spaces.cache import CacheSpace
from search.spaces.gates import FACTORS, GatesSpace
from search.spaces.guidance import GuidanceSpace
from search.spaces.joint import JointSpace
from search.spaces.skip import SkipSpace
from search.spaces.solver import SolverSpace
from search.spaces.timesteps import TimestepsSpace
from search.testing.models import tiny_family, tiny_model
from search.testing.space_contract import SpaceContract

TARGET = tiny_model().target  # 3 blocks of 3 components, 6 steps


class TestPhase(SpaceContract):
    @pytest.fixture
    def space(self):
        return GatesSpace(thresholds=[0.05, 0.3, 0.9])


class TestFlux(SpaceContract):
    @staticmethod
    def make_model():
        return tiny_family("flux")

    @pytest.fixture
    def space(self):
        return GatesSpace(thresholds=[0.05, 0.3, 0.9], granularity="constant")

    def test_the_group_spans_both_stacks(self, space, target):
        assert gate(space, target, threshold=1)["group"] == "single_transformer_blocks.*"
        whole = gate(space, target, threshold=1, signal=3, tail=1)
        assert whole["group"] == "transformer_blocks.*+single_transformer_blocks.0"


class TestJoint(SpaceContract):
    @pytest.fixture
    def space(self):
        parts = [GatesSpace(thresholds=[0.3, 0.9]), CacheSpace(), GuidanceSpace(), SkipSpace("component")]
        return JointSpace([*parts, TimestepsSpace(), SolverSpace(fit=False)])


def row(space: GatesSpace, target: Target, **levels: int) -> np.ndarray:
    names = [gene.name for gene in space.genes(target)]
    x = np.zeros(len(names), dtype=int)
    for name, level in levels.items():
        x[names.index(name.replace("_at_", "@").replace("scale_", "scale "))] = level
    return x


def gate(space: GatesSpace, target: Target, **levels: int):
    (found,) = space.decode(row(space, target, **levels), target)["gates"]
    return found


def test_genes_say_what_the_gate_does():
    space = GatesSpace()
    assert gate(space, TARGET, threshold=5) == {
        "group": "transformer_blocks.[1-2]",
        "actions": "C G*4 C",
        "value": "out",
        "then": "R",
        "signal": "first_block_forecast",
        "threshold": [0.08] * 6,
    }
    found = gate(space, TARGET, threshold=1, signal=2, order=2, value=1, tail=2, warmup=2, max_run=3, scale_1=4)
    assert found == {
        "group": "transformer_blocks.0",
        "actions": "CCCGGC",
        "value": "residual",
        "then": "F2",
        "signal": "modulated_input",
        "threshold": [0.008, 0.008, 0.016, 0.008, 0.008, 0.008],
        "accumulate": True,
        "max_run": 3,
    }
    with_poly = GatesSpace(poly=[2.0, 0.5])
    assert gate(with_poly, TARGET, threshold=1, signal=2)["poly"] == [2.0, 0.5]
    assert "poly" not in gate(with_poly, TARGET, threshold=1, signal=3)


def test_the_group_keeps_a_block_and_leaves_one_to_measure():
    space = GatesSpace()
    for head in range(3):
        for tail in range(3):
            whole = gate(space, TARGET, threshold=1, signal=3, head=head, tail=tail)["group"]
            behind = gate(space, TARGET, threshold=1, signal=1, head=head, tail=tail)["group"]
            assert whole.startswith(f"transformer_blocks.{'*' if head + tail == 0 else head if head == 2 else ''}")
            assert not behind.startswith(("transformer_blocks.*", "transformer_blocks.0", "transformer_blocks.[0"))


def test_every_step_may_have_its_own_threshold():
    space = GatesSpace(thresholds=[0.4], granularity="step")
    levels = {f"scale_at_{t}": t for t in range(6)}
    assert gate(space, TARGET, threshold=1, **levels)["threshold"] == [0.4 * f for f in FACTORS]
    genes = {gene.name: gene.group for gene in space.genes(TARGET)}
    assert genes["scale@3"] == "step 3" and genes["threshold"] == ""
    moved = TARGET.on(
        {
            "steps": 3,
            "sampler": {
                **TARGET.sampler,
                "timesteps": [TARGET.sampler["timesteps"][i] for i in (0, 3, 5)],
                "sigmas": [TARGET.sampler["sigmas"][i] for i in (0, 3, 5, 6)],
            },
        }
    )
    x = row(space, TARGET, threshold=1, **levels)
    (found,) = space.decode(x, moved)["gates"]
    assert found["threshold"] == [0.4 * FACTORS[t] for t in (0, 3, 5)] and found["actions"] == "CGC"


def test_no_threshold_is_off_whatever_else_is_set():
    space = GatesSpace()
    x = np.array([gene.levels - 1 for gene in space.genes(TARGET)])
    assert space.decode(x, TARGET)
    x[0] = 0
    assert space.decode(x, TARGET) == {}
    computes = {f"scale_{p}": 1 for p in range(4)}
    assert space.decode(row(space, TARGET, threshold=3, **computes), TARGET) == {}


def test_presets_are_what_was_published():
    target = tiny_model(steps=20).target
    space = GatesSpace(granularity="constant")
    presets = space.presets(target)
    assert {"CG-Taylor δ=0.008 O=1", "FBCache 0.08", "FBCache 0.12", "TeaCache 0.25", "DBCache F1B0 W4MC3 0.12"} < set(
        presets
    )

    def part(name: str):
        (found,) = Schedule.from_dict(target.schedule(space.decode(presets[name], target))).to_dict()["gates"]
        return found

    assert part("CG-Taylor δ=0.03 O=2") == {
        "group": "transformer_blocks.[1-2]",
        "actions": "C*4 G*15 C",
        "then": "F2",
        "signal": "first_block_forecast",
        "threshold": 0.03,
    }
    assert part("FBCache 0.12") == {
        "group": "transformer_blocks.[1-2]",
        "actions": "C G*18 C",
        "value": "residual",
        "then": "R",
        "signal": "first_block_residual",
        "threshold": 0.12,
    }
    assert part("TeaCache 0.25") == {
        "group": "transformer_blocks.*",
        "actions": "C G*18 C",
        "value": "residual",
        "then": "R",
        "signal": "modulated_input",
        "threshold": 0.25,
        "accumulate": True,
    }
    assert part("DBCache F1B0 W4MC3 0.08") == part("FBCache 0.08") | {"actions": "C*4 G*15 C", "max_run": 3}
    alone = GatesSpace(signals=["first_block_residual"]).presets(target)
    assert alone and all(name.startswith(("FBCache", "DBCache")) for name in alone)


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32 - 1))
def test_gates_win_over_what_other_spaces_plan(seed):
    draw = np.random.default_rng(seed)
    space = JointSpace([GatesSpace(thresholds=[0.3]), CacheSpace(granularity="component"), SkipSpace()])
    x = draw.integers(0, [gene.levels for gene in space.genes(TARGET)])
    parts = space.split(x, TARGET)
    parts[0][0] = 1
    joined = space.join(dict(zip(("gates", "cache", "skip"), parts, strict=True)), TARGET)
    schedule = Schedule.from_dict(TARGET.schedule(space.decode(joined, TARGET)))
    alone = Schedule.from_dict(TARGET.schedule(GatesSpace(thresholds=[0.3]).decode(parts[0], TARGET)))
    assert schedule.gates == alone.gates
    for one in schedule.gates:
        assert not any(name.partition(":")[0] in one.blocks for name in schedule.plan.planned())


def test_a_gate_keeps_the_steps_that_a_solver_table_would_fold():
    space = JointSpace([GatesSpace(thresholds=[0.3]), CacheSpace(granularity="step"), SolverSpace(fit=False)])
    genes = space.genes(TARGET)
    names = [gene.name for gene in genes]
    x = np.array([gene.levels - 1 if gene.name.startswith("solver.") else 0 for gene in genes])
    x[names.index("cache.denoiser@3")] = 1
    assert space.decode(x, TARGET)["steps"] == 5
    x[names.index("gates.threshold")] = 1
    schedule = Schedule.from_dict(TARGET.schedule(space.decode(x, TARGET)))
    assert schedule.steps == 6 and "".join(schedule.gates[0].tokens) == "CGG-GC"


def test_every_preset_runs_on_a_dit():
    model = tiny_family("dit", steps=8)
    prompts, seeds = ["apple", "cat face"], [0, 1]
    bare, passed = model.sample(prompts, seeds), 0
    presets = GatesSpace(thresholds=[0.008, 0.12, 0.6]).presets(model.target)
    for name, x in presets.items():
        with to_schedule(model, GatesSpace(thresholds=[0.008, 0.12, 0.6]).decode(x, model.target)).apply(
            model.pipe
        ) as h:
            found = model.sample(prompts, seeds)
            (decided,) = h.stats()["gates"]
        assert torch.isfinite(found).all(), name
        assert torch.equal(found, bare) == (decided["passed"] == 0), name
        passed += decided["passed"]
    assert passed and len(presets) > 4


def evaluator(model, folder) -> Evaluator:
    costs = count_costs(model.denoiser, model.target.tree, model.target.steps, model.once)
    memo = Memo(folder / "memo.sqlite")
    return Evaluator(model, ["red apple", "blue boat"], [0, 1], {"drift": Drift(), "macs": Macs()}, costs, memo)


def test_presets_seed_a_search_and_the_beam_is_refused(tmp_path):
    model = tiny_model()
    probe, space = evaluator(model, tmp_path), GatesSpace(thresholds=[0.12, 0.5])
    given = Proposals(space, model.target, model, probe, probe.costs, [Drift(), Macs()])
    assert {row.tobytes() for row in given.seeds()} == {row.tobytes() for row in given.presets().values()}
    with pytest.raises(ValueError, match="space gates has gates, which depend on the prompts; use engine=nsga2"):
        beam_rows(space, model.target, probe, given.seeds(), probe.costs)
    with pytest.raises(ValueError, match="the gates space has no table"):
        given.methods()["dp"]()


def test_a_joint_space_is_combined_by_what_it_measures(tmp_path):
    model = tiny_model(steps=4)
    probe, space = evaluator(model, tmp_path), JointSpace([GatesSpace(thresholds=[0.12]), CacheSpace("step")])
    given = Proposals(space, model.target, model, probe, probe.costs, [Drift(), Macs()])
    seeds = given.seeds()
    known = {row.tobytes() for row in seeds}
    assert given.combined() and all(row.tobytes() in known for row in given.combined())
    values = [probe.values(to_schedule(model, space.decode(row, model.target))) for row in seeds[:6]]
    assert all(0 < value["macs"][0] <= 1 for value in values)


def test_thresholds_per_phase_reach_more_than_one_for_all(tmp_path):
    """Every level of a constant threshold is also a row of phases, so the front of the latter is never behind."""
    model = tiny_model(steps=8)
    probe = evaluator(model, tmp_path)
    constant, phase = (GatesSpace(thresholds=[0.2, 0.4], granularity=g, phases=2) for g in ("constant", "phase"))
    for threshold in (1, 2):
        a = to_schedule(model, constant.decode(row(constant, model.target, threshold=threshold), model.target))
        b = to_schedule(model, phase.decode(row(phase, model.target, threshold=threshold), model.target))
        assert a == b
    split = to_schedule(model, phase.decode(row(phase, model.target, threshold=2, scale_0=1), model.target))
    late = probe.costs_of(split).gates["transformer_blocks.[1-2]"]
    assert late[:4] == [1.0] * 4
    assert torch.isfinite(torch.tensor(probe.values(split)["drift"])).all()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"granularity": "block"}, "granularity 'block' is unknown; choose from constant, phase, step"),
        ({"signals": ["magic"]}, r"signals=\['magic'\]: choose from first_block_forecast"),
        ({"signals": []}, r"signals=\[\]: choose from"),
        ({"thresholds": [0.2, 0.1]}, r"thresholds=\[0.2, 0.1\] must rise from above 0"),
        ({"thresholds": [0.0, 0.1]}, "must rise from above 0"),
        ({"max_order": 4}, "max_order 4 is out of range"),
        ({"phases": 0}, "phases 0 is out of range"),
    ],
)
def test_mistakes_are_named(arguments, told):
    with pytest.raises(ValueError, match=told):
        GatesSpace(**arguments)


def test_what_has_no_blocks_to_gate_is_told():
    own = Contract((Stack("layers", ("ff",), outputs=()),))
    target = Target("own", Tree("Own", {"layers": 2}, own), 6)
    with pytest.raises(ValueError, match="gates need 3 steps and blocks .* Own has 0 such blocks"):
        GatesSpace().genes(target)
    with pytest.raises(ValueError, match=r"gates need 3 steps .* model.steps is 2; search space=bits"):
        GatesSpace().genes(tiny_model(steps=2).target)
