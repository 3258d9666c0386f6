"""The folder of a search: what is saved is loaded, names of files, the axes, the recommended entry."""

import dataclasses
import json
import os
import shutil

import numpy as np
import pytest

from search.results.folder import find_run
from search.results.front import read_front
from search.results.result import Entry, Result
from tests.helpers.finished_search import made_result


@pytest.fixture
def result(tmp_path):
    return made_result(tmp_path / "runs")


def test_what_is_saved_is_loaded(result):
    loaded = Result.load(result.folder)
    for field in dataclasses.fields(Result):
        if field.name != "entries":
            assert getattr(loaded, field.name) == getattr(result, field.name), field.name
    for ours, theirs in zip(result.entries, loaded.entries, strict=True):
        assert np.array_equal(ours.images, theirs.images)
        assert ours.worst is theirs.worst is None or np.array_equal(ours.worst.images, theirs.worst.images)
        assert dataclasses.replace(ours, images=None) == dataclasses.replace(theirs, images=None)


def test_pictures_are_read_where_they_are_and_wanted(result):
    assert all(entry.images is None for entry in Result.load(result.folder, pictures=False).entries)
    result.entries[2].images = None
    result.save()
    assert [entry.images is None for entry in Result.load(result.folder).entries] == [i == 2 for i in range(6)]
    (result.folder / result.entries[0].picture).write_bytes(b"no picture")
    with pytest.raises(
        ValueError, match=r"00_2\.png is not a row of 3 pictures of equal size .*; write it again with: python"
    ):
        Result.load(result.folder)


def test_a_folder_of_an_earlier_version_has_no_pictures(result):
    data = json.loads((result.folder / "front.json").read_text())
    for name in ("shown", "guard", "notes", "certify"):
        del data[name]
    for row in data["entries"]:
        row.pop("tested", row.pop("worst", None))
    data["no_visible_loss"] = 30.0  # what certificates have replaced
    (result.folder / "front.json").write_text(json.dumps(data))
    shutil.rmtree(result.folder / "pictures")
    loaded = Result.load(result.folder)
    assert loaded.shown == [] and loaded.certify is None
    assert all(entry.images is entry.worst is entry.tested is None for entry in loaded.entries)


def test_saving_again_leaves_no_stale_schedules(result):
    result.entries = result.entries[1:]
    result.save()
    names = sorted(p.name for p in (result.folder / "schedules").iterdir())
    assert names[0] == "00_2.0x-drift-0.040.json" and len(names) == 5


def test_equal_entries_have_files_of_their_own(result):
    result.entries.append(dataclasses.replace(result.entries[-1]))
    result.save()
    assert result.entries[-1].file == "schedules/06_teacher.json"


@pytest.mark.parametrize(
    ("name", "slug"),
    [("2.1× · drift 0.031", "2.1x-drift-0.031"), ("SmoothCache α=0.05", "smoothcache-alpha-0.05"), ("../..", "..-..")],
)
def test_slugs_are_file_names(result, name, slug):
    assert Entry(name, "front", result.entries[0].schedule, {}, {}).slug == slug


@pytest.mark.parametrize(
    ("objectives", "axes"),
    [
        (["drift", "macs"], ("macs", "drift")),
        (["latency", "psnr", "macs"], ("latency", "psnr")),
        (["drift", "psnr"], ("macs", "drift")),
        (["macs", "memory"], ("macs", "drift")),
    ],
)
def test_axes_are_the_first_cost_and_the_first_quality(result, objectives, axes):
    assert dataclasses.replace(result, objectives=objectives).axes == axes


def test_the_recommended_entry_or_the_teacher(result):
    assert result.best.name == "2.0× · drift 0.040"
    assert dataclasses.replace(result, recommended="none").best.role == "teacher"


def test_find_run(result, tmp_path):
    runs = tmp_path / "runs"
    newer = made_result(runs, "2026-01-01_000000_cache_tiny")  # written later, whatever its name says
    os.utime(newer.folder / "config.yaml", (2e9, 2e9))
    assert find_run("latest", runs) == newer.folder
    assert find_run(result.search_id, runs) == result.folder
    assert find_run(str(result.folder), tmp_path / "elsewhere") == result.folder
    with pytest.raises(ValueError, match="run='nope' is not a search in .*; there are: 2026-01-01.*, 2026-01-02"):
        find_run("nope", runs)
    with pytest.raises(ValueError, match="there are: none yet; type python -m search"):
        find_run("nope", tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"there is no search in .*elsewhere yet; type python -m search \+space=cache"):
        find_run("latest", tmp_path / "elsewhere")


def test_a_folder_without_a_whole_front_says_what_to_type(result):
    file = result.folder / "front.json"
    file.write_text(file.read_text()[:100])
    with pytest.raises(
        ValueError, match="is not a complete JSON file .* write it again with: python -m search resume=2026"
    ):
        read_front(result.folder)
    file.unlink()
    with pytest.raises(ValueError, match="has no front yet; finish it with: python -m search resume=2026"):
        read_front(result.folder)
