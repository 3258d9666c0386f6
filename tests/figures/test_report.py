"""The report's page and its data: every schedule, plan and picture, names as text only, one file."""

import base64
import copy
import dataclasses
import hashlib
import io
import json
import re
import shlex
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from search import Schedule, report
from search.export import main as export_main
from search.figures import charts, pictures
from search.figures.heatmap import Layout
from search.figures.report.content import report_content
from search.figures.report.encoded_pictures import MOST
from search.figures.report.page import report_page
from search.loop import entries
from search.report import main
from search.results.result import Entry, Result
from search.results.scores import Score
from search.results.usage import usage_snippet
from search.schedule.plan.notation import parse_notation
from search.schedule.plan.plan import Plan
from tests.helpers.finished_search import made_result

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>{{script}}&amp;\u2028"


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return made_result(tmp_path_factory.mktemp("runs"))


def data_of(html: str) -> dict:
    """The block of data as a browser reads it: up to the first tag that ends a script."""
    return json.loads(html.split('id="data">')[1].split("</script")[0])


def picture(url: str) -> np.ndarray:
    head, _, body = url.partition(",")
    assert head == "data:image/webp;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(body))).convert("RGB")).astype(int)


def test_the_page_holds_everything_about_every_schedule(result):
    data = data_of(report_page(result))
    assert [e["name"] for e in data["entries"]] == [e.name for e in result.entries]
    for shown, entry in zip(data["entries"], result.entries, strict=True):
        assert shown["digest"] == entry.schedule.digest
        for split in ("held_out", "calibration"):
            scores = getattr(entry, split)
            assert shown[split] == {name: [s.value, s.low, s.high] for name, s in scores.items()}
    assert data["entries"][int(np.argmax([e["id"] == data["recommended"] for e in data["entries"]]))]["name"] == (
        result.recommended
    )
    assert data["costs"] == ["macs", "latency", "memory", "speedup"] and data["qualities"] == ["drift", "psnr", "ssim"]
    assert (data["x"], data["y"]) == ("macs", "drift")
    assert len(data["points"]["drift"]) == len(result.points)
    assert [row["hypervolume"] for row in data["history"]] == [row["hypervolume"] for row in result.history]


def test_what_is_drawn_of_a_plan_is_the_plan(result):
    for entry in result.entries:
        plan = report_content(result)["entries"][result.number(entry)]["plan"]
        drawn = [letters for _, runs in plan["groups"] for count, letters, _ in runs for _ in range(count)]
        names, tokens = entry.schedule.table()
        rows = dict(zip(names, ("".join(t[0] for t in row) for row in tokens), strict=True))
        assert drawn == [rows[name] for name in Layout.of(entry.schedule).actions]
        tree, steps = entry.schedule.tree, entry.schedule.plan.steps
        typed = parse_notation(plan["notation"] or "off", tree, steps)
        assert Plan.resolve(typed, tree, steps).tokens == entry.schedule.plan.tokens


def test_any_number_of_steps_is_drawn_as_one():
    tree = {"class": "PixArtTransformer2DModel", "stacks": {"transformer_blocks": 4}}
    off = Schedule.from_dict({"format": "schedule/1", "model": tree})
    assert set(Layout.of(off).actions.values()) == {"C"}


def test_pictures_and_their_difference(result):
    ramp = np.linspace(0, 200, 64)[:, None, None] + np.linspace(0, 40, 64)[None, :, None] + np.zeros(3)
    entries = [
        dataclasses.replace(e, images=[(ramp + 3 * i).astype(np.uint8)] * 3) for i, e in enumerate(result.entries)
    ]
    data = report_content(dataclasses.replace(result, entries=entries))
    for i, shown in enumerate(data["entries"]):
        assert np.abs(picture(shown["pictures"]["own"][2]) - entries[i].images[2]).mean() < 3
        if i < 5:
            assert abs(picture(shown["pictures"]["difference"][0]).mean() - 4 * 3 * (5 - i)) < 3
    assert "difference" not in data["entries"][5]["pictures"]


