"""front.json of somebody else: read by a schema, answered in one line with the field, and never with a traceback."""

import json
import os

import pytest

from search.budget import main as budget
from search.export import main as export
from search.report import main as report
from search.results import front
from search.results.disk import explain_disk_errors
from search.results.front import read_front
from search.results.result import Result
from tests.helpers.finished_search import made_result


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return made_result(tmp_path_factory.mktemp("front") / "runs")


@pytest.fixture
def changed(finished):
    """Writes front.json with a value at a path; afterwards it is as it was."""
    file = finished.folder / "front.json"
    text = file.read_text(encoding="utf-8")

    def change(path, value):
        data = inner = json.loads(text)
        *keys, last = path
        for key in keys:
            inner = inner[key]
        if value is None:
            del inner[last]
        else:
            inner[last] = value
        file.write_text(json.dumps(data), encoding="utf-8")

    yield change
    file.unlink()
    file.write_text(text, encoding="utf-8")


def deep(levels):
    value = {}
    for _ in range(levels):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    ("path", "value", "text"),
    [
        (["entries"], None, "entries is missing"),
        (["entries"], {}, "entries is {}: Input should be a valid list"),
        (["entries", 0, "name"], 7, "entries.0.name is 7: Input should be a valid string"),
        (["entries", 0, "name"], "x" * 2**20, "entries.0.name is 'xxxx.*: String should match pattern"),
        (["entries", 0, "name"], "\x1b[2J", r"entries.0.name is '.x1b\[2J': String should match pattern"),
        (["entries", 0, "role"], "king", "entries.0.role is 'king': Input should be 'front', 'preset' or 'teacher'"),
        (["entries", 0, "file"], "/etc/passwd", "entries.0.file is '/etc/passwd'"),
        (["entries", 0, "file"], "schedules/../../x.json", "entries.0.file is 'schedules/../../x.json'"),
        (["entries", 0, "picture"], "../x.png", "entries.0.picture is '../x.png'"),
        (["entries", 0, "held_out", "drift", "value"], "a", "entries.0.held_out.drift.value is 'a': Input should be a"),
        (["entries", 0, "held_out", "drift", "value"], 1e300, "entries.0.held_out.drift.value is 1e.300: Input should"),
        (["entries", 0, "held_out", "drift", "value"], 10**400, "entries.0.held_out.drift.value is 1000"),
        (["entries", 0, "held_out", "drift", "low"], float("nan"), "entries.0.held_out.drift.low is nan"),
        (["entries", 1, "held_out", "psnr"], None, "entries.1.held_out.psnr is missing, which other schedules have"),
        (["entries", 5, "role"], "front", "entries does not end with its one teacher"),
        (["objectives"], ["nfe"], "entries.0.held_out.nfe is missing"),
        (["entries", 0, "tested", "misses"], -1, "entries.0.tested.misses is -1: Input should be greater"),
        (["entries", 0, "worst", "picture"], "../x.png", "entries.0.worst.picture is '../x.png'"),
        (["certify"], {"criterion": "psnr>=30"}, "certify.share is missing"),
        (["model"], "../x", "model is '../x': String should match pattern"),
        (["history", 0, "generation"], 0.5, "history.0: generation is not a whole number from 0 to 1000000000"),
        (["points", 3, "macs"], "x", "points.3.macs is 'x', and not a number"),
        (["better", "drift"], "[/italic]", "better.drift is '.*italic.': Input should be 'lower' or 'higher'"),
        (["config", "model"], deep(30), "config: it has more than 10000 values, or is nested more than 20 deep"),
        (["shown"], ["x"] * 101, "shown is .*: List should have at most 100 items"),
    ],
)
def test_a_wrong_field_is_named_with_what_to_type(finished, changed, path, value, text):
    changed(path, value)
    with pytest.raises(
        ValueError, match=f"front.json: {text}.*write it again with: python -m search resume=2026"
    ) as told:
        read_front(finished.folder)
    assert "\n" not in str(told.value) and len(str(told.value)) < 700


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"[" * 100_000, "is nested too deep"),
        (b"[]", r"front.json: the content is \[\]: Input should be a valid dictionary"),
        (b"\xff", "is not a complete JSON file"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is not a complete JSON file"),
        (b" " * 300, "has more than the 200 bytes that it may have"),
    ],
)
def test_what_is_not_a_front_at_all(tmp_path, monkeypatch, content, text):
    monkeypatch.setattr(front, "MAX_BYTES", 200 if content.isspace() else front.MAX_BYTES)
    (tmp_path / "front.json").write_bytes(content)
    with pytest.raises(ValueError, match=text):
        read_front(tmp_path)


