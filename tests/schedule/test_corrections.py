"""Corrections of reused values: the file, what runs, the fit."""

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save, save_file

from search import Schedule, ScheduleError, export
from search.evaluate.execute.prefix import step_keys
from search.evaluate.fit.corrections import CorrectionFit, Corrector, fit_affine
from search.evaluate.fit.solver import Fitter
from search.loop.candidates import CandidateBuilder
from search.results.folder import find_run
from search.results.result import Result
from search.schedule import tensors
from search.schedule.apply import corrections
from search.schedule.apply.corrections import reused_steps
from search.schedule.apply.handle import apply_document
from search.testing.models import tiny_model
from tests.helpers import pipelines
from tests.helpers.finished_search import made_result
from tests.helpers.pixart_by_hand import ByHand
from tests.helpers.random_corrections import numbers

PROMPTS = ["red apple", "blue boat", "red boat"]
PLANS = {
    "components": [["transformer_blocks.*:*", "CRCRCR"]],
    "block": [["transformer_blocks.0", "CRRCRR"], ["transformer_blocks.2", "CCRRCR"]],
    "stack": [["transformer_blocks", "CRCRRC"]],
    "denoiser": [["denoiser", "CRCCRR"]],
    "nested": [
        ["denoiser", "CCCRCC"],
        ["transformer_blocks", "CCRCCR"],
        ["transformer_blocks.[1-2]", "CRCCRC"],
        ["transformer_blocks.*:ff", "CRCRCR"],
    ],
    "forecasts": [["transformer_blocks.*:ff", "CCF1CF1F2"], ["denoiser", "CCCCCR"]],
}


class CorrectedByHand(ByHand):
    def __init__(self, pipe, schedule: Schedule, tensors) -> None:
        super().__init__(pipe, schedule.plan.tokens, "index")
        self.steps, self.tensors = reused_steps(schedule.plan), tensors

    def act(self, name, compute, skip=None):
        value = super().act(name, compute, skip)
        if self.step not in self.steps.get(name, []):
            return value
        row = self.steps[name].index(self.step)
        scale, shift = (self.tensors[f"{name}.{kind}"][row].float() for kind in ("scale", "shift"))
        if value.dim() == 4:
            scale, shift = scale[:, None, None], shift[:, None, None]
        return value * scale + shift


# What runs


@pytest.mark.parametrize("name", PLANS)
def test_a_corrected_run_is_what_a_loop_by_hand_does(name):
    pipe = pipelines.pixart()
    plain = pipelines.schedule(pipe, PLANS[name])
    corrected = plain.with_corrections(numbers(plain))
    expected = CorrectedByHand(pipe, plain, numbers(plain))()
    with plain.apply(pipe) as handle:
        uncorrected, bytes_ = pipelines.run(pipe), handle.stats()["peak_bytes"]
    with corrected.apply(pipe) as handle:
        found, again = pipelines.run(pipe), pipelines.run(pipe)
        assert handle.stats()["peak_bytes"] == bytes_ and handle.memory.now == 0
    assert torch.equal(found, again) and not torch.allclose(found, uncorrected, rtol=1e-3)
    if name == "forecasts":
        assert (found - expected).norm() < 1e-4 * expected.norm()
    else:
        assert torch.equal(found, expected)
    assert pipelines.traces(pipe.transformer) == []


@pytest.mark.parametrize("name", PLANS)
def test_ones_and_zeros_are_no_correction(name):
    pipe = pipelines.pixart()
    before, plain = pipelines.run(pipe), pipelines.schedule(pipe, PLANS[name])
    neutral = {k: torch.full_like(v, k.endswith("scale")) for k, v in numbers(plain).items()}
    found = []
    for schedule in (plain, plain.with_corrections(neutral)):
        with schedule.apply(pipe):
            found.append(pipelines.run(pipe))
    assert torch.equal(*found) and torch.equal(pipelines.run(pipe), before)
    assert not plain.corrections and plain.with_corrections(neutral).with_corrections({}) == plain


def test_a_step_without_correction_is_the_very_value():
    affine_ = corrections.Affine("x", [3], torch.ones(1, 4), torch.ones(1, 4))
    value = torch.zeros(2, 5, 4)
    assert affine_(2, value, lambda: value) is value
    assert torch.equal(affine_(3, value.bfloat16(), lambda: value), torch.ones(2, 5, 4, dtype=torch.bfloat16))


