"""The solver space: order, stencil and corrector of each step, and the fitted table."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from search import Schedule
from search.profile.target import Target
from search.schedule.schedulers import public_config, scheduler_grid
from search.solvers.trace import trace_scheduler
from search.spaces.cache import CacheSpace
from search.spaces.joint import JointSpace
from search.spaces.solver import LARGEST, SolverSpace
from search.testing.models import tiny_model
from search.testing.space_contract import PROMPTS, SpaceContract

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # diffusers' DEIS

FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 2.0}


class SolverContract(SpaceContract):
    def schedule(self, space, target, x):
        return Schedule.from_dict(target.schedule(space.decode(x, target)))


class TestDefault(SolverContract):
    @pytest.fixture
    def space(self):
        return SolverSpace()


class TestOrderOnly(SolverContract):
    @pytest.fixture
    def space(self):
        return SolverSpace(max_order=4, stencils=("even",), correctors=False, fit=False)


TARGET = tiny_model().target  # 6 steps of DPM-Solver++ 2M, flow


def target(scheduler, steps: int = 6) -> Target:
    timesteps, sigmas = scheduler_grid(scheduler, steps)
    part = {"class": type(scheduler).__name__, "config": public_config(scheduler), "timesteps": timesteps}
    return replace(TARGET, steps=steps, sampler=part | ({"sigmas": sigmas} if sigmas else {}))


def row(space: SolverSpace, given: Target, **genes: int) -> np.ndarray:
    return np.array([genes.get(g.name.replace("@", "_"), 0) for g in space.genes(given)])


def coefficients(space: SolverSpace, x: np.ndarray, given: Target) -> np.ndarray:
    table = space.decode(x, given)["sampler"]["coefficients"]
    size = len(table["state"])
    return np.array(
        [[s, *row, *[0] * (size - len(row))] for s, row in zip(table["state"], table["outputs"], strict=True)]
    )


# Against diffusers

OWN = [
    ("DDIM", DPMSolverMultistepScheduler(**FLOW), {"solver_order": 1}),
    ("DPM-Solver++ 2M", DPMSolverMultistepScheduler(solver_order=1, **FLOW), {"solver_order": 2}),
    ("DPM-Solver++ 3M", DPMSolverMultistepScheduler(**FLOW), {"solver_order": 3}),
    ("DPM-Solver++ 3M", DPMSolverMultistepScheduler(), {"solver_order": 3}),
    ("DEIS 3", DEISMultistepScheduler(**FLOW), {"solver_order": 3}),
    ("UniPC 2", UniPCMultistepScheduler(solver_order=1, **FLOW), {"solver_order": 2}),
    ("UniPC 3", UniPCMultistepScheduler(**FLOW), {"solver_order": 3}),
    ("UniPC 3", UniPCMultistepScheduler(), {"solver_order": 3}),
]


@pytest.mark.parametrize(("name", "base", "change"), OWN, ids=lambda v: v if isinstance(v, str) else "")
def test_a_preset_is_the_stock_pipeline_with_that_scheduler(name, base, change):
    model, given = tiny_model(), target(base)
    model.pipe.scheduler = type(base).from_config(base.config, **change)
    stock = model.sample(PROMPTS, [0, 1])
    model.pipe.scheduler = base
    space = SolverSpace()
    with Schedule.from_dict(given.schedule(space.decode(space.presets(given)[name], given))).apply(model.pipe):
        found = model.sample(PROMPTS, [0, 1])
    near = 1e-4 if name == "DEIS 3" else 1e-5  # diffusers' DEIS cancels digits in float32; 1e-10 in float64
    assert (found - stock).abs().max() <= near * stock.abs().max()


def test_the_pipelines_own_solver_is_no_preset():
    assert set(SolverSpace().presets(TARGET)) == {
        "DDIM", "DPM-Solver++ 3M", "DEIS 3", "UniPC 2", "UniPC 3", "PNDM 4",
    }  # fmt: skip
    assert set(SolverSpace(max_order=2).presets(target(UniPCMultistepScheduler(**FLOW)))) == {"DDIM", "DPM-Solver++ 2M"}
    assert "DDIM" not in SolverSpace().presets(target(DDIMScheduler(clip_sample=False)))


def test_presets_need_their_genes():
    assert set(SolverSpace(stencils=("even",), max_order=4).presets(TARGET)) == {"PNDM 4"}
    assert set(SolverSpace(correctors=False, max_order=3).presets(TARGET)) == {"DDIM", "DPM-Solver++ 3M", "DEIS 3"}


# Genes


def test_genes_of_a_step():
    genes = SolverSpace().genes(TARGET)
    assert [(g.name, g.levels, g.group, g.ordered) for g in genes[:4]] == [
        ("order@0", 5, "step 0", True),
        ("form@0", 3, "step 0", False),
        ("stencil@0", 5, "step 0", False),
        ("corrector@0", 3, "step 0", False),
    ]
    assert (genes[-1].name, genes[-1].levels, genes[-1].group) == ("fit", 2, "fit")
    assert len(genes) == 6 * 4 + 1
    assert len(SolverSpace(correctors=False, fit=False).genes(TARGET)) == 6 * 3


def test_a_gene_changes_its_step_and_those_after_it():
    space = SolverSpace()
    own = coefficients(space, row(space, TARGET, fit=1), TARGET)
    found = coefficients(space, row(space, TARGET, order_3=1), TARGET)
    assert np.array_equal(found[:3], own[:3]) and not np.allclose(found[3:], own[3:])


def test_relaxations_and_early_weights_are_genes_where_they_are_named():
    space, plain = SolverSpace(relaxations=[-0.1, 0.1], early=[0.2]), SolverSpace()
    assert [(g.name, g.levels) for g in space.genes(TARGET)[4:6]] == [("relaxation@0", 3), ("early@0", 2)]
    assert set(space.presets(TARGET)) == set(plain.presets(TARGET))
    for name, x in space.presets(TARGET).items():  # exact where both are off
        assert np.array_equal(coefficients(space, x, TARGET), coefficients(plain, plain.presets(TARGET)[name], TARGET))
    own = coefficients(space, row(space, TARGET, fit=1), TARGET)
    for genes in ({"relaxation_2": 1}, {"relaxation_2": 2}, {"early_2": 1}):
        found = coefficients(space, row(space, TARGET, **genes), TARGET)
        assert np.array_equal(found[:2], own[:2]) and not np.allclose(found[2:], own[2:])
    assert space.decode(row(space, TARGET, relaxation_0=1, early_0=1), TARGET) == {}  # the first step has no slope


@pytest.mark.parametrize("order", [2, 3])
def test_single_step_presets_are_diffusers_scheduler(order):
    config = {"solver_order": order, "solver_type": "heun", **FLOW}
    given, steps = target(DPMSolverMultistepScheduler(**FLOW), 2 * order + 1), 2 * order + 1
    space = SolverSpace(single_step=True)
    traced = trace_scheduler(
        DPMSolverSinglestepScheduler(**config), timesteps=given.sampler["timesteps"], sigmas=given.sampler["sigmas"]
    )
    found = coefficients(space, space.presets(given)[f"DPM-Solver++ {order}S"], given)
    assert len(found) == steps and np.allclose(found, np.column_stack([traced.state, traced.outputs]), atol=1e-5)


def test_genes_that_say_what_the_pipeline_does_are_off():
    space = SolverSpace()
    assert space.decode(row(space, TARGET, order_2=2, form_2=1, stencil_2=2, corrector_2=2), TARGET) == {}


def test_a_row_says_whether_its_table_is_to_be_fitted():
    space = SolverSpace()
    x = row(space, TARGET, fit=1)
    parts = space.decode(x, TARGET)
    assert space.wants_solver_fit(x, TARGET) is True and set(parts) == {"sampler"}
    assert set(parts["sampler"]) == {*TARGET.sampler, "coefficients"}
    assert space.wants_solver_fit(row(space, TARGET, order_3=1), TARGET) is False
    assert (
        np.array_equal(space.encode_solver_fit(TARGET), x)
        and not SolverSpace(fit=False).encode_solver_fit(TARGET).any()
    )
    joint = JointSpace([CacheSpace(), space])
    assert joint.wants_solver_fit(joint.join({"solver": x}, TARGET), TARGET) is True
    assert joint.wants_solver_fit(joint.join({}, TARGET), TARGET) is False
    assert space.encode({"denoiser": list("CCCCCC")}, TARGET) is None


def test_the_table_of_the_own_solver_is_the_own_solver():
    space, model = SolverSpace(), tiny_model()
    bare = model.sample(PROMPTS, [0, 1])
    parts = dict(space.decode(row(space, TARGET, fit=1), TARGET))
    with Schedule.from_dict(TARGET.schedule(parts)).apply(model.pipe):
        torch.testing.assert_close(model.sample(PROMPTS, [0, 1]), bare, rtol=1e-5, atol=1e-5)


def test_a_moved_grid_takes_the_genes_of_the_nearest_steps():
    space = SolverSpace()
    parts = {"steps": 3, "sampler": {**TARGET.sampler, "timesteps": TARGET.sampler["timesteps"][::2]}}
    parts["sampler"]["sigmas"] = [*TARGET.sampler["sigmas"][:-1:2], 0.0]
    moved = TARGET.on(parts)
    assert moved.at == (0, 2, 4)
    assert space.decode(row(space, TARGET, order_3=1, form_5=2), moved) == {}  # steps that the grid does not have
    found = space.decode(row(space, TARGET, order_2=1), moved)["sampler"]
    assert found["timesteps"] == parts["sampler"]["timesteps"] and len(found["coefficients"]["state"]) == 3
    short = space.decode(row(space, moved, order_2=1), replace(moved, teacher=None, steps=3))
    assert short == {}  # its own step 2 is the last, of order 1 in any case


SCHEDULERS = [
    DPMSolverMultistepScheduler(**FLOW),
    DPMSolverMultistepScheduler(solver_order=3, use_karras_sigmas=True),
    DPMSolverSinglestepScheduler(),
    DEISMultistepScheduler(**FLOW),
    DDIMScheduler(clip_sample=False, timestep_spacing="trailing", prediction_type="v_prediction"),
    DDIMScheduler(
        clip_sample=False, timestep_spacing="trailing", prediction_type="v_prediction", rescale_betas_zero_snr=True
    ),
    UniPCMultistepScheduler(**FLOW),
    UniPCMultistepScheduler(rescale_betas_zero_snr=True),
    EulerDiscreteScheduler(),
    FlowMatchEulerDiscreteScheduler(shift=3.0),
]
TARGETS = [target(s, steps) for s in SCHEDULERS for steps in (2, 4, 20)]


def moved(given: Target, draw: np.random.Generator) -> Target:
    """The same target on a part of its grid, as another space would leave it."""
    keep = [t for t in range(given.steps) if t == 0 or draw.random() < 0.6]
    sampler = {**given.sampler, "timesteps": [given.sampler["timesteps"][t] for t in keep]}
    if "sigmas" in sampler:
        sampler["sigmas"] = [*(given.sampler["sigmas"][t] for t in keep), given.sampler["sigmas"][-1]]
    return given.on({"steps": len(keep), "sampler": sampler})


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), which=st.sampled_from(range(len(TARGETS))), highest=st.integers(1, 4))
def test_every_genome_gives_bounded_numbers_and_a_file(seed, which, highest):
    options = {"relaxations": [-0.1, 0.1], "early": [0.2], "single_step": True} if seed % 2 else {}
    space, given = SolverSpace(max_order=highest, **options), TARGETS[which]
    draw = np.random.default_rng(seed)
    levels = np.array([g.levels for g in space.genes(given)])
    x = draw.integers(0, levels) * (draw.random(len(levels)) < draw.random())
    x[-1] = 0
    for place in (given, moved(given, draw)):
        parts = space.decode(x, place)
        Schedule.from_dict(place.schedule({"steps": place.steps} | parts))
        if parts:
            assert np.abs(coefficients(space, x, place)).max() <= LARGEST


def test_where_rules_cannot_say_the_own_solver_it_is_traced():
    space, given = SolverSpace(), target(DPMSolverSinglestepScheduler(), 5)
    assert space.decode(row(space, given), given) == {}
    own = coefficients(space, row(space, given, fit=1), given)
    other = coefficients(space, row(space, given, order_0=1), given)
    assert "DDIM" in space.presets(given)
    assert np.array_equal(other, coefficients(space, space.presets(given)["DDIM"], given))
    assert not np.allclose(own, other)


# Refusals


def test_wrong_arguments_say_what_to_type():
    with pytest.raises(ValueError, match="max_order 5 is out of range; use 1 to 4"):
        SolverSpace(max_order=5)
    with pytest.raises(ValueError, match=r"stencils \['evn'\] are unknown; choose from exact, midpoint, bh2, even"):
        SolverSpace(stencils=["exact", "evn"])
    with pytest.raises(ValueError, match=r"early \[0.0, 2.0\] are out of range; use -1 to 1 without 0, for example sp"):
        SolverSpace(early=[0, 2])


@pytest.mark.parametrize(
    ("scheduler", "text"),
    [
        (
            PNDMScheduler(skip_prk_steps=True),
            "PNDMScheduler cannot run given timesteps, which a table needs",
        ),
        (DDIMScheduler(), "DDIMScheduler clips x0, which is not linear; set its clip_sample false"),
        (DPMSolverMultistepScheduler(prediction_type="flow_prediction"), "those of a flow lie in 0..1"),
        (DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"), "draws noise; set its algorithm_type dpm"),
        (
            DDIMScheduler(clip_sample=False, timestep_spacing="trailing", rescale_betas_zero_snr=True),
            "DDIMScheduler starts with pure noise, where a denoiser of prediction_type epsilon gives no information",
        ),
    ],
)
def test_schedulers_that_no_table_says_are_refused(scheduler, text):
    with pytest.raises(ValueError, match=text):
        SolverSpace().genes(target(scheduler))
