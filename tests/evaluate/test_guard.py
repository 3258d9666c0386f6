"""Objectives that fail: told, quarantined, and the search goes on."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from search.config.compose import compose_config, message_of_user_error, normalise_overrides, with_guard
from search.config.settings import Config
from search.evaluate.execute.jobs import Job
from search.evaluate.guard import ALIKE, Failure, Guard, ObjectiveFailed, objective_identity
from search.objectives.clip import Clip
from search.objectives.drift import Drift
from search.objectives.macs import Macs
from search.objectives.psnr import Psnr
from search.results.front import read_front
from search.results.result import Result
from search.testing.models import tiny_folder
from tests.helpers.bad_objectives import Odd, OddCost, Rough
from tests.helpers.evaluators import evaluator, jobs

ONE, TWO = torch.zeros(2, 3, 8, 8), torch.ones(2, 3, 8, 8)
WORDS = ["red apple", "blue boat"]


def call(objective: Any, seconds: float | None = 5.0, most: int | None = None) -> tuple[Guard, Any]:
    guard = Guard(seconds, most)
    try:
        return guard, guard.quality("odd", objective, ONE, TWO, WORDS, "sha256:1")
    except ObjectiveFailed as error:
        return guard, error


# One call


def test_a_sound_objective_gives_its_values():
    assert call(Odd("nothing"))[1] == [1.0, 1.0]


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("undefined", "gives nan for 1 of 2"),
        ("raise", "raises RuntimeError: the server is gone"),
        ("shape", r"gives shape \[\] for 2 prompts; a tensor \[2\] is wanted"),
        ("list", r"gives a list for 2 prompts; a tensor \[2\] is wanted"),
        ("sleep", "took more than 0.2 s and was abandoned"),
        ("loop", "took more than 0.2 s and was abandoned"),
        ("exit", r"raises RuntimeError: SystemExit\('done'\)"),
    ],
)
def test_what_is_wrong_is_told(how, told):
    guard, error = call(Odd(how, always=True), seconds=0.2 if how in ("sleep", "loop") else None)
    assert isinstance(error, ObjectiveFailed)
    with pytest.raises(ObjectiveFailed, match=f"objective odd {told}"):
        raise error
    assert guard.failures == [error.failure] and error.failure.digest == "sha256:1"
    assert guard.quality("drift", Drift(), ONE + 1, TWO, WORDS, "sha256:2") == [0.0, 0.0]  # in a thread of its own


def test_a_loop_in_python_ends_after_it_was_left():
    guard, _ = call(Odd("loop", always=True), seconds=0.2)
    assert guard._caller is not None
    guard._caller._thread.join(timeout=30)
    assert not guard._caller._thread.is_alive()


def test_values_are_the_same_as_without_a_guard():
    generator = torch.Generator().manual_seed(0)
    run, teacher = (torch.rand(2, 3, 16, 16, generator=generator) for _ in range(2))
    for objective in (Psnr(), Drift()):
        found = Guard().quality("x", objective, run, teacher, WORDS, "1")
        assert found == [float(value) for value in objective(run, teacher)]


def test_after_so_many_candidates_nobody_is_asked():
    told: list[str] = []
    guard = Guard(None, 2, told.append)
    for digest in ("a", "a", "b", "c"):
        with pytest.raises(ObjectiveFailed):
            guard.quality("odd", Odd("raise", always=True), ONE, TWO, WORDS, digest)
        assert guard.exhausted == (digest != "a")
    assert [failure.digest for failure in guard.failures] == ["a", "b"] and len(told) == 2
    assert guard.summary == "2 candidates failed on calibration prompts: odd raises RuntimeError: the server is gone"
    with pytest.raises(ObjectiveFailed, match="objective drift is no longer called"):
        guard.quality("drift", Drift(), ONE, TWO, WORDS, "d")


def test_two_calls_that_differ_are_seen():
    assert Guard().differs("psnr", Psnr(), TWO, WORDS, "t") is None
    apart = Guard().differs("odd", Odd("noisy"), TWO, WORDS, "t")
    assert apart is not None and ALIKE < apart < 1


def test_the_list_of_failures_grows_and_holds_each_once(tmp_path):
    file, guard = tmp_path / "quarantine.json", Guard()
    guard.save(file)
    assert not file.exists()
    guard.record(Failure("odd", "a", "gives nan"))
    guard.save(file)
    guard.record(Failure("odd", "b", "gives inf"))
    guard.save(file)
    another = Guard()
    another.record(Failure("odd", "a", "gives nan"))
    another.save(file)
    assert json.loads(file.read_text()) == [
        {"objective": "odd", "digest": "a", "reason": "gives nan", "split": "calibration"},
        {"objective": "odd", "digest": "b", "reason": "gives inf", "split": "calibration"},
    ]


# Names in the memo


def test_an_objective_of_the_project_is_named_by_its_arguments_and_a_users_by_its_source_too():
    assert objective_identity(Drift()) == {} and list(objective_identity(Clip())) == ["path", "weights"]
    mine = objective_identity(Odd("undefined"))
    assert mine["how"] == "undefined" and len(mine["source"]) == 16 == len(objective_identity(Rough())["source"])


def test_an_edited_objective_is_measured_anew(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    text = (
        "from tests.helpers.bad_objectives import Rough\n"
        "class Mine(Rough):\n    def score(self, pictures, prompts):\n        return {}\n"
    )
    found = []
    for number, body in ((1, "pictures.mean((1, 2, 3))"), (2, "pictures.amax((1, 2, 3))")):
        (tmp_path / f"mine{number}.py").write_text(text.format(body))
        own = evaluator(tmp_path / "memo.sqlite", mine=__import__(f"mine{number}").Mine(), macs=Macs())
        found.append(own.evaluate(jobs()[:1])[0].values["mine"])
    assert found[0] != found[1]


# Populations


@pytest.mark.parametrize("how", ["undefined", "raise", "shape"])
def test_a_candidate_that_fails_is_told_the_worst_and_the_others_are_as_ever(how):
    own, plain = evaluator(odd=Odd(how), macs=Macs()), evaluator(odd=Odd("nothing"), macs=Macs())
    found, truth = own.evaluate(jobs()), plain.evaluate(jobs())
    failed = [scored for scored in found if scored.failed]
    assert failed and len(failed) < len(found)
    for scored, true in zip(found, truth, strict=True):
        if scored.failed:
            assert scored.values == {} and scored.minimised == [1.0, 1.0]
        else:
            assert scored == true
    ran = len(own.runner.jobs)
    assert own.evaluate(jobs()) == found and len(own.runner.jobs) == ran  # neither run nor asked again
    assert len(own.guard.failures) == len(failed)


def test_costs_may_fail_too():
    found = evaluator(drift=Drift(), oddcost=OddCost()).evaluate(jobs())
    assert any(scored.failed == "objective oddcost gives inf for 1 of 1" for scored in found)
    assert any(scored.values for scored in found)


def test_latents_that_are_not_finite_are_nobodys_fault(monkeypatch):
    own = evaluator()
    monkeypatch.setattr(own.runner, "run", lambda batch, jobs, done: _ended(own, batch, jobs, done))
    (found,) = own.evaluate(jobs()[:1])
    assert found.failed == "its latents are not finite" and found.minimised == [1.0, 1.0] and not own.guard.failures


@pytest.mark.parametrize("batch", [8, 4])
def test_latents_that_are_not_finite_say_after_which_step(tmp_path, monkeypatch, batch):
    """Also when the memo is all there is, and where a race ends after the first batch."""
    own = evaluator(tmp_path / "memo.sqlite", batch)
    model, candidate = own.model, jobs()[0]
    timesteps = [float(t) for t in candidate.schedule.sampler["timesteps"]]

    def spoil(module: Any, inputs: Any, found: Any) -> Any:
        late = float(inputs[0].flatten()[0]) <= timesteps[2]  # the third step
        return tuple(value * torch.inf if late else value for value in found)

    rivals = [jobs()[2].schedule]
    own.evaluate([Job(rivals[0])])
    hook = model.denoiser.adaln_single.register_forward_hook(spoil)
    (found,) = own.evaluate([candidate], rivals)
    hook.remove()
    assert found.failed == "its latents are not finite after step 3 of 6" and found.minimised == [1.0, 1.0]
    monkeypatch.setattr(own.runner, "run", None)
    if batch == 8:
        again = evaluator(tmp_path / "memo.sqlite", batch)
        assert again.evaluate([candidate])[0].failed == found.failed


def _ended(own: Any, batch: Sequence, given: Sequence[Job], done: Any) -> None:
    from search.evaluate.execute.jobs import Outcome

    for i, job in enumerate(given):
        done(i, Outcome(torch.full_like(own.teacher[: len(batch)], torch.nan), job.schedule))


def test_what_fails_on_the_teachers_own_pictures_is_refused():
    with pytest.raises(
        ValueError, match=r"objective odd raises RuntimeError: .*, on the teacher's own images; no sched"
    ):
        evaluator(odd=Odd("raise", always=True), macs=Macs()).scorer.try_objectives()
    with pytest.raises(ValueError, match=r"objective odd has nan as its worst value; let worst\(\) return a finite"):
        evaluator(odd=Odd("worst"), macs=Macs()).scorer.try_objectives()
    assert evaluator().scorer.try_objectives() == {}
    assert list(evaluator(odd=Odd("noisy"), psnr=Psnr()).scorer.try_objectives()) == ["odd"]


# The command line


def test_the_guard_is_a_list_of_objectives():
    raw = compose_config(normalise_overrides([]))
    assert list(raw["guard"]) == ["clip", "ssim"] and Config.check(raw).guard == raw["guard"]
    raw = compose_config(normalise_overrides(["guard=[mmd,clip]", "guard.mmd.width=3.0"]))
    assert list(raw["guard"]) == ["mmd", "clip"] and raw["guard"]["mmd"]["width"] == 3.0
    assert with_guard(["guard=[]"]) == with_guard(["guard=null"]) == []
    with pytest.raises(Exception) as error:
        compose_config(normalise_overrides(["guard=[clop]"]))
    assert "objective=clop is not an option. Did you mean clip?" in str(message_of_user_error(error.value))


def test_old_configurations_have_no_guard():
    raw = compose_config(normalise_overrides([]))
    del raw["guard"], raw["budget"]["failures"], raw["budget"]["patience"]
    config = Config.check(raw)
    assert config.guard == {} and (config.budget.failures, config.budget.patience) == (10, 600)
    raw["budget"]["patience"] = 0
    with pytest.raises(ValueError, match=r"budget\.patience=0: give a number from 0.01 to 1e\+06, or null"):
        Config.check(raw)


# Whole searches


def search(folder: Path, *more: str, prompts: Sequence[str] = ("red apple", "blue boat", "red boat")) -> Result:
    from search.loop.run import run

    conf = folder / "conf" / "objective"
    conf.mkdir(parents=True)
    for name, target in (("odd", "Odd"), ("oddcost", "OddCost"), ("rough", "Rough"), ("smooth", "Smooth")):
        how = "how: undefined\n" if name == "odd" else ""
        (conf / f"{name}.yaml").write_text(
            f"# @package objective.{name}\n_target_: tests.helpers.bad_objectives.{target}\n{how}"
        )
    (folder / "calibration.txt").write_text("\n".join(prompts))
    (folder / "held_out.txt").write_text("blue apple\n3d boat\nflat apple\n3d apple\nflat boat\n")
    given = [
        f"model.path={tiny_folder()}",
        "model.steps=6",
        "model.max_sequence_length=8",
        f"prompts.calibration={folder / 'calibration.txt'}",
        f"prompts.held_out={folder / 'held_out.txt'}",
        f"runs={folder / 'runs'}",
        "tracking.enabled=false",
        "certify=off",
        "budget.evaluations=24",
        "budget.generation=12",
        *more,
    ]
    return run(Config.check(compose_config(normalise_overrides(given), str(folder / "conf"))))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "told"), [("raise", "raises RuntimeError: the server is gone"), ("sleep", "took more than 0.3 s")]
)
def test_a_search_goes_on_without_the_candidates_that_an_objective_fails_on(tmp_path, how, told):
    patience = "budget.patience=0.3" if how == "sleep" else "budget.patience=600"
    result = search(
        tmp_path, "objective=[odd,drift,macs]", f"objective.odd.how={how}", patience, "budget.failures=null"
    )
    listed = json.loads((result.folder / "quarantine.json").read_text())
    assert listed and all(row["objective"] == "odd" and row["reason"].startswith(told) for row in listed)
    early = {row["digest"] for row in listed if row["split"] == "calibration"}
    assert early and not early & {point["digest"] for point in result.points}
    assert not early & {entry.schedule.digest for entry in result.of("front")}
    late = {row["digest"] for row in listed if row["split"] == "held-out"}
    assert not late & {entry.schedule.digest for entry in result.entries}
    assert result.history[-1]["evaluations"] == 24 and result.points and result.of("front")
    assert any(f"odd {told}" in note and "quarantine.json" in note for note in result.notes)
    assert read_front(result.folder)["notes"] == result.notes


@pytest.mark.slow
def test_a_noisy_objective_is_told_and_the_search_goes_on(tmp_path):
    result = search(tmp_path, "objective=[odd,macs]", "objective.odd.how=noisy")
    (row,) = json.loads((result.folder / "quarantine.json").read_text())
    assert row["reason"].startswith("is not deterministic: two calls on the same images differ by 0.")
    assert result.history[-1]["evaluations"] == 24 and result.of("front")


@pytest.mark.slow
def test_after_k_failures_the_search_stops_with_its_front(tmp_path):
    began = time.monotonic()
    result = search(tmp_path, "objective=[odd,drift,macs]", "objective.odd.how=raise", "budget.failures=3")
    assert (
        "3 candidates failed on calibration prompts: odd raises RuntimeError: the server is gone; see" in result.stopped
    )
    assert result.history[-1]["evaluations"] < 24 and result.history[-1]["failed"] >= 3
    assert result.points and (result.folder / "front.json").exists() and time.monotonic() > began


@pytest.mark.slow
def test_an_objective_that_always_fails_costs_one_line(tmp_path):
    with pytest.raises(ValueError, match="objective odd raises RuntimeError: the server is gone, on the teacher's own"):
        search(tmp_path, "objective=[odd,macs]", "objective.odd.how=raise", "+objective.odd.always=true")


@pytest.mark.slow
def test_a_cost_that_fails(tmp_path):
    result = search(tmp_path, "objective=[drift,oddcost]", "budget.failures=null")
    assert result.of("front") and all(entry.held_out["oddcost"].value >= 0.5 for entry in result.of("front"))


@pytest.mark.slow
def test_a_hacked_reward_is_told_in_the_last_lines(tmp_path, capsys):
    result = search(tmp_path, "objective=[rough,macs]", "guard=[smooth]")
    assert result.guard == ["smooth"]
    assert any("better rough than the teacher, but smooth, which was not searched, has" in n for n in result.notes)
    assert "but smooth, which was not searched, has fallen" in capsys.readouterr().out
    first = result.of("front")[0]
    assert first.change["smooth"].value == pytest.approx(-first.change["rough"].value, rel=1e-4)
    kept = Result.load(result.folder)
    assert kept.notes == result.notes and kept.guard == ["smooth"] and kept.entries[0].change == first.change
    assert kept.entries[0].gap == first.gap and set(first.gap) == {"rough"}


@pytest.mark.slow
def test_a_searched_reward_is_replaced_by_the_next_or_that_there_is_none_is_said(tmp_path, short_report):
    result = search(tmp_path / "a", "objective=[rough,macs]", "guard=[rough,smooth]", "budget.evaluations=12")
    assert result.guard == ["smooth"] and not any("no reward" in note for note in result.notes)
    result = search(tmp_path / "b", "budget.evaluations=12")
    assert result.guard == ["ssim"]
    assert any("no reward that was not searched is reported; reported instead: ssim" in note for note in result.notes)
    assert any("the bundled CLIP knows the words of the bundled models only, and 'boat'" in n for n in result.notes)


@pytest.mark.parametrize(
    ("content", "place"),
    [("{}", "its content"), ('[{"objective": 7}]', "0.objective"), ("[" * 9999, "its content"), ("[1]", "0")],
)
def test_a_file_of_failures_that_is_not_one_is_refused(tmp_path, content, place):
    (tmp_path / "quarantine.json").write_text(content)
    with pytest.raises(ValueError, match=f"quarantine.json is not a list of failures: {place}: .*; delete it"):
        Guard().save(tmp_path / "quarantine.json")
