"""What people look at, in headless Chromium: MLflow's saved view, run page and artifacts."""

import contextlib
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from search import promote
from search.figures.charts import pareto_png
from search.figures.pictures import grid_png
from search.figures.report.page import report_page
from search.tracking import store, writing
from tests.helpers.browser import CHROMIUM, opened
from tests.helpers.finished_search import made_result
from tests.helpers.mlflow_server import served

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium; apt-get install chromium to look at the pages"),
]
# MLflow opens its assistant over the page when it sees a browser for the first time.
QUIET = """localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true');
localStorage.setItem('mlflow.assistant.panelOpen_v1', 'false')"""


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    result = made_result(tmp_path_factory.mktemp("browser") / "runs")
    figures = result.folder / "figures"
    (figures / "report.html").write_text(report_page(result), encoding="utf-8")
    (figures / "pareto.png").write_bytes(pareto_png(result))
    (figures / "grids" / "01.png").write_bytes(grid_png(result, result.entries[1]))
    return result


@pytest.fixture(scope="module")
def ui(result):
    """The logged result's links, and the address of an MLflow UI on its store, begun by what is printed."""
    root = result.folder.parent
    found = writing.log_result(result, root)
    promote(runs=root)
    words = store.ui_command(Path("runs")).split()
    with served(words[: words.index("--port")], root.parent) as address:
        yield found, address


@contextlib.contextmanager
def looked_at(url, tmp_path):
    """The page without MLflow's assistant."""
    with opened("about:blank", tmp_path / "profile") as page:
        page.call("Page.enable")
        page.call("Page.addScriptToEvaluateOnNewDocument", source=QUIET)
        page.call("Page.navigate", url=url)
        yield page


def unfolded(page):
    """Click on what shows the whole description."""
    page.wait("[...document.querySelectorAll('button')].some(b => b.innerText.includes('Show more'))")
    page.value("[...document.querySelectorAll('button')].find(b => b.innerText.includes('Show more')).click()")


def drawn(page, path):
    """Wait until an image whose address has these words is there with all its pixels; its width."""
    image = f"[...document.images].find(i => decodeURIComponent(i.src).includes({path!r}) && i.naturalWidth > 1)"
    page.wait(f"!!{image}")
    return page.value(f"{image}.naturalWidth")


def colours(path):
    """How many colours that are no grey a screenshot has."""
    pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3).astype(int)
    return len(np.unique(pixels[np.ptp(pixels, axis=1) > 60] // 32, axis=0))


def is_painted(page, path):
    """Whether the front is on the page, with pixels of its colour; pictures are painted some time after they came."""
    for _ in range(100):
        if blue(page.screenshot(path)) > 300:
            return True
        time.sleep(0.1)
    return False


def blue(path):
    """How many pixels have the colour of the front."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    return (np.abs(pixels - [0x00, 0x72, 0xB2]).sum(axis=2) < 30).sum()


def test_the_saved_view_shows_the_front_beside_the_presets(ui, tmp_path):
    found, server = ui
    with looked_at(f"{server}/{found['view']}", tmp_path) as page:
        page.wait("document.querySelectorAll('.scatterlayer .point').length >= 6")
        page.wait("document.body.innerText.includes('Parallel Coordinates')")
        text = page.value("document.body.innerText")
        for words in ("front and presets", "2.0× · drift 0.040", "FORA N=2", "teacher", "macs vs. drift"):
            assert words in text
        assert "6 matching runs" in " ".join(text.split())  # the search itself is no point of the chart
        assert colours(page.screenshot(tmp_path / "view.png")) > 5


def test_the_pictures_are_in_the_saved_view(ui, tmp_path):
    found, server = ui
    with looked_at(f"{server}/{found['view']}", tmp_path) as page:
        page.call("Emulation.setDeviceMetricsOverride", width=1700, height=1500, deviceScaleFactor=1, mobile=False)
        page.wait("document.body.innerText.includes('held-out pictures, before and after')")
        assert drawn(page, "images/before and after+step+0") > 0
        assert "GenAI" in page.value("document.body.innerText")  # the switch is there, on the other side
        assert page.value("location.href.includes('workflowType=machine_learning')")
        page.screenshot(tmp_path / "pictures.png")


def test_the_run_page_says_what_was_found_and_how_to_apply_it(ui, tmp_path):
    found, server = ui
    with looked_at(f"{server}/{found['page']}", tmp_path) as page:
        page.wait("document.body.innerText.includes('Recommended: 2.0× · drift 0.040')")
        unfolded(page)
        assert drawn(page, "get-artifact?path=figures/pareto.png") == 990
        text = " ".join(page.value("document.body.innerText").split())
        for words in (
            "60 cache schedules for tiny were evaluated.",
            "prompts, calibration",
            "python -m search.export run=2026-01-02_030405_cache_tiny out=schedule.json",
            'Schedule.load("schedule.json").apply(pipe)',
            "FORA N=2 preset",
        ):
            assert words in text
        assert is_painted(page, tmp_path / "run.png")
        for link, words in (("All schedules as charts.", "front and presets"), ("registered", "Version 1")):
            href = page.value(f"[...document.querySelectorAll('a')].find(a => a.innerText == {link!r})?.href")
            assert href.startswith(f"{server}/#/")
            with looked_at(href, tmp_path / words) as other:
                other.wait(f"document.body.innerText.includes({words!r})")


def test_the_metrics_of_the_search_are_lines_over_generations(ui, tmp_path):
    found, server = ui
    url = f"{server}/#/experiments/{found['experiment_id']}/runs/{found['run_id']}/model-metrics"
    with looked_at(url, tmp_path) as page:
        page.wait("document.body.innerText.includes('hypervolume')")
        page.wait("document.querySelectorAll('.scatterlayer .js-line').length >= 3")
        assert "generation (3)" in " ".join(page.value("document.body.innerText").split())
        page.screenshot(tmp_path / "metrics.png")


def test_a_schedule_has_its_pictures_on_its_page(ui, tmp_path):
    found, server = ui
    with looked_at(f"{server}/{found['version']}", tmp_path) as page:
        page.wait("document.body.innerText.includes('2.0× · drift 0.040')")
        link = "[...document.querySelectorAll('a')].find(a => a.innerText.trim() == '2.0× · drift 0.040')?.href"
        page.call("Page.navigate", url=page.wait(link).partition("/artifacts")[0])  # the link opens its files
        page.wait("document.body.innerText.includes('on the front, recommended; cache for tiny')")
        unfolded(page)
        assert drawn(page, "get-artifact?path=pictures.png") > 300
        assert colours(page.screenshot(tmp_path / "schedule.png")) > 3


def test_the_registered_model_shows_its_aliases(ui, tmp_path):
    found, server = ui
    with looked_at(f"{server}/#/models/tiny-cache?workflowType=machine_learning", tmp_path) as page:
        page.wait("document.body.innerText.includes('Version 1')")
        page.wait("document.body.innerText.includes('production')")
        text = " ".join(page.value("document.body.innerText").split())
        assert "newest" in text and "python -m search.promote alias=production" in text
        page.screenshot(tmp_path / "model.png")


def test_the_report_is_drawn_among_the_artifacts(ui, tmp_path):
    found, server = ui
    url = f"{server}/#/experiments/{found['experiment_id']}/runs/{found['run_id']}/artifacts/figures/report.html"
    with opened(url, tmp_path / "profile") as page:
        end = time.monotonic() + 60
        while blue(page.screenshot(tmp_path / "artifact.png")) < 300:  # in a frame that the page may not look into
            assert time.monotonic() < end, page.value("document.body.innerText")
            time.sleep(0.5)
