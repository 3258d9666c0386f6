"""Whole searches by the command line, on a tiny random model."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from search import Schedule
from search.testing.models import tiny_model
from tests.helpers.repository import ROOT
from tests.helpers.search_process import command, folder, front, search_here, wait

pytestmark = pytest.mark.slow
THREE_GENERATIONS = "budget.evaluations=72"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    runs = tmp_path_factory.mktemp("finished") / "runs"
    done = search_here(runs, THREE_GENERATIONS)
    assert done.returncode == 0, done.stderr
    return runs, done.stdout


def test_the_last_lines_say_where_everything_is(finished):
    runs, text = finished
    for word in ("front.json", "figures", "report.html", "schedules", "× faster", "python -m search.export run="):
        assert word in text
    assert "without the plan" in text and "without the fitted solver" in text
    made = folder(runs)
    assert {"report.html", "pareto.png", "overview.png", "heatmaps", "grids"} <= {
        p.name for p in (made / "figures").iterdir()
    }


def check_on_the_stock_pipeline(runs: Path) -> list[dict]:
    """Every file of a run gives, on an untouched pipeline, the drift that was reported; returns the files' content."""
    import torch

    from search.objectives.drift import Drift

    data = json.loads((folder(runs) / "front.json").read_text())
    model = tiny_model()
    held_out, seeds = data["prompts"]["held_out"], [10_000, 10_001, 10_002]
    teacher = model.sample(held_out, seeds)
    for entry in data["entries"]:
        with Schedule.load(folder(runs) / entry["file"]).apply(model.pipe):
            latents = model.sample(held_out, seeds)
        assert float(Drift()(latents, teacher).mean()) == pytest.approx(
            entry["held_out"]["drift"]["value"], rel=1e-5, abs=1e-9
        )
    assert torch.equal(model.sample(held_out, seeds), teacher)
    return [Schedule.load(folder(runs) / entry["file"]).to_dict() for entry in data["entries"]]


def presets_by_name(runs: Path) -> dict[str, Schedule]:
    """The published rules of a run by name."""
    entries = json.loads((folder(runs) / "front.json").read_text())["entries"]
    return {e["name"]: Schedule.load(folder(runs) / e["file"]) for e in entries if e["role"] == "preset"}


def test_the_best_rules_are_also_run_with_their_solvers_fitted(finished):
    presets = presets_by_name(finished[0])
    fitted = {name: schedule for name, schedule in presets.items() if name.endswith(", fitted")}
    assert fitted
    for name, schedule in fitted.items():
        plain = presets[name.removesuffix(", fitted")]
        assert schedule.plan.tokens == plain.plan.tokens and "coefficients" not in plain.sampler
        table = {key: value for key, value in schedule.sampler.items() if key != "coefficients"}
        assert table == {key: value for key, value in plain.sampler.items() if key != "order"}


def test_every_schedule_does_on_the_stock_pipeline_what_was_measured(finished):
    runs, _ = finished
    assert check_on_the_stock_pipeline(runs)


@pytest.mark.parametrize(
    "arguments",
    [
        ["+space=[timesteps,solver,cache,skip,bits,guidance]", "objective=[drift,bops,size]", "engine=unsga3"],
        ["+space=[timesteps,cache,bits]", "space.bits.formats=[w8a8d,w4a8t]", "engine=anneal", "correct=true"],
        ["+space=[timesteps,solver]", "engine=bayes", "refit=false"],
    ],
    ids=["all", "corrected", "bayes"],
)
def test_joint_searches_end_in_files_that_hold(arguments, tmp_path):
    runs = tmp_path / "runs"
    done = search_here(runs, *arguments, "budget.evaluations=30")
    assert done.returncode == 0, done.stderr
    files = check_on_the_stock_pipeline(runs)
    assert any(name.endswith(", fitted") for name in presets_by_name(runs)) == ("refit=false" not in arguments)
    parts = {part for data in files for part in data}
    assert ("bits" in parts) == ("bits" in arguments[0])
    assert ("corrections" in parts) == ("correct=true" in arguments)
    assert any("coefficients" in data["sampler"] for data in files)


def test_the_same_seed_gives_the_same_front_and_another_seed_another(finished, tmp_path):
    runs, _ = finished
    assert search_here(tmp_path / "a" / "runs", THREE_GENERATIONS).returncode == 0
    assert front(tmp_path / "a" / "runs") == front(runs)
    assert search_here(tmp_path / "b" / "runs", THREE_GENERATIONS, "seed=1").returncode == 0
    assert front(tmp_path / "b" / "runs") != front(runs)


@pytest.mark.parametrize("generations", [0, 2])
def test_killed_and_resumed_is_uninterrupted(finished, tmp_path, generations):
    runs, _ = finished
    mine = tmp_path / "runs"
    process = subprocess.Popen(command(mine, THREE_GENERATIONS), cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        wait(
            lambda: (
                mine.exists() and _log(mine).count("generation {") >= generations and any(mine.glob("*/checkpoint.bin"))
            )
        )
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    done = search_here(mine, "resume=latest", THREE_GENERATIONS)
    assert done.returncode == 0, done.stderr
    assert front(mine) == front(runs)


def test_ctrl_c_finishes_with_what_there_is(tmp_path):
    runs = tmp_path / "runs"
    process = subprocess.Popen(
        command(runs, "budget.evaluations=100000"),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests in the background inherit "ignored"
    )
    wait(lambda: runs.exists() and _log(runs).count("generation {") >= 2)
    process.send_signal(signal.SIGINT)
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    assert "stopped by Ctrl-C; go on with: python -m search resume=" in text
    assert (folder(runs) / "front.json").exists()


@pytest.mark.parametrize(("engine", "granularity"), [("random", "step"), ("dp", "component")])
def test_other_engines_and_granularities(tmp_path, engine, granularity):
    done = search_here(
        tmp_path / "runs",
        f"engine={engine}",
        f"space.cache.granularity={granularity}",
        "budget.evaluations=12",
    )
    assert done.returncode == 0, done.stderr


def test_other_objectives(tmp_path):
    done = search_here(tmp_path / "runs", "objective=[psnr,latency,memory]", "budget.evaluations=12")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["model.path=nowhere"], "model.path='nowhere' cannot be loaded"),
        (["resume=nowhere"], "run='nowhere' is not a search"),
    ],
)
def test_mistakes_cost_one_line(tmp_path, arguments, text):
    done = search_here(tmp_path / "runs", *arguments)
    assert done.returncode == 2
    assert text in done.stderr and "Traceback" not in done.stderr


def _log(runs: Path) -> str:
    return "".join(p.read_text() for p in runs.glob("*/search.log"))
