"""Charts, heat maps and grids of pictures: what they show, and that labels can be read."""

import copy
import dataclasses
import io

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from search import Schedule
from search.figures import charts, heatmap, pictures
from search.figures.labels import LabelPlacer
from search.figures.report.content import report_content
from search.results.result import Entry
from search.results.scores import Score
from tests.helpers.finished_search import made_result


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return made_result(tmp_path_factory.mktemp("runs"))


def picture(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def test_pareto_png_is_readable_in_a_page(result):
    image = picture(charts.pareto_png(result))
    assert image.shape[1] >= 900
    blue = (np.abs(image.astype(int) - [0x00, 0x72, 0xB2]).sum(axis=2) < 30).sum()
    assert blue > 500  # the front is drawn


def test_fitted_rules_are_hollow_marks_of_their_family(result):
    rule = result.of("preset")[0]
    scores = rule.held_out | {"drift": Score(0.03)}
    fitted = dataclasses.replace(rule, name=f"{rule.name}, fitted", held_out=scores)
    both = dataclasses.replace(result, entries=[*result.of("front"), rule, fitted, *result.of("teacher")])
    assert [entries for *_, entries in charts.preset_families(both)] == [[rule, fitted]]
    data = report_content(both)
    assert [e["hollow"] for e in data["entries"]] == [False] * 4 + [True, False]
    assert data["entries"][3]["family"] == data["entries"][4]["family"] == 0
    assert "3 best of them and 1 published rule were" in data["summary"][1]
    alone = dataclasses.replace(both, entries=[e for e in both.entries if e is not fitted])
    assert charts.pareto_png(both) != charts.pareto_png(alone)


def test_heatmap_shows_the_plan(result):
    forecast = next(e for e in result.entries if e.name.startswith("TaylorSeer"))
    orange = np.array([0xE6, 0x9F, 0x00])
    with_forecast, without = (picture(heatmap.heatmap_png(e)).astype(int) for e in (forecast, result.entries[0]))
    assert (np.abs(with_forecast - orange).sum(axis=2) < 10).sum() > 1000
    assert (np.abs(without - orange).sum(axis=2) < 10).sum() == 0


def test_grids_show_every_prompt(result):
    for png in (pictures.grid_png(result, result.entries[0]), pictures.overview_png(result)):
        assert picture(png).shape[1] > 100 * len(result.shown)


@pytest.mark.parametrize(
    "objectives", [["psnr", "latency"], ["ssim", "memory", "macs"], ["drift", "psnr"], ["macs", "latency"]]
)
def test_any_objectives_have_a_chart(result, objectives):
    other = dataclasses.replace(result, objectives=objectives)
    assert picture(charts.pareto_png(other)).shape[1] >= 900


@pytest.mark.parametrize("roles", [("teacher",), ("preset", "teacher"), ("front", "teacher")])
def test_a_search_that_found_little_still_has_figures(result, roles):
    few = dataclasses.replace(result, entries=[e for e in result.entries if e.role in roles], points=[])
    for png in (charts.pareto_png(few), pictures.overview_png(few)):
        assert picture(png).std() > 1


def test_a_score_that_is_not_finite_hides_nothing_else(result):
    broken = copy.copy(result.entries[3])
    broken.held_out = broken.held_out | {"drift": Score(float("nan"))}
    other = dataclasses.replace(result, entries=[*result.entries[:3], broken, *result.entries[4:]])
    assert (np.abs(picture(charts.pareto_png(other)).astype(int) - [0x00, 0x72, 0xB2]).sum(axis=2) < 30).sum() > 500


def test_the_overview_holds_the_recommended_schedule(result, monkeypatch):
    rows = []
    monkeypatch.setattr(pictures, "rows_png", lambda given, *_: rows.extend(given))
    for entry in result.of("front"):
        pictures.overview_png(dataclasses.replace(result, recommended=entry.name), most=2)
    marked = [head for head, _, mark in rows if mark]
    assert marked == [pictures._row_label(e) for e in result.of("front")]


def test_small_pictures_are_enlarged_by_a_whole_factor():
    small = np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3)
    assert np.array_equal(pictures._enlarged(small, 128)[::2, ::2], small)
    assert pictures._enlarged(np.zeros((512, 1024, 3), np.uint8), 192).shape == (96, 192, 3)


def test_long_prompts_stay_above_their_picture():
    text = pictures._wrapped("a very long prompt " * 20, 18)
    assert text.count("\n") == 2 and max(map(len, text.split("\n"))) <= 18 and text.endswith("…")
    assert pictures._wrapped("red apple, flat style", 18) == "red apple,\nflat style"


def test_a_heatmap_of_a_big_model_fits_a_page():
    tree = {"class": "PixArtTransformer2DModel", "stacks": {"transformer_blocks": 28}}
    rules = [["transformer_blocks.*:attn2", "C*5 (CRRRR)*19"], ["transformer_blocks.[3-5]", "C S*99"]]
    big = Schedule.from_dict({"format": "schedule/1", "model": tree, "steps": 100, "plan": {"rules": rules}})
    height, width, _ = picture(heatmap.heatmap_png(Entry("big", "front", big, {}, {}))).shape
    assert height < 1200 and width < 2000
    off = Schedule.from_dict({"format": "schedule/1", "model": tree})
    assert picture(heatmap.heatmap_png(Entry("off", "teacher", off, {}, {}))).std() > 1


def test_labels_cover_neither_points_nor_each_other():
    ax = Figure(figsize=(6, 4)).add_subplot()
    ax.set_xlim(0, 10), ax.set_ylim(0, 10)
    labels, spots = LabelPlacer(ax), [(5 + 0.3 * i, 5 + 0.2 * (i % 3)) for i in range(8)]
    labels.keep_free(spots)
    for spot in spots:
        labels.write(spot, "N=3", (8, 13, 19, 26), color="k", fontsize=8)
    boxes = labels.taken
    assert len(boxes) == 16
    assert all(a.count_overlaps([b]) == 0 for i, a in enumerate(boxes) for b in boxes[max(i + 1, 8) :])


def test_a_label_without_a_free_place_is_left_out_unless_it_must_be_there():
    ax = Figure(figsize=(2, 2)).add_subplot()
    labels = LabelPlacer(ax)
    labels.keep_free([(x, y) for x in np.linspace(0, 1, 20) for y in np.linspace(0, 1, 20)])
    labels.write((0.5, 0.5), "N=3", (8, 13), required=False, color="k")
    assert len(ax.texts) == 0
    labels.write((0.5, 0.5), "N=3", (8, 13), color="k")
    assert len(ax.texts) == 1


def test_a_preset_without_pictures_is_refused(result):
    bare = dataclasses.replace(result.of("preset")[0], images=None)
    with pytest.raises(ValueError, match="'FORA N=2' has no pictures to show"):
        pictures.grid_png(result, bare)
