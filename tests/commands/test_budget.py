"""The best schedule within limits, from a search that is over."""

import json
import shlex

import pytest

from search import Schedule, best_within
from search.budget import main
from search.export import main as export
from search.results.folder import find_run
from tests.helpers.finished_search import made_result


@pytest.fixture
def runs(tmp_path):
    made_result(tmp_path / "runs")
    return tmp_path / "runs"


def test_the_truest_within_a_limit_on_cost(runs):
    choice = best_within("speedup>=1.5 and macs<=90%", runs=runs)
    assert [row["held_out"]["speedup"]["value"] for row in choice.rows] == pytest.approx([2, 3], rel=0.01)
    assert choice.schedule == Schedule.load(choice.folder / choice.rows[0]["file"])
    assert choice.doubtful == []


def test_what_it_prints_exports_the_same_schedule(runs, tmp_path, capsys, monkeypatch):
    assert main(["speedup>=1.5", "macs<=0.9", f"runs={runs}"]) == 0
    said = capsys.readouterr().out
    line = next(line for line in said.splitlines() if line.startswith("export"))
    monkeypatch.chdir(tmp_path)
    assert export(shlex.split(line)[4:]) == 0
    assert Schedule.load("schedule.json") == best_within("speedup>=1.5 and macs<=0.9", runs=runs).schedule


def test_a_limit_within_the_interval_is_doubtful(runs, capsys):
    file = find_run("latest", runs) / "front.json"
    front = json.loads(file.read_text())
    for row in front["entries"]:
        row["held_out"]["latency"] = {"value": 100.0, "low": 90.0, "high": 110.0}
    file.write_text(json.dumps(front | {"units": front["units"] | {"latency": "ms"}}))
    assert best_within("latency<=0.105s", runs=runs).doubtful == ["latency"]
    assert main(["latency<=0.105s", f"runs={runs}"]) == 0
    assert "latency may exceed the limit: measured 90 to 110" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "type the limits, for example"),
        (["speedup>=9"], 'ask for "speedup>=3"'),
        (["speedup>=2", "--fast"], "'--fast' is not an option"),
        (["speedup>=2", "run=nowhere"], "run='nowhere' is not a search"),
    ],
)
def test_mistakes_say_what_to_type(runs, capsys, arguments, text):
    assert main([*arguments, f"runs={runs}"]) == 2
    assert text in capsys.readouterr().err


def test_an_empty_front(runs):
    file = find_run("latest", runs) / "front.json"
    front = json.loads(file.read_text())
    file.write_text(json.dumps(front | {"entries": front["entries"][-1:]}))  # the teacher
    with pytest.raises(ValueError, match="empty front"):
        best_within("speedup>=1", runs=runs)