def test_some_steps_of_some_nodes():
    pipe = pipelines.pixart()
    plain = pipelines.schedule(pipe, PLANS["components"])
    name = "transformer_blocks.1:ff"
    tensors = {k: v[1:2] for k, v in numbers(plain).items() if k.startswith(name)}
    schedule = plain.with_corrections(tensors, {name: [3]})
    assert schedule.to_dict()["corrections"]["steps"] == {name: [3]}
    hand = CorrectedByHand(pipe, plain, tensors)
    hand.steps = {name: [3]}
    expected = hand()
    with schedule.apply(pipe):
        assert torch.equal(pipelines.run(pipe), expected)


def test_halves_of_guidance_are_corrected_alike():
    """A narrow step reads one half; its correction is that of a full one."""
    pipe = pipelines.pixart()
    rules, guidance = [["transformer_blocks.*:ff", "CRCRCR"], ["denoiser", "CCCCCR"]], {"call": 3.0, "branch": "CCCOCR"}
    plain = pipelines.schedule(pipe, rules, guidance=guidance)
    corrected = plain.with_corrections(numbers(plain))
    seen = {}
    nodes = corrected.corrections

    def look(name):
        def correct(step, value, compute):
            seen[name, step] = value, nodes[name](step, value, compute)
            return seen[name, step][1]

        return correct

    with apply_document(corrected.document, pipe, corrections={name: look(name) for name in nodes}):
        watched = pipelines.run(pipe)
    with corrected.apply(pipe):
        assert torch.equal(pipelines.run(pipe), watched)
    for (name, step), (value, after) in seen.items():
        assert len(value) == (2 if step in (3, 5) else 4)  # two pictures; O and R compute the conditional half alone
        row = reused_steps(plain.plan)[name].index(step)
        scale, shift = (numbers(plain)[f"{name}.{kind}"][row].float() for kind in ("scale", "shift"))
        if value.dim() == 4:
            scale, shift = scale[:, None, None], shift[:, None, None]
        assert torch.equal(after, value * scale + shift)
    assert {step for _, step in seen} == {1, 3, 5}


def test_runs_in_parts_are_corrected_too():
    plain = pipelines.schedule(pipelines.pixart(), PLANS["components"])
    assert step_keys(plain.with_corrections(numbers(plain))) != step_keys(plain)


def test_dit_is_corrected():
    pipe = pipelines.dit()
    bare = pipelines.classes(pipe)
    plain = pipelines.schedule(pipe, [["transformer_blocks.*:attn1", "CRCRCR"], ["denoiser", "CCCCCR"]])
    with plain.apply(pipe):
        uncorrected = pipelines.classes(pipe)
    with plain.with_corrections(numbers(plain)).apply(pipe):
        assert not torch.equal(pipelines.classes(pipe), uncorrected)
    assert torch.equal(pipelines.classes(pipe), bare)


# The file


@pytest.fixture
def made():
    pipe = pipelines.pixart()
    plain = pipelines.schedule(pipe, PLANS["nested"])
    return pipe, plain, plain.with_corrections(numbers(plain))


def test_save_and_load(made, tmp_path):
    pipe, plain, schedule = made
    file = schedule.with_made({"seed": 1}).save(tmp_path / "fast.v1.json")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fast.v1.json", "fast.v1.safetensors"]
    loaded = Schedule.load(file)
    assert loaded == schedule != plain and loaded.made == {"seed": 1}
    data = (tmp_path / "fast.v1.safetensors").read_bytes()
    assert loaded.to_dict()["corrections"]["digest"] == "sha256:" + hashlib.sha256(data).hexdigest()
    loaded.with_scores({"drift": {"value": 0.1}}).save(tmp_path / "again.json")
    assert (tmp_path / "again.safetensors").read_bytes() == data
    results = []
    for each in (schedule, loaded, Schedule.load(tmp_path / "again.json")):
        with each.apply(pipe):
            results.append(pipelines.run(pipe))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_the_content_alone_can_be_read_but_not_applied(made, tmp_path):
    pipe, _, schedule = made
    alone = Schedule.from_dict(schedule.with_scores({"drift": {"value": 0.1}}).to_dict())
    assert alone == schedule and alone.table() == schedule.table()
    with pytest.raises(ScheduleError, match=r"corrections were not read; load it from its file with Schedule.load"):
        alone.apply(pipe)
    with pytest.raises(ScheduleError, match=r"x.json: this schedule's corrections were not read, so they cannot be"):
        alone.save(tmp_path / "x.json")
    assert pipelines.traces(pipe.transformer) == []
    schedule.save(tmp_path / "x.json")
    whole = alone.with_corrections(load_file(tmp_path / "x.safetensors"))
    assert whole == schedule and whole.scores == alone.scores
    with whole.apply(pipe):
        pipelines.run(pipe)


