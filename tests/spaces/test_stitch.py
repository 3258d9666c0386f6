"""Which denoiser runs at each step, as genes; alone and with every other space."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from search import Schedule
from search.calibrate.latency import fit_latency
from search.calibrate.propose.beam import beam_rows
from search.calibrate.propose.proposals import Proposals
from search.config.settings import Config
from search.evaluate.evaluator import Evaluator
from search.evaluate.execute.jobs import Batch
from search.evaluate.execute.prefix import step_keys
from search.evaluate.execute.runner import Runner
from search.evaluate.fit.corrections import Corrector
from search.evaluate.fit.solver import Fitter
from search.evaluate.memo import Memo
from search.export import main
from search.figures import heatmap
from search.models.base import to_schedule
from search.models.pipeline import Pipeline
from search.objectives.drift import Drift
from search.objectives.macs import Macs
from search.objectives.size import Size
from search.schedule.model.nodes import ROOT
from search.spaces.base import Space
from search.spaces.bits import BitsSpace
from search.spaces.cache import CacheSpace
from search.spaces.guidance import GuidanceSpace
from search.spaces.joint import JointSpace
from search.spaces.skip import SkipSpace
from search.spaces.solver import SolverSpace
from search.spaces.stitch import StitchSpace
from search.spaces.timesteps import TimestepsSpace
from search.testing.models import pixart, save_tiny, tiny_model
from search.testing.space_contract import PROMPTS, SpaceContract
from search.tracking.notes import describe_search
from tests.helpers.finished_search import made_result
from tests.helpers.population import latents

LARGE, SMALL = 3, 1  # blocks


@cache
def small_folder() -> Path:
    return save_tiny(Path(mkdtemp()) / "small", SMALL)


def pair_model(**arguments: object) -> Pipeline:
    return tiny_model(small=small_folder(), **arguments)


class StitchContract(SpaceContract):
    @staticmethod
    def make_model() -> Pipeline:
        return pair_model()


class TestSwitch(StitchContract):
    @pytest.fixture
    def space(self) -> Space:
        return StitchSpace()


class TestStep(StitchContract):
    @pytest.fixture
    def space(self) -> Space:
        return StitchSpace("step")


class TestWithCache(StitchContract):
    @pytest.fixture
    def space(self) -> Space:
        return JointSpace([CacheSpace("component", max_order=2), StitchSpace("step")])


class TestWithTimestepsAndSolver(StitchContract):
    @pytest.fixture
    def space(self) -> Space:
        parts = [StitchSpace("step"), TimestepsSpace(), SolverSpace(fit=False), CacheSpace("step", axis="logsnr")]
        return JointSpace(parts)


class TestWithAllThatRunsInside(StitchContract):
    @pytest.fixture
    def space(self) -> Space:
        return JointSpace([GuidanceSpace(), SkipSpace(), CacheSpace(), BitsSpace(), StitchSpace()])


MODEL = pair_model()
TARGET = MODEL.target
COSTS = MODEL.costs()


def stitched(at: str, **parts: object) -> Schedule:
    return Schedule.from_dict(TARGET.on({}).schedule(TARGET.stitched(at) | parts))


def test_decode_by_hand():
    switch, step = StitchSpace(), StitchSpace("step")
    names = {"S": TARGET.others["S"]}
    assert names["S"]["stacks"] == {"transformer_blocks": SMALL} and names["S"]["name"] == "small"
    assert switch.decode([2], TARGET) == {"models": {"names": names, "at": "SSLLLL"}}
    assert switch.decode([6], TARGET) == {"models": {"names": names, "at": "SSSSSS"}}
    assert step.decode([0, 1, 1, 0, 0, 1], TARGET) == {"models": {"names": names, "at": "LSSLLS"}}
    assert [(g.name, g.levels, g.ordered) for g in switch.genes(TARGET)] == [("until@S", 7, True)]
    assert [(g.name, g.levels, g.group, g.ordered) for g in step.genes(TARGET)][1] == ("model@1", 2, "step 1", False)


def test_of_several_models_each_goes_on_where_the_one_before_ends():
    target = replace(TARGET, others={"S": TARGET.others["S"], "B": dict(TARGET.others["S"], name="base")})
    switch, step = StitchSpace(), StitchSpace("step")

    def at(space: Space, *x: int) -> str:
        return space.decode(np.array(x), target)["models"]["at"]

    assert at(switch, 2, 4) == "SSBBLL" and at(switch, 4, 2) == "SSSSLL" and at(switch, 0, 3) == "BBBLLL"
    assert at(step, 0, 1, 2, 0, 2, 1) == "LSBLBS"
    assert set(switch.decode(np.array([0, 3]), target)["models"]["names"]) == {"B"}


@pytest.mark.parametrize("granularity", ["switch", "step"])
@pytest.mark.parametrize("steps", [6, 20, 25])
def test_presets_are_the_published_rule(granularity, steps):
    """(i + 1) / T <= r of the steps i are the small model's, in exact arithmetic."""
    target, space = replace(TARGET, steps=steps), StitchSpace(granularity)
    found = {name: space.decode(x, target)["models"]["at"] for name, x in space.presets(target).items()}
    expected: dict[str, str] = {}
    for percent in range(10, 101, 10):
        at = "".join("S" if 100 * (i + 1) <= percent * steps else "L" for i in range(steps))
        if "S" in at and at not in expected.values():
            expected[f"T-Stitch {percent} %"] = at
    assert found == expected
    assert len(found) == (6 if steps == 6 else 10)