def test_names_are_printed_as_they_are(finished, changed, tmp_path, capsys):
    changed(["entries", 0, "name"], "[/italic] [red]3.0×")
    changed_front = json.loads((finished.folder / "front.json").read_text(encoding="utf-8"))
    changed_front["units"]["macs"] = "[/b]"
    (finished.folder / "front.json").write_text(json.dumps(changed_front), encoding="utf-8")
    runs = f"runs={finished.folder.parent}"
    assert budget(["speedup>=2.5", runs]) == 0
    said = capsys.readouterr().out
    assert "best: [/italic] [red]3.0×" in said and "[/b]" in said
    assert export([runs, "pick=[/italic] [red]3.0×", f"out={tmp_path / 's.json'}"]) == 0
    assert report([runs, f"out={tmp_path / 'r.html'}"]) == 0


def test_a_schedule_that_is_gone_or_damaged_says_what_to_type(finished, tmp_path, capsys):
    entry = Result.load(finished.folder, pictures=False).entries[1]
    file = finished.folder / entry.file
    text = file.read_text(encoding="utf-8")
    for damage, told in ((lambda: file.write_text("{}"), "format is 'None'"), (file.unlink, "No such file")):
        damage()
        assert export([f"runs={finished.folder.parent}", f"pick={entry.name}", f"out={tmp_path / 's.json'}"]) == 2
        said = capsys.readouterr().err
        assert told in said and "write it again with: python -m search resume=2026-01-02_030405_cache_tiny" in said
    file.write_text(text, encoding="utf-8")


def test_a_pipe_a_link_or_a_folder_in_a_run_folder_is_refused_by_every_command(finished, tmp_path, capsys):
    place = finished.folder / "figures" / "x"
    for make, kind in (
        (os.mkfifo, "a named pipe"),
        (lambda path: path.symlink_to("/etc"), "a link that leads out of"),
    ):
        make(place)
        for command in (export, report):
            assert command([f"runs={finished.folder.parent}", f"out={tmp_path / 'x'}"]) == 2
            assert f"x is {kind}" in capsys.readouterr().err
        place.unlink()


def test_a_result_that_is_written_again_takes_new_names_and_removes_the_old_ones_last(finished, monkeypatch):
    before = {entry.file for entry in finished.entries}
    seen = []

    def look(path, *rest):  # the old files are all there until the new front.json is
        if path.name == "front.json":
            seen.extend(file for file in before if (finished.folder / file).exists())
        return written(path, *rest)

    from search.results import result as module

    written = module.write_atomically
    monkeypatch.setattr(module, "write_atomically", look)
    finished.save()
    after = {entry.file for entry in finished.entries}
    assert len(seen) == len(before) == 6 and not before & after
    assert {f"schedules/{path.name}" for path in (finished.folder / "schedules").iterdir()} == after
    assert [entry.schedule for entry in Result.load(finished.folder).entries] == [e.schedule for e in finished.entries]


@pytest.mark.slow
def test_killed_while_it_is_written(tmp_path):
    from benchmarks.faults.results import kill_many

    whole, _ = kill_many(tmp_path / "runs", 8, seed=3)
    assert whole == 8


@pytest.mark.parametrize(
    ("make", "use", "name"),
    [
        (lambda path: path.mkdir(), lambda path: path.write_text(""), "Is a directory"),
        (lambda path: path.write_text(""), lambda path: path.mkdir(), "File exists"),
        (lambda path: path.write_text(""), lambda path: (path / "x").write_text(""), "Not a directory"),
    ],
)
def test_a_folder_in_place_of_a_file_is_one_line(tmp_path, make, use, name):
    make(tmp_path / "log")
    told = f"log.* is in the way .{name}.: .*; remove it, then type again please"
    with pytest.raises(ValueError, match=told), explain_disk_errors(tmp_path, "again please"):
        use(tmp_path / "log")
    with pytest.raises(OSError), explain_disk_errors(tmp_path / "other", ""):
        use(tmp_path / "log")