def test_a_missing_or_another_file_is_refused(made, tmp_path):
    _, plain, schedule = made
    file = schedule.save(tmp_path / "s.json")
    tensors = tmp_path / "s.safetensors"
    data = bytearray(tensors.read_bytes())
    data[-1] ^= 1
    tensors.write_bytes(data)
    with pytest.raises(
        ScheduleError, match=r"s.safetensors: the file's digest is .*changed, or belongs to another sch"
    ):
        Schedule.load(file)
    tensors.unlink()
    os.mkfifo(tensors)
    with pytest.raises(ScheduleError, match="s.safetensors is a named pipe, and not a regular file.*copy both files"):
        Schedule.load(file)
    tensors.unlink()
    with pytest.raises(ScheduleError, match=r"cannot read .*s.safetensors': No such file.*copy both files, or export"):
        Schedule.load(file)
    with pytest.raises(ScheduleError, match="this is the name of the tensors file; the schedule's ends in .json"):
        schedule.save(tmp_path / "s.safetensors")
    plain.save(file)
    assert Schedule.load(file) == plain


def test_an_oversized_file_is_refused(made, tmp_path, monkeypatch):
    file = made[2].save(tmp_path / "s.json")
    monkeypatch.setattr(tensors, "MAX_TENSOR_BYTES", 100)
    with pytest.raises(ScheduleError, match="s.safetensors: the file has more than the 100 bytes"):
        Schedule.load(file)


