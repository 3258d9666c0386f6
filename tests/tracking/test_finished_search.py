"""What a finished search is in MLflow."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from search.figures.charts import pareto_png
from search.figures.pictures import grid_png
from search.results.scores import Score
from search.tracking import store, views, writing
from tests.helpers.finished_search import made_result

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    from mlflow import MlflowClient

    root = tmp_path_factory.mktemp("tracked") / "runs"
    result = made_result(root)
    (result.folder / "figures" / "pareto.png").write_bytes(pareto_png(result))
    (result.folder / "figures" / "grids" / "01.png").write_bytes(grid_png(result, result.entries[1]))
    found = writing.log_result(result, root)
    return result, root, found, MlflowClient(store.store_address(root))


def runs(client, found, role):
    return client.search_runs([found["experiment_id"]], f"tags.role = '{role}'")


def test_one_run_for_the_search_and_a_flat_one_for_each_schedule(logged):
    result, _, found, client = logged
    assert [len(runs(client, found, r)) for r in ("search", "front", "preset", "teacher")] == [1, 3, 2, 1]
    for role in ("front", "preset"):
        for run in runs(client, found, role):
            assert "mlflow.parentRunId" not in run.data.tags
            assert run.data.tags["search_id"] == result.search_id
            assert run.info.status == "FINISHED"


def test_the_search_run_has_config_history_prompts_and_artifacts(logged):
    result, _, found, client = logged
    run = client.get_run(found["run_id"])
    assert run.data.params["model.steps"] == "6"
    points = client.get_metric_history(found["run_id"], "generation/hypervolume")
    assert [(p.step, p.value) for p in points] == [(g, 0.7 + 0.02 * g) for g in range(5)]
    assert len(run.inputs.dataset_inputs) == 2
    assert run.data.metrics["psnr"] == result.best.held_out["psnr"].value
    names = {a.path for a in client.list_artifacts(found["run_id"])}
    assert {"front.json", "schedules", "figures"} <= names
    assert run.info.status == "FINISHED" and run.data.tags["environment.torch"] == "2"


def test_a_search_begins_when_its_name_says(logged):
    result, _, found, client = logged
    began = client.get_run(found["run_id"]).info.start_time
    assert str(np.datetime64(began, "ms").astype("datetime64[D]")) in ("2026-01-01", "2026-01-02", "2026-01-03")
    assert (
        writing._start_time("2026-01-02_030405_cache_tiny") - writing._start_time("2026-01-02_030400_cache_tiny")
        == 5000
    )
    assert writing._start_time("mine") > writing._start_time("2026-01-02_030405_cache_tiny")


def test_the_page_shows_the_front_and_says_what_to_type(logged):
    result, _, found, client = logged
    text = client.get_run(found["run_id"]).data.tags["mlflow.note.content"]
    assert text.startswith("### Recommended: 2.0× · drift 0.040\n")
    assert f"![front and presets](get-artifact?path=figures/pareto.png&run_uuid={found['run_id']})" in text
    for words in (
        "| **2.0× · drift 0.040** | front | 2 | 0.5 | 0.04 | 44 | 0.96 |",
        "| FORA N=2 | preset |",
        f"`python -m search.export run={result.search_id} out=schedule.json`",
        "`python -m search.export model=tiny-cache alias=production out=schedule.json`",
        f"[All schedules as charts.]({found['view']})",
        f"[registered]({found['version']})",
    ):
        assert words in text
    assert len(text) < 8000  # the most that MLflow keeps


def test_a_schedule_has_a_page_a_file_and_pictures(logged):
    result, _, found, client = logged
    run = next(r for r in runs(client, found, "front") if r.info.run_name == result.recommended)
    names = {a.path for a in client.list_artifacts(run.info.run_id)}
    assert names == {"schedule", "pictures.png", "images"}  # no heat map was drawn
    assert [a.path for a in client.list_artifacts(run.info.run_id, "schedule")] == ["schedule/schedule.json"]
    text = run.data.tags["mlflow.note.content"]
    assert text.startswith("**2.0× · drift 0.040**, on the front, recommended; cache for tiny")
    assert f"![pictures](get-artifact?path=pictures.png&run_uuid={run.info.run_id})" in text and "plan" not in text
    assert f'search.export run={result.search_id} pick="2.0× · drift 0.040"' in text


def test_pictures_are_before_and_after_a_prompt_a_step(logged, tmp_path):
    result, _, found, client = logged
    run = next(r for r in runs(client, found, "front") if r.info.run_name == result.recommended)
    names = [a.path for a in client.list_artifacts(run.info.run_id, "images") if a.path.endswith(".png")]
    assert len(names) == 3 and all(name.startswith(f"images/{views.PICTURES}+step+") for name in names)
    second = next(name for name in names if "+step+1+" in name)
    pair = np.asarray(Image.open(client.download_artifacts(run.info.run_id, second, str(tmp_path))))
    teacher = next(e for e in result.entries if e.role == "teacher")
    np.testing.assert_array_equal(pair[:, :16], teacher.images[1])
    np.testing.assert_array_equal(pair[:, -16:], result.best.images[1])
    preset = runs(client, found, "preset")[0]
    assert not client.list_artifacts(preset.info.run_id, "images")


def test_scores_are_metrics_with_intervals(logged):
    result, _, found, client = logged
    run = next(r for r in runs(client, found, "front") if r.info.run_name == result.recommended)
    assert run.data.metrics["drift"] == 0.04
    assert run.data.metrics["interval/drift_low"] == pytest.approx(0.036)
    assert run.data.metrics["calibration/drift"] == pytest.approx(0.032)
    assert run.data.metrics["certificate/misses"] == 0 and run.data.metrics["worst/psnr"] == pytest.approx(34)
    assert run.data.tags["certificate"] == str(result.best.schedule.certificate)
    assert client.get_run(found["run_id"]).data.tags["certificate"].startswith("certified: a new prompt of this kind")
    (recommended,) = client.search_runs([found["experiment_id"]], "tags.recommended = 'true'")
    assert recommended.info.run_id == run.info.run_id


def test_the_saved_view_is_on_the_experiment(logged):
    result, _, found, client = logged
    tags = client.get_experiment(found["experiment_id"]).tags
    (value,) = [v for k, v in tags.items() if k == "mlflow.sharedViewState.20260102030405cachetiny"]
    assert json.loads(value)["state"].startswith("deflate;")
    assert found["view"].startswith(f"#/experiments/{found['experiment_id']}/runs?viewStateShareKey=")


def everything(client, found):
    """All runs with what a second copy would change; points of a metric are counted."""
    rows = {}
    for run in client.search_runs([found["experiment_id"]]):
        points = {key: len(client.get_metric_history(run.info.run_id, key)) for key in run.data.metrics}
        rows[run.info.run_id] = (run.info.run_name, run.data.params, points)
    return rows


def test_logging_again_makes_no_second_copy(logged):
    result, root, found, client = logged
    before = everything(client, found)
    assert writing.log_result(result, root) == found
    assert everything(client, found) == before and len(before) == 7


def test_a_resumed_search_replaces_what_has_left_the_front(logged):
    _, _, _, client = logged
    root = Path(client.tracking_uri.removeprefix("sqlite:///")).parent
    result = made_result(root, "2026-01-03_000000_cache_tiny")
    first = writing.log_result(result, root)
    of_search = f"tags.search_id = '{result.search_id}'"
    ids = {r.info.run_name: r.info.run_id for r in client.search_runs([first["experiment_id"]], of_search)}
    result.entries = result.entries[1:]
    result.entries[0].name = "2.1× · drift 0.040"  # timed again
    result.entries[0].held_out["speedup"] = Score(2.1)
    result.recommended = result.entries[0].name
    result.config["seed"] = 7  # params stay as they were
    result.save()
    assert writing.log_result(result, root) == first
    again = {r.info.run_name: r for r in client.search_runs([first["experiment_id"]], of_search)}
    assert set(again) == set(ids) - {"3.0× · drift 0.120", "2.0× · drift 0.040"} | {"2.1× · drift 0.040"}
    renamed = again["2.1× · drift 0.040"]
    assert renamed.info.run_id == ids["2.0× · drift 0.040"] and renamed.data.metrics["speedup"] == 2.1
    assert client.get_run(first["run_id"]).data.params["seed"] == "0"


def test_a_version_keeps_its_run_when_its_schedule_leaves_the_front(logged):
    _, _, _, client = logged
    root = Path(client.tracking_uri.removeprefix("sqlite:///")).parent
    result = made_result(root, "2026-01-05_000000_cache_tiny")
    first = writing.log_result(result, root)
    registered = client.get_model_version_by_alias("tiny-cache", "newest")
    gone = result.entries.pop(1)
    assert gone.name == result.recommended
    result.recommended = result.entries[0].name
    result.save()
    writing.log_result(result, root)
    kept = client.get_run(registered.run_id)
    assert kept.info.lifecycle_stage == "active" and kept.data.tags["role"] == "earlier"
    newest = client.get_model_version_by_alias("tiny-cache", "newest")
    assert newest.version != registered.version and newest.tags["name"] == result.recommended
    assert kept.info.run_id not in [r.info.run_id for r in runs(client, first, "front")]


@pytest.mark.parametrize(("stopped", "status"), [("stopped by Ctrl-C", "KILLED"), ("nothing left to try", "FINISHED")])
def test_how_a_search_ended(logged, stopped, status):
    _, root, _, client = logged
    result = made_result(root, f"2026-01-06_000000_cache_tiny_{status}")
    result.stopped = stopped
    result.save()
    run = client.get_run(writing.log_result(result, root)["run_id"])
    assert run.info.status == status and run.data.tags["stopped"] == stopped
    assert f"_{stopped}_" in run.data.tags["mlflow.note.content"]


def test_two_searches_share_an_experiment(logged):
    result, root, found, client = logged
    other = writing.log_result(made_result(root, "2026-01-04_000000_cache_tiny"), root)
    assert other["experiment_id"] == found["experiment_id"] and other["run_id"] != found["run_id"]
    assert len([k for k in client.get_experiment(found["experiment_id"]).tags if "sharedViewState" in k]) >= 2


def test_a_store_that_refuses_is_an_answer_and_a_line_of_the_log(logged, caplog, tmp_path):
    caplog.set_level("INFO", "search")
    result, root, _, _ = logged
    (tmp_path / "mlflow.db").write_text("this is no database")
    found = writing.log_result(result, tmp_path)
    assert set(found) == {"error"} and "MLflow at sqlite:///" in found["error"]
    assert "is in MLflow" in caplog.text and {record.levelname for record in caplog.records} == {"INFO"}


def test_a_view_that_cannot_be_saved_is_no_failure(logged, monkeypatch):
    result, root, found, _ = logged
    monkeypatch.setattr(views, "save_chart_view", lambda *_: 1 / 0)
    again = writing.log_result(result, root)
    assert "view" not in again and again["run_id"] == found["run_id"]