def test_genes_follow_the_step_where_the_grid_has_moved():
    sampler = dict(TARGET.sampler)
    fewer = {**sampler, "timesteps": sampler["timesteps"][::2], "sigmas": [*sampler["sigmas"][:-1:2], 0.0]}
    moved = TARGET.on({"steps": 3, "sampler": fewer})
    assert moved.at == (0, 2, 4)
    assert StitchSpace().decode([3], moved)["models"]["at"] == "SSL"
    assert StitchSpace("step").decode([0, 1, 1, 1, 0, 0], moved)["models"]["at"] == "LSL"
    assert StitchSpace("step").decode([0, 1, 0, 1, 0, 1], moved) == {}


def test_what_does_not_fit_says_what_to_type():
    with pytest.raises(ValueError, match=r"no smaller denoiser at hand; type model.small=<.*model.small=pixart_small"):
        StitchSpace().genes(tiny_model().target)
    with pytest.raises(ValueError, match="granularity 'steps' is unknown; .* space.stitch.granularity=step"):
        StitchSpace("steps")  # type: ignore[arg-type]
    assert StitchSpace().encode({ROOT: list("CRCRCR")}, TARGET) is None


# With other spaces


def test_a_cache_reads_nothing_from_before_a_switch():
    space = JointSpace([CacheSpace("step", max_order=2), StitchSpace()])
    x = space.join({"cache": np.array([1, 1, 2, 3, 2]), "stitch": np.array([3])}, TARGET)
    parts = space.decode(x, TARGET)
    assert parts["plan"]["rules"] == [["denoiser", "CRRCRR"]]
    assert parts["models"]["at"] == "SSSLLL"


def test_components_have_actions_at_the_large_model_s_steps_alone():
    space = JointSpace([CacheSpace("component", max_order=0), StitchSpace("step")])
    on = np.ones(len(CacheSpace("component", max_order=0).genes(TARGET)), dtype=int)
    x = space.join({"cache": on, "stitch": np.array([0, 0, 0, 1, 0, 0])}, TARGET)
    assert {text for _, text in space.decode(x, TARGET)["plan"]["rules"]} == {"CRRCCR"}
    small = space.join({"cache": on, "stitch": np.ones(6, dtype=int)}, TARGET)
    assert "plan" not in space.decode(small, TARGET)


def test_guidance_reads_nothing_from_before_a_switch():
    space = JointSpace([GuidanceSpace(scales=[], branches=["R", "A"]), StitchSpace()])
    x = space.join({"guidance": np.array([0, 1, 1, 1, 2, 2]), "stitch": np.array([3])}, TARGET)
    parts = space.decode(x, TARGET)
    assert parts["guidance"]["branch"] == "CRRCAA"
    low = parts["guidance"]["approximate"]["low"]
    assert low[:4] == [1, 1, 1, 1] and low[5] == pytest.approx(low[4] * 1.1)