def test_the_difference_is_four_times_as_large_and_clipped():
    a, b = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)
    by_hand = [min(255, 4 * abs(int(x) - int(y))) for x, y in zip(a.ravel(), b.ravel(), strict=True)]
    assert np.array_equal(pictures.difference(a, b).ravel(), by_hand)


def test_big_pictures_are_made_small_until_the_page_is(result):
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 255, (512, 512, 3)).astype(np.uint8) for _ in range(3)]
    big = dataclasses.replace(result, entries=[dataclasses.replace(e, images=noise) for e in result.entries])
    html = report_page(big)
    assert len(html.encode()) < 8_000_000
    urls = [u for e in data_of(html)["entries"] for many in e["pictures"].values() for u in many]
    assert 0.3 * MOST < sum(map(len, urls)) <= MOST


def test_pictures_are_kept_at_a_size_for_people():
    ramp = torch.linspace(0, 1, 1024)[None, None, :, None].expand(2, 3, 1024, 2048)
    small, large = entries.as_pictures(ramp[:, :, :64, :64]), entries.as_pictures(ramp)
    assert small[0].shape == (64, 64, 3) and large[1].shape == (512, 1024, 3)
    assert np.abs(large[0][:, 0, 0] / 255 - np.linspace(0, 1, 512)).max() < 0.004
    assert np.array_equal(small[0][:, 0, 0], (ramp[0, 0, :64, 0] * 255).round().byte().numpy())


def test_names_are_data_and_never_markup(result):
    entries = [dataclasses.replace(e, name=f"{e.name} {HOSTILE}") for e in result.entries]
    bad = dataclasses.replace(
        result, entries=entries, model=HOSTILE, space=HOSTILE, search_id=HOSTILE, recommended=entries[1].name,
        shown=[HOSTILE] * 3, prompts={HOSTILE: [HOSTILE]}, environment={HOSTILE: HOSTILE}, stopped=HOSTILE,
    )  # fmt: skip
    html, usual = report_page(bad), report_page(result)
    for text in ("<script", "</script", "<img", "<meta"):
        assert html.count(text) == usual.count(text)
    assert data_of(html)["entries"][0]["name"] == entries[0].name


def test_nothing_but_our_two_scripts_may_run(result):
    html = report_page(result)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)[1].replace("&#x27;", "'")
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts]
    assert len(digests) == 2 and all(f"'sha256-{digest}'" in policy for digest in digests)
    allowed = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert allowed["default-src"] == "'none'" and allowed["img-src"] == "data:"
    assert "unsafe" not in allowed["script-src"]
    ours = html.replace(scripts[0], "").replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r'(src|href)="(?!data:|#)', ours) and not re.search("https?:", ours)


def test_what_is_not_finite_is_left_out(result):
    broken = copy.copy(result.entries[3])
    broken.held_out = broken.held_out | {"drift": Score(float("nan"), float("-inf"), float("inf"))}
    other = dataclasses.replace(result, entries=[*result.entries[:3], broken, *result.entries[4:]])
    assert data_of(report_page(other))["entries"][3]["held_out"]["drift"] == [None, None, None]


def test_equal_schedules_have_links_of_their_own(result):
    twice = dataclasses.replace(result, entries=[*result.entries, dataclasses.replace(result.entries[-1])])
    ids = [e["id"] for e in report_content(twice)["entries"]]
    assert len(set(ids)) == 7 and ids[6] == f"{ids[5]}-2"


@pytest.mark.parametrize("roles", [("teacher",), ("preset", "teacher"), ("front", "teacher")])
def test_a_search_that_found_little_still_has_a_page(result, roles):
    few = dataclasses.replace(
        result, entries=[e for e in result.entries if e.role in roles], points=[], history=[], shown=[]
    )
    few.entries = [dataclasses.replace(e, images=None) for e in few.entries]
    data = data_of(report_page(few))
    assert len(data["entries"]) == len(few.entries) and data["points"] == {}
    if "front" not in roles:
        assert "No schedule of this search is better" in data["summary"][-1]


@pytest.mark.parametrize("objectives", [["psnr", "latency"], ["macs", "latency"], ["drift", "psnr"]])
def test_any_objectives_have_axes(result, objectives):
    data = report_content(dataclasses.replace(result, objectives=objectives))
    assert data["x"] in data["costs"] and data["y"] in data["qualities"]


