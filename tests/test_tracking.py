import json
from pathlib import Path

import pytest

from search import tracking
from search.result import Score
from tests.results import made_result

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    from mlflow import MlflowClient

    root = tmp_path_factory.mktemp("tracked") / "runs"
    result = made_result(root)
    found = tracking.log(result, root)
    return result, root, found, MlflowClient(tracking.store(root))


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
    assert [m.value for m in client.get_metric_history(found["run_id"], "hypervolume")] == [
        0.7 + 0.02 * g for g in range(5)
    ]
    assert len(run.inputs.dataset_inputs) == 2
    assert result.recommended in run.data.tags["mlflow.note.content"]
    names = {a.path for a in client.list_artifacts(found["run_id"])}
    assert {"front.json", "schedules", "figures"} <= names


def test_scores_are_metrics_with_intervals(logged):
    result, _, found, client = logged
    run = next(r for r in runs(client, found, "front") if r.info.run_name == result.recommended)
    assert run.data.metrics["drift"] == 0.04
    assert run.data.metrics["drift_low"] == pytest.approx(0.036)
    assert run.data.metrics["calibration/drift"] == pytest.approx(0.032)
    assert run.data.tags["recommended"] == "true"


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
    assert tracking.log(result, root) == found
    assert everything(client, found) == before and len(before) == 7


def test_a_resumed_search_replaces_what_has_left_the_front(logged):
    _, _, _, client = logged
    root = Path(client.tracking_uri.removeprefix("sqlite:///")).parent
    result = made_result(root, "2026-01-03_000000_cache_tiny")
    first = tracking.log(result, root)
    of_search = f"tags.search_id = '{result.search_id}'"
    ids = {r.info.run_name: r.info.run_id for r in client.search_runs([first["experiment_id"]], of_search)}
    result.entries = result.entries[1:]
    result.entries[0].name = "2.1× · drift 0.040"  # timed again
    result.entries[0].held_out["speedup"] = Score(2.1)
    result.recommended = result.entries[0].name
    result.config["seed"] = 7  # params stay as they were
    result.save()
    assert tracking.log(result, root) == first
    again = {r.info.run_name: r for r in client.search_runs([first["experiment_id"]], of_search)}
    assert set(again) == set(ids) - {"3.0× · drift 0.120", "2.0× · drift 0.040"} | {"2.1× · drift 0.040"}
    renamed = again["2.1× · drift 0.040"]
    assert renamed.info.run_id == ids["2.0× · drift 0.040"] and renamed.data.metrics["speedup"] == 2.1
    assert client.get_run(first["run_id"]).data.params["seed"] == "0"


def test_two_searches_share_an_experiment(logged):
    result, root, found, client = logged
    other = tracking.log(made_result(root, "2026-01-04_000000_cache_tiny"), root)
    assert other["experiment_id"] == found["experiment_id"] and other["run_id"] != found["run_id"]
    assert len([k for k in client.get_experiment(found["experiment_id"]).tags if "sharedViewState" in k]) >= 2


def test_a_store_that_refuses_is_a_warning(logged, caplog, tmp_path):
    result, root, _, _ = logged
    (tmp_path / "mlflow.db").write_text("this is no database")
    found = tracking.log(result, tmp_path)
    assert set(found) == {"error"} and "MLflow at sqlite:///" in found["error"]
    assert "is in MLflow" in caplog.text


def test_a_view_that_cannot_be_saved_is_no_failure(logged, monkeypatch):
    result, root, _, _ = logged
    monkeypatch.setattr(tracking, "_saved_view", lambda *_: 1 / 0)
    assert "view" not in tracking.log(result, root)


def test_what_to_type_for_the_ui(tmp_path):
    assert tracking.ui_command(Path("runs")) == "mlflow ui --backend-store-uri sqlite:///runs/mlflow.db --port 5000"
    assert "'sqlite:////a b/mlflow.db'" in tracking.ui_command(Path("/a b"))
    assert tracking.view_url("#/x") == "http://127.0.0.1:5000/#/x"
    assert tracking.ui_command(tmp_path, "http://host:80/") == "open http://host:80/"
    assert tracking.view_url("#/x", "http://host:80/") == "http://host:80/#/x"