def test_a_folded_step_takes_its_model_with_it():
    space = JointSpace([SolverSpace(fit=False), CacheSpace("step", axis="logsnr"), StitchSpace()])
    rows = {name: x for name, x in SolverSpace(fit=False).presets(TARGET).items()}
    solver = next(x for x in rows.values() if "coefficients" in SolverSpace(fit=False).decode(x, TARGET)["sampler"])
    x = space.join({"solver": solver, "cache": np.array([1, 0, 0, 1, 0]), "stitch": np.array([3])}, TARGET)
    parts = space.decode(x, TARGET)
    assert parts["steps"] == 4 and parts["models"]["at"] == "SSLL" and "plan" not in parts
    plain = dict(space.decode(space.join({"solver": solver}, TARGET), TARGET))
    plan = {"rules": [["denoiser", "CRCCRC"]]}
    whole = Schedule.from_dict(TARGET.schedule(plain | {"plan": plan} | TARGET.stitched("SSSLLL")))
    prompts, seeds = PROMPTS, [0, 1]
    with MODEL.apply(whole):
        expected = MODEL.sample(prompts, seeds)
    with MODEL.apply(Schedule.from_dict(TARGET.schedule(parts))):
        torch.testing.assert_close(MODEL.sample(prompts, seeds), expected, rtol=1e-4, atol=1e-4)


# Models and costs


def test_a_model_reads_the_smaller_denoiser_alone():
    other = MODEL.others["S"]
    assert other.text_encoder is MODEL.pipe.text_encoder and other.vae is MODEL.pipe.vae
    assert len(other.transformer.transformer_blocks) == SMALL
    assert tiny_model().others == {} and tiny_model().target.others == {}
    with pytest.raises(ValueError, match="model.path='nowhere' cannot be loaded"):
        tiny_model(small="nowhere")


def test_small_throughout_is_what_the_small_pipeline_gives():
    small = pixart(path=small_folder(), steps=6, max_sequence_length=8)
    with MODEL.apply(stitched("SSSSSS")):
        found = MODEL.sample(PROMPTS, [0, 1])
    assert torch.equal(found, small.sample(PROMPTS, [0, 1]))


@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_macs_and_peak_bytes_equal_an_applied_run(seed):
    rng = np.random.default_rng(seed)
    space = JointSpace([CacheSpace("component"), GuidanceSpace(scales=[]), StitchSpace("step")])
    levels = np.array([g.levels for g in space.genes(TARGET)])
    schedule = to_schedule(MODEL, space.decode(rng.integers(0, levels), TARGET))
    prompts, seeds = ["red apple"], [0]
    MODEL.begin(prompts, seeds)  # the text is encoded
    with MODEL.apply(schedule) as handle, FlopCounterMode(display=False) as counter:
        with sdpa_kernel(SDPBackend.MATH):
            MODEL.sample(prompts, seeds)
        assert handle.stats()["peak_bytes"] == COSTS.peak_bytes(schedule)
        assert handle.memory.now == 0
    assert counter.get_total_flops() // 2 == COSTS.macs(schedule)
    assert sum(COSTS.macs_by_step(schedule)) == COSTS.macs(schedule)


def test_costs_by_hand():
    alone = pixart(path=small_folder(), steps=6, max_sequence_length=8).costs()
    assert COSTS.others["S"].component_macs == alone.component_macs and alone.others == {}
    large, small = COSTS.call_macs, COSTS.others["S"].call_macs
    assert 1 < large / small < LARGE / SMALL
    rules = {"rules": [["denoiser", "CRCCRC"], ["transformer_blocks.0:ff", "CCCCCR"]]}
    guidance = {"call": 4.0, "branch": "CCOCCC"}
    schedule = stitched("SSSLLL", plan=rules, guidance=guidance)
    ff = COSTS.component_macs["transformer_blocks.0:ff"]
    assert COSTS.macs(schedule) == round(1.5 * small + 2 * large - ff)
    assert COSTS.bops(schedule) == 256 * COSTS.macs(schedule)
    assert COSTS.features(schedule) == [1, 2, 2 * LARGE, 2 * LARGE, 2 * LARGE - 1, 1.5]
    assert COSTS.timed == ["attn1", "attn2", "ff", "model S"]
    own, other = COSTS.weight_bytes, COSTS.others["S"].weight_bytes
    assert [COSTS.size(stitched(at)) for at in ("LLLLLL", "SSSLLL", "SSSSSS")] == [own, own + other, other]
    assert Size().worst(COSTS) == (own + other) / 2**20
    assert Macs()(stitched("SSSSSS"), COSTS) == pytest.approx(small / large)


