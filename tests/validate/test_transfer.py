"""Carrying schedules over: the grid, the gate, fitting anew, and repairs."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from search import Schedule
from search.evaluate.fit.corrections import Corrector
from search.evaluate.fit.solver import Fitter
from search.models.lora import merge
from search.schedule.errors import ScheduleError
from search.spaces.cache import CacheSpace
from search.spaces.guidance import GuidanceSpace
from search.spaces.joint import JointSpace
from search.spaces.solver import SolverSpace
from search.spaces.timesteps import TimestepsSpace
from search.testing.models import tiny_family, tiny_folder, tiny_model
from search.transfer import main
from search.validate.criteria import criteria_for
from search.validate.reindex import saving_steps
from search.validate.repair import RepairSearch, carry_over, teacher_steps
from search.validate.transfer import transfer
from search.validate.verifier import verify
from tests.helpers.claims import claiming, made
from tests.helpers.finished_search import CERTIFICATE
from tests.helpers.trained_lora import PROMPTS, tiny_lora

SPLITS = (["red apple, 3d style", "blue boat, flat style"], PROMPTS)
BLOCKS = "transformer_blocks.*:*"


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def moved(schedule, model, **given):
    return transfer(schedule, model, SPLITS, **{"samples": 8, **given})


def on(model, timesteps, **parts) -> Schedule:
    """A schedule of the model at these timesteps."""
    sampler = {k: v for k, v in model.target.sampler.items() if k in ("class", "config")}
    sampler |= {"timesteps": timesteps}
    if model.target.sampler.get("sigmas"):
        sampler["sigmas"] = [*model.target.noise.sigma(timesteps).tolist(), 0.0]
    schedule = Schedule.from_dict(model.target.schedule({"steps": len(timesteps), "sampler": sampler} | parts))
    return schedule.with_made({"call": dict(model.arguments)})


@pytest.mark.slow
def test_a_certificate_is_renewed_for_the_new_schedule_or_left_out(model):
    asked = CERTIFICATE | {"share": 0.8, "population": "any"}
    verdicts = {"drift<=10": "holds: ", "drift<=1e-9": "does not hold: ", "clip_drop<=1": "undecided: "}
    for criterion, words in verdicts.items():
        source = claiming(model).with_certificate(asked | {"criterion": criterion})
        found = moved(source, tiny_model(steps=4), criterion="drift<=10", runs=0)
        assert f"certificate {words}" in str(found) and found.exit_code == 0
        assert (found.schedule.certificate is not None) == (criterion == "drift<=10") and found.schedule.scores
    assert moved(claiming(model), tiny_model(steps=4), criterion="drift<=10", runs=0).certified is None


# The grid


def test_where_nothing_is_another_a_schedule_stays_what_it_is(model):
    for schedule in (made(model), made(model, "CCCCCC"), on(model, [900.0, 500.0, 77.0])):
        assert carry_over(schedule, model).schedule.digest == schedule.digest


def test_own_spacing_is_spaced_anew_by_the_scheduler(model):
    for steps in (2, 4, 9, 25):
        other = tiny_model(steps=steps)
        found = carry_over(made(model), other).schedule
        assert found.sampler["timesteps"] == other.target.sampler["timesteps"]
        assert found.sampler["sigmas"] == other.target.sampler["sigmas"]
        assert found.made["call"] == dict(other.arguments)
        assert found.made["transferred"] == {"from": made(model).digest, "steps": 6}


def test_fewer_steps_than_the_full_run_stay_as_many_in_proportion(model):
    assert teacher_steps(on(model, [900.0, 500.0, 77.0])) == 6
    assert carry_over(on(model, [900.0, 500.0, 77.0]), tiny_model(steps=12)).schedule.steps == 6
    shorter = Schedule.from_dict(model.target.schedule({"steps": 3, "sampler": model.shorter(3)}))
    shorter = shorter.with_made({"call": dict(model.arguments)})
    found = carry_over(shorter, tiny_model(steps=10)).schedule
    assert found.sampler["timesteps"] == model.shorter(5)["timesteps"]


def test_a_searched_grid_keeps_its_shape(model):
    own = [950.0, 900.0, 700.0, 450.0, 200.0, 30.0]
    found = carry_over(on(model, own), tiny_model(steps=11)).schedule.sampler
    wanted = []
    for j in range(11):  # between the steps before and after the place j / 10 of the whole
        place = j / 10 * 5
        i = min(int(place), 4)
        wanted.append(own[i] + (place - i) * (own[i + 1] - own[i]))
    assert found["timesteps"] == pytest.approx(wanted)
    assert found["sigmas"][:-1] == pytest.approx([t / 1000 for t in wanted]) and found["sigmas"][-1] == 0


SEARCHED = JointSpace([TimestepsSpace(form="sigma"), SolverSpace(fit=False), CacheSpace(), GuidanceSpace()])
HOME = tiny_model()
OTHERS = {steps: tiny_model(steps=steps) for steps in (2, 4, 13)}


@settings(max_examples=40, deadline=None)
@example(seed=2559, steps=2)  # one step, as what another one reused was folded into its row of the table
@given(seed=st.integers(0, 2**32 - 1), steps=st.sampled_from(sorted(OTHERS)))
def test_every_searched_schedule_carries_over(seed, steps):
    target, rng = HOME.target, np.random.default_rng(seed)
    levels = np.array([gene.levels for gene in SEARCHED.genes(target)])
    x = np.where(rng.random(len(levels)) < rng.random(), rng.integers(0, levels), 0)
    schedule = Schedule.from_dict(target.schedule(SEARCHED.decode(x, target))).with_made({"call": dict(HOME.arguments)})
    found = carry_over(schedule, OTHERS[steps]).schedule
    assert Schedule.from_dict(found.to_dict()) == found
    wanted = 1 if schedule.steps == 1 else max(2, round(schedule.steps * steps / 6))
    assert found.steps == wanted == len(found.sampler["timesteps"])
    own = schedule.sampler["timesteps"]
    assert own[0] + 1 >= found.sampler["timesteps"][0] and found.sampler["timesteps"][-1] > 0


def test_ddim_gets_whole_timesteps():
    model = tiny_family("dit", steps=4)
    found = carry_over(on(model, [900.0, 700.0, 333.0, 20.0]), tiny_family("dit", steps=7)).schedule
    assert all(t == int(t) for t in found.sampler["timesteps"]) and found.steps == 7


def test_a_shift_that_follows_the_size():
    small, large = tiny_family("flux", steps=4), tiny_family("flux", steps=4, height=64, width=64)
    schedule = Schedule.from_dict(small.target.schedule({"plan": {"rules": [["denoiser", "CCRC"]]}}))
    schedule = schedule.with_made({"call": dict(small.arguments)})
    found = carry_over(schedule, large).schedule
    assert found.sampler["sigmas"] == large.target.sampler["sigmas"] != schedule.sampler["sigmas"]
    searched = on(small, [900.0, 500.0]).with_made({"call": dict(small.arguments)})
    with pytest.raises(ScheduleError, match="this pipeline's shift depends on the size: .* search at this size"):
        carry_over(searched, large)


def test_another_solver_class_runs_its_own_grid():
    model, other = tiny_family("sd"), tiny_family("sd", steps=7, scheduler="DDIMScheduler")
    schedule = Schedule.from_dict(model.target.schedule({"plan": {"rules": [["denoiser", "CCRCR"]]}}))
    found = carry_over(schedule, other).schedule
    assert found.sampler["class"] == "DDIMScheduler" and "sigmas" not in found.sampler
    assert found.sampler["timesteps"] == other.target.sampler["timesteps"]
    with other.apply(found):
        assert torch.isfinite(other.sample(PROMPTS[:1], [0])).all()


def test_a_schedule_of_any_number_of_steps_goes_along(model):
    off = Schedule.off(model.pipe)
    assert carry_over(off, tiny_model(steps=9)).schedule == off


# The gate


@pytest.mark.parametrize("steps", [4, 9])
def test_what_passes_is_a_schedule_with_its_scores(model, steps):
    other = tiny_model(steps=steps)
    found = moved(made(model), other, criterion="drift<=0.9")
    assert found.exit_code == 0 and found.schedule.steps == steps and not found.runs
    again = verify(found.schedule, other, PROMPTS, samples=8)
    assert again.passed and again.scores["drift"].value == pytest.approx(found.schedule.scores["drift"]["value"])
    computed = found.schedule.plan.tokens["denoiser"].count("C")
    assert found.schedule.scores["macs"]["value"] == found.macs[1] == computed / steps
    assert found.macs[0] == pytest.approx(4 / 6)


@pytest.mark.slow
def test_a_fitted_solver_is_fitted_anew(model):
    fitter = Fitter(model, SPLITS[0], [0, 1])
    fitted = fitter.fit(made(model, "CRCRRC", BLOCKS)).with_made(made(model).made)
    other = tiny_model(steps=9)
    found = moved(fitted, other, criterion="drift<=2")
    plain = carry_over(fitted, other).schedule
    wanted = Fitter(other, SPLITS[0], [0, 1]).fit(plain).sampler["coefficients"]
    table = found.schedule.sampler["coefficients"]
    assert table["state"] == pytest.approx(wanted["state"])
    assert np.concatenate(table["outputs"]) == pytest.approx(np.concatenate(wanted["outputs"]), abs=1e-9)
    assert found.notes == ["fitted again: the fitted solver: its table belongs to the old grid"]
    dropped = moved(fitted, other, criterion="drift<=2", refit=False)
    assert "coefficients" not in dropped.schedule.sampler and dropped.notes[0].startswith("lost: the fitted solver")


@pytest.mark.slow
def test_corrections_are_fitted_anew(model):
    corrector = Corrector(model, SPLITS[0], [0, 1])
    corrected = corrector.fit(made(model, "CRCRRC", "transformer_blocks.*:attn1")).with_made(made(model).made)
    other = tiny_model(steps=9)
    found = moved(corrected, other, criterion="drift<=2").schedule
    plain = carry_over(corrected, other).schedule
    wanted = Corrector(other, SPLITS[0], [0, 1]).fit(plain)
    assert found.digest == wanted.digest and found.corrections


@pytest.mark.slow
def test_repairs_compute_the_fewest_steps_that_pass(model):
    """Against brute force over the same order: one step less than what was kept does not pass."""
    other = tiny_model(steps=9)
    source = made(model, "CRRRRR")
    limits = "drift<=0.05"
    plain = moved(source, other, criterion=limits, runs=0)
    assert plain.schedule is None and plain.exit_code == 1 and not plain.runs
    found = moved(source, other, criterion=limits, runs=40)
    assert found.schedule is not None and found.repaired and found.runs <= 40
    assert set(saving_steps(found.schedule)) == set(saving_steps(plain.carried)) - set(found.repaired)
    assert found.first.passed is False and found.verdict.passed
    assert plain.macs[1] < found.macs[1] < 1
    assert "before repair: drift" in str(found) and "computed" in found._repr_html_()


@pytest.mark.slow
def test_the_step_that_gains_most_comes_first(model):
    other = tiny_model(steps=9)
    rule = carry_over(made(model, "CRRRCR"), other)
    repair = RepairSearch(made(model), rule, other, SPLITS[0], criteria_for(made(model), 1, "drift<=0.1"), True, 0)
    order = [unit for (unit,) in repair._by_gain(repair._units(40), lambda text: None)]
    assert sorted(order) == saving_steps(rule.schedule)
    given = SPLITS[0], [0, 1]
    teacher = other.sample(*given)

    def drift(actions) -> float:
        parts = rule.schedule.to_dict() | {"plan": {"rules": [["denoiser", "".join(actions)]]}}
        with other.apply(Schedule.from_dict({k: v for k, v in parts.items() if k != "digest"})):
            latents = other.sample(*given)
        return float(((latents - teacher).flatten(1).norm(dim=1) / teacher.flatten(1).norm(dim=1)).mean())

    tokens = list(rule.schedule.plan.tokens["denoiser"])
    gains, errors = {}, {}
    for step in order:
        changed, alone = [*tokens], ["C"] * 9
        changed[step], alone[step] = "C", tokens[step]
        gains[step] = drift(tokens) - drift(changed)
        errors[step] = drift(alone)
    assert order == sorted(order, key=lambda step: -gains[step])
    other = [unit for (unit,) in repair._by_error(repair._units(40), lambda text: None)]
    assert other == sorted(other, key=lambda step: -errors[step])
    grouped = repair._units(2)
    assert sorted(step for unit in grouped for step in unit) == sorted(order) and len(grouped) == 2


@pytest.mark.slow
def test_the_full_run_is_no_repair(model):
    found = moved(made(model, "CRRRRR"), tiny_model(steps=4), criterion="drift<=1e-9", runs=40)
    assert found.schedule is None and not found.repaired and found.runs <= 40
    assert found.verdict == found.first and "repair: no step" in str(found)


def test_what_no_repair_can_save_is_refused(model):
    """Rounded weights stay rounded, however many steps are computed."""
    layers = {f"transformer_blocks.{i}.ff.net.2": "w2" for i in range(3)}
    bits = {"formats": {"w2": {"weight": 2}}, "layers": layers}
    parts = {"plan": {"rules": [["denoiser", "CCRCRC"]]}, "bits": bits}
    source = Schedule.from_dict(model.target.schedule(parts)).with_made(made(model).made)
    found = moved(source, tiny_model(steps=4), criterion="drift<=1e-6", runs=20)
    assert found.schedule is None and found.exit_code == 1 and found.runs <= 20
    assert found.verdict.passed is False and "surely not" in found.verdict.reason


@pytest.mark.slow
def test_on_its_own_grid_a_table_is_kept_first_and_fitted_where_it_does_not_hold(model):
    fitter = Fitter(model, SPLITS[0], [0, 1])
    fitted = fitter.fit(made(model, "CRCRRC", BLOCKS)).with_made(made(model).made)
    assert moved(fitted, model, criterion="drift<=2").schedule.digest == fitted.digest
    strict = moved(fitted, tiny_model(guidance_scale=7.0), criterion="drift<=1e-7", runs=20)
    assert strict.carried.digest == fitted.digest


@pytest.mark.slow
def test_under_a_lora(model):
    other = tiny_model()
    merge(other, tiny_lora(steps=10))
    found = moved(claiming(model), other, criterion="drift<=0.9")
    assert found.carried.digest == claiming(model).digest
    assert found.verdict.passed is not None and found.verdict.values["drift"]


# On the command line


@pytest.fixture
def typed(tmp_path):
    (tmp_path / "held_out.txt").write_text("\n".join(PROMPTS))
    (tmp_path / "calibration.txt").write_text("\n".join(SPLITS[0]))
    return [
        f"model.path={tiny_folder()}", f"prompts.held_out={tmp_path}/held_out.txt", "compute.device=cpu", "samples=8",
        f"prompts.calibration={tmp_path}/calibration.txt", f"out={tmp_path}/out.json",
    ]  # fmt: skip


@pytest.mark.slow
def test_a_file_for_another_number_of_steps(model, typed, tmp_path, capsys):
    file = str(made(model).save(tmp_path / "schedule.json"))
    assert main([file, *typed, "steps=9", "criterion=drift<=0.9"]) == 0
    printed = capsys.readouterr().out
    assert "6 steps to 9; MACs 66.7% of a full run's to" in printed and printed.endswith("out.json\n")
    written = Schedule.load(tmp_path / "out.json")
    assert written.steps == 9 and written.made["call"]["num_inference_steps"] == 9
    with written.apply(tiny_model(steps=9).pipe):
        pass


@pytest.mark.slow
def test_what_the_gate_refuses_is_not_written(model, typed, tmp_path, capsys):
    file = str(made(model, "CRRRRR").save(tmp_path / "schedule.json"))
    assert main([file, *typed, "steps=9", "criterion=drift<=1e-7", "runs=0"]) == 1
    assert not (tmp_path / "out.json").exists()
    printed = capsys.readouterr().out
    assert "nothing was written; search here: python -m search +space=cache model=pixart model.steps=9" in printed


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["steps=9"], "no scores to hold it to"),
        (["steps=9", "criterion=drift<=1", "refit=maybe"], "refit='maybe': type refit=true or refit=false"),
        (["steps=nine", "criterion=drift<=1"], "model.steps=nine: give a whole number from 1 to 1000, or null"),
        (["steps=9", "criterion=drift<=1", "runs=few"], "runs='few' is not a number; type for example runs=64"),
    ],
)
def test_mistakes(arguments, text, model, typed, tmp_path, capsys):
    file = str(made(model).save(tmp_path / "schedule.json"))
    assert main([file, *typed, *arguments]) == 2
    assert text in capsys.readouterr().err
