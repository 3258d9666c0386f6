import json

import pytest

from search import tracking
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
    (value,) = [v for k, v in tags.items() if k.startswith("mlflow.sharedViewState.")]
    assert json.loads(value)["state"].startswith("deflate;")
    assert found["view"].startswith(f"#/experiments/{found['experiment_id']}/runs?viewStateShareKey=")


def test_logging_again_makes_no_second_copy(logged):
    result, root, found, client = logged
    again = tracking.log(result, root)
    assert again["run_id"] == found["run_id"]
    assert len(client.search_runs([found["experiment_id"]])) == 7


def test_a_view_that_cannot_be_saved_is_no_failure(logged, monkeypatch):
    result, root, _, _ = logged
    monkeypatch.setattr(tracking, "_saved_view", lambda *_: 1 / 0)
    assert "view" not in tracking.log(result, root)


def test_what_to_type_for_the_ui(tmp_path):
    assert tracking.ui_command(tmp_path).startswith("mlflow ui --backend-store-uri sqlite:///")
    assert tracking.view_url("#/x") == "http://127.0.0.1:5000/#/x"