def test_latency_of_another_model_is_a_number_of_its_own():
    schedules = [stitched("LLLLLL"), stitched("SSSSSS"), stitched("SSSLLL")]
    rows = [COSTS.features(s) for s in schedules]
    rows += [COSTS.features(stitched("LLLLLL", plan={"rules": [[name, "CRRRRR"]]})) for name in KINDS]
    true = dict(zip(["run", "denoiser", *COSTS.timed], [5.0, 3.0, 1.0, 2.0, 0.5, 7.0], strict=True))
    table = fit_latency(rows, [float(np.dot(row, list(true.values()))) for row in rows], COSTS.timed)
    assert table == pytest.approx(true, rel=1e-6)
    timed = replace(COSTS, milliseconds=table)
    assert timed.latency(stitched("SSSSSS")) == pytest.approx(5 + 6 * 7)
    assert timed.teacher_latency == pytest.approx(timed.latency(stitched("LLLLLL")))


KINDS = ["denoiser", *(f"transformer_blocks.*:{kind}" for kind in TARGET.kinds)]


def test_a_model_that_was_not_counted_is_named():
    with pytest.raises(ValueError, match=r"models.names.S was not counted; the tables have other denoisers: none"):
        replace(COSTS, others={}).macs(stitched("SSSLLL"))


# Evaluation


@pytest.fixture
def evaluator(tmp_path):
    return Evaluator(MODEL, PROMPTS, [0, 1], {"drift": Drift(), "macs": Macs()}, COSTS, Memo(tmp_path / "memo.sqlite"))


def test_candidates_are_evaluated_with_their_models(evaluator):
    began = evaluator.block_executions
    evaluator.latents(stitched("SSSSSS"))
    share = 6 * COSTS.others["S"].call_macs / COSTS.block_macs
    assert evaluator.block_executions - began == pytest.approx(2 * share)
    drift = [np.mean(evaluator.values(stitched(at))["drift"]) for at in ("LLLLLL", "SLLLLL", "SSSSSS")]
    assert drift[0] == 0 < drift[1] and drift[2] > 0


def test_runs_that_share_a_beginning_share_its_steps():
    prompts, seeds = PROMPTS, [0, 1]
    schedules = [
        stitched(at, plan={"rules": [["denoiser", actions]]})
        for at, actions in [
            ("LLLLLL", "CRCCCR"),
            ("LLLSSS", "CRCCCR"),
            ("SSLLLL", "CRCRCC"),
            ("SSSSSS", "CRRRCC"),
            ("SSLLLL", "CRCCCC"),
        ]
    ]
    runner = Runner(MODEL, COSTS)
    for schedule, ended in zip(schedules, latents(runner, Batch(tuple(PROMPTS), (0, 1)), schedules), strict=True):
        with MODEL.apply(schedule):
            assert torch.equal(ended, MODEL.sample(prompts, seeds))
    assert runner.steps == 6 + 3 + 6 + 4 + 3
    assert step_keys(schedules[0])[:3] == step_keys(schedules[1])[:3] != step_keys(schedules[2])[:3]


def test_a_solver_is_fitted_across_the_switch(evaluator):
    plain = stitched("SSSLLL")
    fitter = Fitter(MODEL, *evaluator.inputs[0])
    fitted = fitter.fit(plain)
    assert fitted.models == plain.models and "coefficients" in fitted.sampler
    with MODEL.apply(fitted):
        ended = MODEL.sample(*evaluator.inputs[0])
    torch.testing.assert_close(ended, fitter.latents[fitted.digest])
    assert Drift()(ended, evaluator.teacher).mean() < Drift()(evaluator.latents(plain), evaluator.teacher).mean()


def test_what_is_reused_of_either_model_is_corrected(evaluator):
    plain = stitched("SSSLLL", plan={"rules": [["denoiser", "CRCCCC"], ["transformer_blocks.*:ff", "CCCCRR"]]})
    corrected = Corrector(MODEL, *evaluator.inputs[0]).fit(plain)
    steps = corrected.to_dict()["corrections"]["steps"]
    assert steps == {"denoiser": [1]} | {f"transformer_blocks.{i}:ff": [4, 5] for i in range(LARGE)}
    assert Drift()(evaluator.latents(corrected), evaluator.latents(plain)).mean() > 0


