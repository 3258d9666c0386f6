"""A tracking server elsewhere, and several searches at once."""

import re
import subprocess
import sys
import urllib.request

import pytest

from search import Schedule, export, promote
from search.figures.charts import pareto_png
from search.tracking import spool, store
from search.tracking.sending import send_searches
from search.tracking.tracker import deliver_result
from tests.helpers.finished_search import made_result
from tests.helpers.mlflow_server import served
from tests.helpers.random_corrections import numbers

pytestmark = pytest.mark.slow

FIRST, SECOND = "2026-01-02_030405_cache_tiny", "2026-01-03_000000_cache_tiny"


def test_a_server_gets_a_search_and_hands_its_schedule_out(tmp_path):
    """Nothing is shared but the address: other folders, and tensors beside the schedule."""
    runs, elsewhere = tmp_path / "runs", tmp_path / "elsewhere"
    first, second = made_result(runs, FIRST), made_result(runs, SECOND)
    best = first.best
    best.schedule = best.schedule.with_corrections(numbers(best.schedule, root=4))
    first.save()
    (first.folder / "figures" / "pareto.png").write_bytes(pareto_png(first))
    words = ["mlflow", "server", "--backend-store-uri", f"sqlite:///{tmp_path}/server.db"]
    with served([*words, "--artifacts-destination", str(tmp_path / "kept")], tmp_path) as uri:
        found = deliver_result(first, runs, uri)
        assert {"page", "view", "version"} <= set(found) and not (runs / "mlflow.db").exists()
        client = store.connect_store(uri)
        run = client.get_run(found["run_id"])
        assert run.info.artifact_uri.startswith("mlflow-artifacts:/") and run.info.status == "FINISHED"
        (picture,) = re.findall(r"\((get-artifact[^)]*)\)", run.data.tags["mlflow.note.content"])
        with urllib.request.urlopen(f"{uri}/{picture}") as answer:
            assert answer.read() == (first.folder / "figures" / "pareto.png").read_bytes()

        assert promote(FIRST, runs=runs, uri=uri).store == uri
        (file,) = export(model="tiny-cache", alias="production", runs=elsewhere, uri=uri, out=elsewhere / "s.json")
        assert Schedule.load(file) == best.schedule
        assert sorted(p.name for p in elsewhere.iterdir()) == ["s.json", "s.safetensors"]
        spool.add_to_spool(second.folder, "http://127.0.0.1:9")
        assert list(send_searches(SECOND, runs, uri)) == [SECOND] and not spool.unsent_folders(runs)

    with pytest.raises(ValueError, match=rf"tiny-cache: MLflow at {uri}: it does not answer"):
        export(model="tiny-cache", alias="production", uri=uri, out=elsewhere / "t.json")
    assert "it does not answer" in deliver_result(first, runs, uri)["error"]
    assert spool.unsent_folders(runs) == {first.folder: uri} and not (elsewhere / "t.json").exists()


LIVE = """
import sys
from pathlib import Path
from search.results.disk import locked_run_folder
from search.tracking import tracker
from tests.helpers.finished_search import made_result
from tests.helpers.configuration import config

tracker.PATIENCE = 400  # seconds, as MLflow alone takes a minute to be imported on a busy machine
root, name = Path(sys.argv[1]), sys.argv[2]
result = made_result(root, name)
with locked_run_folder(result.folder), tracker.Tracker(config(root), result.folder, print) as live:  # as a search
    for row in result.history:
        live.generation(row)
    found = live.finish(result)
assert "error" not in found, found
"""


def test_three_searches_write_one_database_at_the_same_time(tmp_path):
    """From its first second on: none of them finds the database, the experiment or the registered model."""
    names = [f"2026-01-0{day}_000000_cache_tiny" for day in (1, 2, 3)]
    searches = [
        subprocess.Popen(
            [sys.executable, "-c", LIVE, tmp_path, name], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for name in names
    ]
    said = [search.communicate(timeout=500) for search in searches]
    assert [search.returncode for search in searches] == [0, 0, 0], said
    assert [out for out, _ in said] == ["", "", ""]  # nothing had to be told
    client = store.connect_store(store.store_address(tmp_path))
    (experiment,) = client.search_experiments(filter_string="name = 'tiny-cache'")
    runs = client.search_runs([experiment.experiment_id])
    described = sorted((run.data.tags.get("search_id"), run.data.tags.get("role"), run.info.status) for run in runs)
    assert len(runs) == 3 * 7 and all(run.info.status == "FINISHED" for run in runs), described
    for name in names:
        own = [run for run in runs if run.data.tags["search_id"] == name]
        assert sorted(run.data.tags["role"] for run in own) == sorted(
            ["search", *["front"] * 3, *["preset"] * 2, "teacher"]
        )
        (search,) = [run for run in own if run.data.tags["role"] == "search"]
        points = client.get_metric_history(search.info.run_id, "generation/hypervolume")
        assert [p.step for p in points] == [0, 1, 2, 3, 4]
    versions = client.search_model_versions("name = 'tiny-cache'")
    assert sorted(v.tags["search_id"] for v in versions) == names
    assert len([tag for tag in experiment.tags if "sharedViewState" in tag]) == 3
    assert not spool.unsent_folders(tmp_path)