NODE = "transformer_blocks.0:ff"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda t: t.pop(f"{NODE}.shift"), rf"the file lacks the tensor '{NODE}.shift'"),
        (
            lambda t: t.update(other=t[f"{NODE}.scale"].clone()),
            "the file has, besides those that the schedule names, the tensor",
        ),
        (lambda t: t.update({f"{NODE}.scale": torch.ones(3, 16)}), r"\[3, 16\] in torch.float32; its 3 steps need"),
        (lambda t: t.update({f"{NODE}.scale": torch.ones(2, 16).half()}), r"\[2, 16\] .* its 3 steps need \[3, chan"),
        (lambda t: t.update({f"{NODE}.shift": torch.ones(3, 8).half()}), r"\[3, 8\] .* as many channels in scale and"),
        (lambda t: t.update({f"{NODE}.shift": torch.ones(3).half()}), r"\[3\] in"),
        (lambda t: t.update({f"{NODE}.shift": torch.full((3, 16), torch.nan).half()}), "numbers that are not finite"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(tmp_path, change, text):
    """Also where the schedule names the file by its right digest."""
    plain = pipelines.schedule(pipelines.pixart(), [[NODE, "CRCRCR"]])
    tensors = numbers(plain)
    change(tensors)
    save_file(tensors, tmp_path / "s.safetensors")
    digest = "sha256:" + hashlib.sha256((tmp_path / "s.safetensors").read_bytes()).hexdigest()
    part = {"digest": digest, "steps": {NODE: [1, 3, 5]}}
    content = {k: v for k, v in plain.to_dict().items() if k != "digest"} | {"corrections": part}
    (tmp_path / "s.json").write_text(json.dumps(content))
    with pytest.raises(ScheduleError, match=text):
        Schedule.load(tmp_path / "s.json")


def test_what_is_no_tensors_file_is_refused(tmp_path):
    data = b"x" * 40
    part = {"digest": "sha256:" + hashlib.sha256(data).hexdigest(), "steps": {NODE: [1, 3, 5]}}
    content = pipelines.content(pipelines.pixart(), [[NODE, "CRCRCR"]], corrections=part)
    (tmp_path / "s.json").write_text(json.dumps(content))
    (tmp_path / "s.safetensors").write_bytes(data)
    with pytest.raises(ScheduleError, match="s.safetensors: this is not a .safetensors file"):
        Schedule.load(tmp_path / "s.json")


@pytest.mark.parametrize(
    ("steps", "text"),
    [
        ({"transformer_blocks.9:ff": [1]}, "names 'transformer_blocks.9:ff', which is not a node"),
        ({NODE: [2]}, f"corrections.steps.{NODE} has step 2, which is C; only what is reused .R. or forecast"),
        ({NODE: [5]}, f"corrections.steps.{NODE} has step 5, which is -"),
        ({NODE: [6]}, "has step 6, which is no step"),
        ({NODE: [3, 1]}, "must rise strictly"),
        ({NODE: []}, f"corrections.steps.{NODE} is "),
        ({}, "corrections.steps is "),
        ({NODE: [True]}, "corrections.steps"),
    ],
)
def test_steps_that_are_not_reused_are_refused(steps, text):
    part = {"digest": "sha256:" + "0" * 64, "steps": steps}
    with pytest.raises(ScheduleError, match=text):
        pipelines.schedule(pipelines.pixart(), [[NODE, "CRCRCR"], ["denoiser", "CCCCCR"]], corrections=part)


def test_no_plan_no_corrections():
    part = {"digest": "sha256:" + "0" * 64, "steps": {NODE: [1]}}
    with pytest.raises(ScheduleError, match="not a node of the plan"):
        pipelines.schedule(pipelines.pixart(), corrections=part)
    with pytest.raises(ScheduleError, match="corrections.digest is '../other'"):
        pipelines.schedule(pipelines.pixart(), [[NODE, "CRCRCR"]], corrections=part | {"digest": "../other"})
    with pytest.raises(ScheduleError, match="given for 'nowhere'.*these nodes can be corrected: none"):
        pipelines.schedule(pipelines.pixart()).with_corrections({"nowhere.scale": torch.ones(1, 1)})


def test_another_models_channels_are_refused_in_the_run():
    pipe = pipelines.pixart()
    schedule = pipelines.schedule(pipe, [[NODE, "CRCRCR"]])
    tensors = {f"{NODE}.{kind}": torch.ones(3, 5) for kind in ("scale", "shift")}
    with (
        schedule.with_corrections(tensors).apply(pipe),
        pytest.raises(ScheduleError, match="5 channels, but .* has 16"),
    ):
        pipelines.run(pipe)


# The fit


@pytest.fixture(scope="module")
def model():
    return tiny_model(steps=6)


@pytest.fixture(scope="module")
def corrector(model):
    return Corrector(model, PROMPTS, [0, 1, 2])


def planned(model, rules, **parts) -> Schedule:
    return Schedule.from_dict(model.target.schedule({"plan": {"rules": rules}} | parts))


def drift(model, corrector, schedule) -> float:
    teacher = model.sample(corrector.prompts, corrector.seeds).double()
    with schedule.apply(model.pipe):
        found = model.sample(corrector.prompts, corrector.seeds).double()
    return float((found - teacher).norm() / teacher.norm())


def test_the_fit_is_least_squares():
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(4, 50, 3, generator=generator) + torch.tensor([0.0, 2.0, -1.0])
    noise = 0.1 * torch.randn(4, 50, 3, generator=generator)
    truth = value * torch.tensor([1.5, 0.5, 1.0]) + torch.tensor([0.2, 0.0, -1.0]) + noise
    scale, shift, before, after = fit_affine(value, truth, 0.0)
    for c in range(3):
        x, y = value[..., c].flatten().double(), truth[..., c].flatten().double()
        a, b = torch.linalg.lstsq(torch.stack([x, torch.ones_like(x)], 1), y[:, None]).solution[:, 0].tolist()
        assert (float(scale[c]), float(shift[c])) == pytest.approx((a, b), rel=1e-3, abs=1e-3)
    assert (after < 0.02).all() and (after < before).all()
    shrunk = fit_affine(value, truth, 1.0)
    assert ((shrunk[0] - 1).abs() <= (scale - 1).abs() + 1e-3).all() and (shrunk[3] <= before).all()


def test_images_have_their_channels_in_dimension_one():
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(2, 3, 8, 8, generator=generator)
    scale, shift, *_ = fit_affine(value, value * torch.tensor([1.0, 2.0, 0.5])[:, None, None] + 1, 0.0)
    assert scale.tolist() == pytest.approx([1, 2, 0.5], abs=2e-3) and shift.tolist() == pytest.approx([1] * 3, abs=2e-3)


@pytest.mark.parametrize("value", [0.0, 1e-6, 300.0])
def test_what_cannot_be_bettered_stays(value):
    """Dead channels, and numbers that fp16 does not have."""
    still = torch.full((4, 9, 2), value)
    assert [t.tolist() for t in fit_affine(still, still, 0.01)[:2]] == [[1, 1], [0, 0]]
    far = fit_affine(still, still + 1e6, 0.0)
    assert far[0].isfinite().all() and far[1].tolist() == [0, 0]


@pytest.mark.parametrize("name", PLANS)
def test_no_channels_error_rises_and_the_file_does_what_was_fitted(model, corrector, name):
    plain = planned(model, PLANS[name])
    corrected = corrector.fit(plain)
    fits = {node: CorrectionFit(node, corrector.ridge) for node in reused_steps(plain.plan)}
    with apply_document(plain.document, model.pipe, corrections=fits):
        fitted = model.sample(corrector.prompts, corrector.seeds)
    for node, steps in reused_steps(plain.plan).items():
        assert sorted(fits[node].errors) == steps
        assert all((after <= before).all() for before, after in fits[node].errors.values())
        assert any((after < before).any() for before, after in fits[node].errors.values())
    with corrected.apply(model.pipe):
        assert torch.equal(model.sample(corrector.prompts, corrector.seeds), fitted)
    assert pipelines.traces(model.denoiser) == []


@pytest.mark.parametrize("name", ["components", "block", "stack", "denoiser"])
def test_drift_falls(model, corrector, name):
    plain = planned(model, PLANS[name])
    assert drift(model, corrector, corrector.fit(plain)) < drift(model, corrector, plain)


@pytest.mark.parametrize("name", ["stack", "denoiser", "components"])
def test_the_truth_is_what_the_node_computes(model, corrector, name):
    """At the first reuse nothing but the plan has changed: a run that computes there has the truth."""
    plain = planned(model, PLANS[name])
    node = list(reused_steps(plain.plan))[0]
    truths = []

    class Spy(CorrectionFit):
        def __call__(self, step, value, compute):
            if step == 1:
                truths.append(compute())
            return value

    with apply_document(plain.document, model.pipe, corrections={node: Spy(node, 0.0)}):
        model.sample(corrector.prompts, corrector.seeds)
    later = [[s, "CC" + a[2:]] for s, a in PLANS[name]]
    kept = {}
    with apply_document(planned(model, later).document, model.pipe, keep={node: 9}) as handle:
        keep = lambda step: kept.update(handle.stores[node].values[0])  # noqa: E731
        model.sample(corrector.prompts, corrector.seeds, keep, until=2)
    assert torch.equal(truths[0], kept[1])


def test_fits_compose_with_guidance_bits_and_solver_fits(model, corrector):
    layers = {n: "w4" for n, m in model.denoiser.named_modules() if n.endswith("to_q")}
    parts = {
        "guidance": {"call": 4.0, "branch": "CCCOCR"},
        "bits": {"formats": {"w4": {"weight": 4}}, "layers": layers},
    }
    plain = planned(model, PLANS["components"], **parts)
    corrected = corrector.fit(plain)
    both = Fitter(model, corrector.prompts, corrector.seeds).fit(corrected)
    assert both.bits == plain.bits and both.guidance == plain.guidance and both.sampler["coefficients"]
    assert both.to_dict()["corrections"] == corrected.to_dict()["corrections"]
    drifts = [drift(model, corrector, s) for s in (plain, corrected, both)]
    assert drifts[1] < drifts[0] and drifts[2] < drifts[0]
    assert corrector.fit(both).sampler == both.sampler


def test_equal_schedules_are_fitted_once_and_what_reuses_nothing_not_at_all(model, corrector):
    plain = planned(model, PLANS["components"])
    first, runs = corrector.fit(plain), corrector.runs
    assert corrector.fit(plain) == corrector.fit(first) == first and corrector.runs == runs
    off = Schedule.from_dict(model.target.schedule({}))
    assert corrector.fit(off) == off and corrector.runs == runs


def test_a_fit_leaves_no_trace(model):
    bare = model.sample(PROMPTS, [0, 1, 2])
    Corrector(model, PROMPTS, [0, 1, 2]).fit(planned(model, PLANS["nested"]))
    assert pipelines.traces(model.denoiser) == []
    assert torch.equal(model.sample(PROMPTS, [0, 1, 2]), bare)


# Where it goes


class Candidates(CandidateBuilder):
    """The builder of a search that corrects or not, with an evaluator that runs schedules one by one."""

    def __init__(self, model, corrector, correct: bool) -> None:
        from search.evaluate.evaluator import Evaluator

        self.corrector, self.solvers_can_be_fitted, self.refit, self.correct = corrector, True, True, correct
        self.evaluator, self.model = Evaluator.__new__(Evaluator), model
        self.evaluator.model, self.evaluator.inputs = model, [(corrector.prompts, corrector.seeds)]
        self.evaluator.teacher = model.sample(corrector.prompts, corrector.seeds)
        self.evaluator.latents = self.latents
        self.evaluator.fit = Fitter(model, corrector.prompts, corrector.seeds).fit

    def latents(self, schedule: Schedule) -> torch.Tensor:
        with schedule.apply(self.evaluator.model.pipe):
            return self.evaluator.model.sample(self.corrector.prompts, self.corrector.seeds)


def test_a_finished_search_keeps_what_drifts_least(model, corrector):
    plain = planned(model, PLANS["components"])
    searches = [Candidates(model, corrector, correct) for correct in (False, True)]
    without, either = (search.corrected(search.evaluator.fit(plain), plain) for search in searches)
    assert not without.corrections and without.sampler["coefficients"]
    best = min(drift(model, corrector, s) for s in (without, either))
    assert drift(model, corrector, either) == best
    off = Schedule.from_dict(model.target.schedule({"plan": {"rules": [["transformer_blocks.*:ff", "CSCSCC"]]}}))
    assert not Candidates(model, corrector, True).corrected(off, off).corrections


@pytest.fixture
def run_folder(tmp_path) -> tuple[Path, Result]:
    result = made_result(tmp_path / "runs")
    entry = result.entries[1]
    entry.schedule = entry.schedule.with_corrections(numbers(entry.schedule, root=4))
    (result.folder / "schedules" / "99_stale.safetensors").write_bytes(save({}))
    result.save()
    return tmp_path / "runs", result


def test_results_and_exports_have_both_files(run_folder, tmp_path):
    runs, result = run_folder
    folder = find_run("latest", runs)
    names = [p.name for p in (folder / "schedules").glob("*.safetensors")]
    assert names == [Path(result.entries[1].file).with_suffix(".safetensors").name]
    assert Result.load(folder).entries[1].schedule == result.entries[1].schedule
    (file,) = export(pick=result.entries[1].name, out=tmp_path / "out" / "schedule.json", runs=runs)
    assert sorted(p.name for p in file.parent.iterdir()) == ["schedule.json", "schedule.safetensors"]
    with Schedule.load(file).apply(tiny_model().pipe):
        pass
    files = export(pick="all", out=tmp_path / "all", runs=runs)
    assert len(files) == 3 and len(list((tmp_path / "all").glob("*.safetensors"))) == 1
    assert [Schedule.load(f) for f in files] == [e.schedule for e in result.of("front")]
    with pytest.raises(ValueError, match="is the name of a schedule's file of tensors; type out=schedule.json"):
        export(pick=result.entries[1].name, out=tmp_path / "x.safetensors", runs=runs)


@pytest.mark.slow
def test_mlflow_gets_both_files(run_folder):
    from mlflow import MlflowClient

    from search.tracking import store, writing

    runs, result = run_folder
    found = writing.log_result(result, runs)
    client = MlflowClient(store.store_address(runs))
    (run,) = client.search_runs([found["experiment_id"]], f"tags.digest = '{result.entries[1].schedule.digest}'")
    ends = sorted(Path(a.path).suffix for a in client.list_artifacts(run.info.run_id, "schedule"))
    assert ends == [".json", ".safetensors"]