def test_seeds_of_a_joint_search_have_switches(evaluator):
    space = JointSpace([CacheSpace("step"), StitchSpace()])
    probe = Evaluator(MODEL, PROMPTS[:1], [0], {"drift": Drift()}, COSTS, evaluator.memo)
    proposals = Proposals(space, TARGET, MODEL, probe, COSTS, [Drift(), Macs()])
    rows = proposals.seeds()
    stitch = rows[:, -1]
    assert (stitch > 0).any() and ((stitch > 0) & rows[:, :-1].any(axis=1)).any()
    table = Proposals(StitchSpace(), TARGET, MODEL, probe, COSTS, [Drift(), Macs()]).table()
    assert [len(e) for e in table.errors] == [7]
    assert table.errors[0][0] == 0 < table.errors[0][1]
    large, small = COSTS.call_macs, COSTS.others["S"].call_macs
    np.testing.assert_allclose(table.costs[0][0], [k * (small - large) / (6 * large) for k in range(7)])


def test_a_beam_goes_through_models_by_step_and_refuses_switch_points(evaluator):
    seeds = np.array([[1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1]])
    rows = beam_rows(StitchSpace("step"), TARGET, evaluator, seeds, COSTS, width=4)
    assert len(rows) and set(np.unique(rows)) <= {0, 1} and not rows[:, 2:4].any()
    with pytest.raises(ValueError, match="space stitch has no genes of steps"):
        beam_rows(StitchSpace(), TARGET, evaluator, np.array([[2]]), COSTS)


def test_the_command_line_takes_a_small_model():
    from search.config.compose import compose_config, normalise_overrides

    found = Config.check(
        compose_config(normalise_overrides(["+space=[stitch,cache]", "model=pixart", "model.small=pixart_small"]))
    )
    assert found.model["small"] == "pixart_small" and list(found.space) == ["stitch", "cache"]
    experiment = Config.check(compose_config(normalise_overrides(["+experiment=tstitch"])))
    assert experiment.model["small"] == "pixart_small" and list(experiment.space) == ["stitch"]


def test_a_found_schedule_says_which_pipelines_it_needs(tmp_path, capsys):
    result = made_result(tmp_path / "runs")
    plain = heatmap.heatmap_png(result.best)
    result.best.schedule = stitched("SSSLLL")
    assert heatmap.heatmap_png(result.best) != plain
    result.save()
    assert main([f"runs={tmp_path / 'runs'}", f"out={tmp_path / 's.json'}"]) == 0
    printed = capsys.readouterr().out
    assert "pipe_S = DiffusionPipeline.from_pretrained(...)  # small" in printed
    assert 'handle = schedule.apply(pipe, models={"S": pipe_S})' in printed
    assert '.apply(pipe, models={"S": pipe_S})' in describe_search(result)
    result.best.schedule = stitched("LLLLLL")
    assert ".apply(pipe)" in describe_search(result)
    pipe, pipe_S = MODEL.pipe, MODEL.others["S"]
    with Schedule.load(tmp_path / "s.json").apply(pipe, models={"S": pipe_S}):
        MODEL.sample(["red apple"], [0])


# The bundled pair


@pytest.mark.slow
def test_the_bundled_pair_stitches_and_early_steps_matter_least():
    model = pixart(small="pixart_small", steps=10)
    costs = model.costs()
    prompts, seeds = ["red apple, 3d style", "sailing boat, flat style"], [0, 1]
    teacher = model.sample(prompts, seeds)
    drifts = {}
    for name, at in {"early": "SSSLLLLLLL", "late": "LLLLLLLSSS", "all": "SSSSSSSSSS"}.items():
        schedule = to_schedule(model, model.target.stitched(at))
        with model.apply(schedule):
            drifts[name] = float(Drift()(model.sample(prompts, seeds), teacher).mean())
        assert costs.macs(schedule) < costs.teacher_macs
    assert 0 < min(drifts.values()) <= max(drifts.values()) == drifts["all"] < 1
    alone = pixart(path="pixart_small", steps=10)
    with model.apply(to_schedule(model, model.target.stitched("S" * 10))):
        found = model.sample(["red apple, 3d style"], [0])
    assert torch.equal(found, alone.sample(["red apple, 3d style"], [0]))
