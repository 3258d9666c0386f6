"""A cost that a user wrote is a cost everywhere: where schedules are picked, drawn, reported and tracked."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from search import Schedule, best_within
from search.config.compose import compose_config, normalise_overrides
from search.config.settings import Config
from search.export import main as export
from search.figures.charts import axis_label, pareto_png
from search.figures.report.content import report_content
from search.objectives.base import Cost, Quality
from search.profile.costs import Costs
from search.results.front import read_front
from search.results.pick import pick_entries
from search.results.result import Result
from search.results.scores import Score
from search.testing.models import tiny_folder
from search.tracking.notes import describe_search
from search.tracking.views import _charts, _state
from tests.helpers.finished_search import made_result

CODE = '''
from search.objectives.base import Cost


class Nfe(Cost):
    """Steps at which any node is computed."""

    key, unit, label = "nfe", "calls", "network evaluations"

    def __call__(self, schedule, costs):
        tokens = schedule.plan.tokens.values()
        return float(sum(any(row[t] == "C" for row in tokens) for t in range(costs.steps)))

    def worst(self, costs):
        return float(costs.steps)
'''
YAML = "# @package objective.nfe\n_target_: nfe_of_a_user.Nfe\n"


@pytest.fixture
def result(tmp_path):
    """The front made by hand, searched for drift and nfe: 2, 3 and 5 evaluations, of drift 0.12, 0.04 and 0.01."""
    made = made_result(tmp_path)
    for entry, calls in zip(made.entries, (2, 3, 5, 3, 4, 6), strict=True):
        entry.held_out["nfe"] = Score(float(calls))
        entry.calibration = {"drift": entry.calibration["drift"], "nfe": Score(float(calls))}
    made = replace(
        made,
        objectives=["drift", "nfe"],
        units=made.units | {"nfe": "calls"},
        better=made.better | {"nfe": "lower"},
        kinds=made.kinds | {"nfe": "cost"},
        labels=made.labels | {"nfe": "network evaluations"},
        points=[{"nfe": 4.0, "drift": 0.1, "generation": 1, "digest": "x"}],
    )
    made.save()
    return made


def test_limits_on_it_give_the_least_drift(result, tmp_path):
    choice = best_within("nfe<=3", runs=tmp_path)
    assert [row["held_out"]["drift"]["value"] for row in choice.rows] == [0.04, 0.12]
    assert choice.name == "2.0× · drift 0.040"
    columns = [column.header for column in choice.table().columns]
    assert columns[:3] == ["schedule", "nfe calls", "speedup"]
    assert export([f"runs={tmp_path}", "pick=nfe<=3", f"out={tmp_path / 'schedule.json'}"]) == 0
    assert Schedule.load(tmp_path / "schedule.json") == choice.schedule == result.entries[1].schedule


def test_the_knee_is_between_what_was_searched(result):
    front = read_front(result.folder)
    (knee,) = pick_entries(front, "knee")
    assert knee["name"] == "2.0× · drift 0.040"


def test_charts_report_and_views_show_it(result):
    assert result.axes == Result.load(result.folder).axes == ("nfe", "drift")
    assert axis_label(result, "nfe") == "network evaluations (calls) · lower is better"
    assert pareto_png(result).startswith(b"\x89PNG")
    page = report_content(result)
    assert (page["x"], page["y"]) == ("nfe", "drift")
    assert "nfe" in page["costs"] and "nfe" not in page["qualities"]
    assert page["scores"]["nfe"]["range"][0] == 0.0
    assert page["scores"]["macs"]["share"] and not page["scores"]["nfe"]["share"]
    scatter = next(chart for chart in _charts(result) if chart["type"] == "SCATTER")
    assert (scatter["xaxis"]["key"], scatter["yaxis"]["key"]) == ("nfe", "drift")
    assert "metrics.`nfe`" in _state(result)["selectedColumns"]
    assert "nfe calls" in describe_search(result)


def test_an_older_front_says_what_was_known_then(tmp_path):
    result = made_result(tmp_path)
    file = result.folder / "front.json"
    data = json.loads(file.read_text(encoding="utf-8"))
    for field in ("kinds", "labels", "shares"):
        del data[field]
    file.write_text(json.dumps(data), encoding="utf-8")
    old = Result.load(result.folder)
    assert old.kinds == result.kinds and old.shares == ["macs"] and old.axes == result.axes
    assert best_within("macs<=90%", runs=tmp_path).name == "1.2× · drift 0.010"
    assert report_content(old)["costs"] == report_content(result)["costs"]


def test_kinds_come_from_the_classes():
    class Own(Cost):
        key, unit = "own", ""

        def __call__(self, schedule: Schedule, costs: Costs) -> float:
            return 0.0

        def worst(self, costs: Costs) -> float:
            return 1.0

    assert (Own.kind, Own.label, Own.share, Quality.kind) == ("cost", "", False, "quality")


@pytest.mark.slow
def test_a_search_with_it_exports_the_least_drift_within_a_limit(tmp_path, monkeypatch, short_report):
    import sys

    from search.loop.run import run

    monkeypatch.setattr(sys, "path", [*sys.path])
    own = tmp_path / "own"
    (own / "objective").mkdir(parents=True)
    (own / "nfe_of_a_user.py").write_text(CODE)
    (own / "objective" / "nfe.yaml").write_text(YAML)
    for name, lines in (("calibration", "red apple\nblue boat\n"), ("held_out", "blue apple\n3d boat\n")):
        (tmp_path / f"{name}.txt").write_text(lines)
    given = [
        "objective=[drift,nfe]",
        f"model.path={tiny_folder()}",
        "model.steps=6",
        "model.max_sequence_length=8",
        f"prompts.calibration={tmp_path / 'calibration.txt'}",
        f"prompts.held_out={tmp_path / 'held_out.txt'}",
        "budget.evaluations=48",
        f"runs={tmp_path / 'runs'}",
        "tracking.enabled=false",
        "certify=off",
    ]
    run(Config.check(compose_config(normalise_overrides(given), str(own))))
    choice = best_within("nfe<=5", runs=Path(tmp_path / "runs"))
    front = read_front(choice.folder)
    assert front["kinds"]["nfe"] == front["kinds"]["speedup"] == "cost" and front["kinds"]["drift"] == "quality"
    assert front["labels"]["nfe"] == "network evaluations" and front["shares"] == ["macs"]
    rows = [r["held_out"] for r in front["entries"] if r["role"] == "front" and r["held_out"]["nfe"]["value"] <= 5]
    assert choice.rows[0]["held_out"]["drift"]["value"] == min(row["drift"]["value"] for row in rows)
    assert Result.load(choice.folder).axes == ("nfe", "drift")
