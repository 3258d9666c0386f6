"""search.export: which schedule is meant, where its files go, and what is printed."""

import json
import re
import subprocess
import sys

import pytest

from search import Schedule, export
from search.export import main
from search.results.folder import find_run
from search.testing.models import tiny_model
from tests.helpers.finished_search import made_result


@pytest.fixture
def runs(tmp_path):
    made_result(tmp_path / "runs")
    return tmp_path / "runs"


@pytest.mark.parametrize(
    ("pick", "speedup"),
    [
        ("recommended", 2.0),
        ("knee", 2.0),
        ("speedup>=2.5", 3.0),
        ("speedup>=1.1", 1.2),
        ("drift<=0.05", 2.0),
        ("drift<0.04", 1.2),
        ("psnr>=10 and drift<=0.2", 3.0),
        ("macs<=0.9, speedup>=2", 2.0),
    ],
)
def test_pick(runs, tmp_path, pick, speedup):
    (path,) = export("latest", pick, out=tmp_path / "out" / "schedule.json", runs=runs)
    front = json.loads((find_run("latest", runs) / "front.json").read_text())
    (entry,) = [
        e
        for e in front["entries"]
        if e["role"] == "front" and e["held_out"]["speedup"]["value"] == pytest.approx(speedup, rel=0.01)
    ]
    assert Schedule.load(path) == Schedule.load(find_run("latest", runs) / entry["file"])


def test_all_writes_the_front_into_a_folder(runs, tmp_path):
    paths = export(pick="all", out=tmp_path / "all", runs=runs)
    assert [p.parent.name for p in paths] == ["all"] * 3
    assert all(Schedule.load(p).steps == 6 for p in paths)


def test_a_preset_can_be_picked_by_name(runs, tmp_path):
    (path,) = export(pick="FORA N=2", out=tmp_path / "fora.json", runs=runs)
    assert Schedule.load(path) == Schedule.load(find_run("latest", runs) / "schedules/03_fora-n-2.json")


def test_reading_a_front_needs_no_torch():
    heavy = "print([m for m in ('torch', 'mlflow', 'matplotlib', 'hydra') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys, search.export; {heavy}"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_what_it_prints_can_be_applied(runs, tmp_path, capsys):
    assert main([f"runs={runs}", f"out={tmp_path / 's.json'}"]) == 0
    printed = capsys.readouterr().out
    assert f'Schedule.load("{tmp_path / "s.json"}")' in printed
    model = tiny_model()
    with Schedule.load(tmp_path / "s.json").apply(model.pipe):
        model.sample(["red apple"], [0])


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            ["pick=speedup>=9"],
            r'no schedule of this front has speedup>=9; the best is 3: ask for "speedup>=3", or search with',
        ),
        (["pick=drift<0.001"], r'has drift<0.001; the best is 0.01: ask for "drift<=0.01"'),
        (["pick=speedup>=2, psnr>=50"], r'psnr>=50 and the other conditions; the best is 44: ask for "psnr>=44"'),
        (["out=/proc/none/x.json"], "No such file"),
        (["run=nowhere"], "run='nowhere' is not a search in .*; there are: 2026-01-02_030405_cache_tiny"),
        (["pick=all", "out=x.json"], "out='x.json' is a file name; pick=all writes a folder"),
        (["pik=all"], "'pik=all' is not an option. Did you mean pick. There are run=, pick=, out=, runs="),
    ],
)
def test_mistakes_say_what_to_type(runs, capsys, arguments, text):
    assert main([*arguments, f"runs={runs}"]) == 2
    assert re.search(text, capsys.readouterr().err)


def test_no_search_yet(tmp_path, capsys):
    assert main([f"runs={tmp_path}"]) == 2
    assert "type python -m search +space=cache model=pixart" in capsys.readouterr().err


def test_an_unfinished_search_says_how_to_go_on(runs, capsys):
    (find_run("latest", runs) / "front.json").unlink()
    assert main([f"runs={runs}"]) == 2
    assert "has no front yet; finish it with: python -m search resume=2026-01-02" in capsys.readouterr().err


def test_an_empty_front(runs, capsys):
    file = find_run("latest", runs) / "front.json"
    front = json.loads(file.read_text())
    file.write_text(json.dumps(front | {"entries": front["entries"][-1:]}))  # the teacher
    assert main([f"runs={runs}"]) == 2
    assert "empty front; give it a larger budget.evaluations" in capsys.readouterr().err