def test_the_command_of_every_schedule_exports_it(result, tmp_path, monkeypatch, capsys):
    root = tmp_path / "elsewhere"
    shutil.copytree(result.folder, root / result.search_id)
    other = dataclasses.replace(result, folder=root / result.search_id, config={"runs": str(root)})
    monkeypatch.chdir(tmp_path)
    for entry, shown in zip(result.entries, report_content(other)["entries"], strict=True):
        python, m, module, *arguments = shlex.split(shown["export"])
        assert (python, m, module) == ("python", "-m", "search.export")
        assert export_main(arguments) == 0, capsys.readouterr().err
        assert Schedule.load(tmp_path / "schedule.json") == entry.schedule


def test_the_python_that_is_shown_is_python_whatever_a_denoiser_is_called():
    lines = usage_snippet('my "file".json', {"S": {"class": "X", "name": "small\nimport os; os.abort()"}})
    code = compile("\n".join(lines), "shown", "exec")
    assert "os" not in code.co_names
    assert 'Schedule.load("my \\"file\\".json")' in "\n".join(lines)
    assert 'models={"S": pipe_S}' in "\n".join(lines)


def test_the_command_writes_one_file(result, tmp_path, capsys):
    out = tmp_path / "new" / "page.html"
    assert main([f"run={result.search_id}", f"out={out}", f"runs={result.folder.parent}"]) == 0
    assert capsys.readouterr().out.strip().endswith(str(out))
    assert data_of(out.read_text(encoding="utf-8"))["search"] == result.search_id
    assert main(["run=nope", f"runs={result.folder.parent}"]) == 2
    assert "there are: 2026-01-02" in capsys.readouterr().err


def test_from_the_run_folder_alone_the_page_is_the_same(result, tmp_path):
    again = report(run=result.search_id, out=tmp_path / "page.html", runs=result.folder.parent)
    loaded = Result.load(result.folder)
    assert data_of(again.read_text(encoding="utf-8")) == data_of(report_page(result)) == data_of(report_page(loaded))


def test_a_result_displays_in_a_notebook(result):
    bad = dataclasses.replace(result, entries=[dataclasses.replace(result.entries[0], name=HOSTILE)])
    assert "<script" not in bad._repr_html_() and "onerror=alert(2)&gt;" in bad._repr_html_()
    (result.folder / "figures" / "pareto.png").write_bytes(b"\x89PNG")
    shown = result._repr_html_()
    assert shown.count("<tr>") == 7 and "data:image/png;base64,iVBORw" in shown and "FORA N=2" in shown


def test_families_have_marks_of_their_own(result):
    names = [f"Rule{letter} N={i}" for letter in "ABCDEFGHIJKL" for i in (2, 3)]
    presets = [Entry(name, "preset", result.entries[0].schedule, {}, {}) for name in names]
    found = list(charts.preset_families(dataclasses.replace(result, entries=presets)))
    assert len({mark for _, _, mark, _ in found}) == len(found) == 12
    assert all(len(entries) == 2 for *_, entries in found)


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("FORA N=2", ("FORA", "N=2")),
        ("TaylorSeer N=3 O=1", ("TaylorSeer", "N=3 O=1")),
        ("SCM ultra", ("SCM", "ultra")),
        ("10 steps", ("fewer steps", "10")),
        ("1 step", ("fewer steps", "1")),
        ("uniform, 10 steps", ("uniform", "10 steps")),
        ("TeaCache 0.25", ("TeaCache", "0.25")),
        ("step caching N=4", ("step caching", "N=4")),
        ("MixDQ-like: text and ff W4, rest W8", ("MixDQ-like", "text and ff W4, rest W8")),
        ("PAB", ("PAB", "")),
        ("PAB, fitted", ("PAB", "")),
        ("10 steps, fitted", ("fewer steps", "10")),
        ("FORA N=2, fitted", ("FORA", "N=2")),
    ],
)
def test_families_of_presets(name, family):
    assert charts._family(name) == family
