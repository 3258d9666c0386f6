"""What people look at, in headless Chromium: MLflow's saved view, and the chart that needs no network."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from search import figures, tracking
from tests.browser import CHROMIUM, opened
from tests.results import made_result

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium; apt-get install chromium to look at the pages"),
]


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    result = made_result(tmp_path_factory.mktemp("browser") / "runs")
    (result.folder / "figures" / "pareto.html").write_text(figures.pareto_html(result), encoding="utf-8")
    return result


@pytest.fixture(scope="module")
def ui(result):
    """The logged result's links, and the address of an MLflow UI on its store."""
    root = result.folder.parent
    found = tracking.log(result, root)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    words = tracking.ui_command(Path("runs")).replace(f"--port {tracking.PORT}", f"--port {port} --workers 1").split()
    program = Path(sys.executable).with_name(words[0])
    log = (root / "ui.log").open("w")
    environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"}
    process = subprocess.Popen(
        [program, *words[1:]], cwd=root.parent, stdout=log, stderr=log, env=environment, start_new_session=True
    )
    try:
        _wait_for(f"http://127.0.0.1:{port}/health", process, root / "ui.log")
        yield found, f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, 15)
        process.wait(30)


def _wait_for(url, process, log):
    end = time.monotonic() + 120
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            assert process.poll() is None, log.read_text()
            time.sleep(0.5)
    raise TimeoutError(log.read_text())


def colours(path):
    """How many colours that are no grey a screenshot has."""
    pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3).astype(int)
    return len(np.unique(pixels[np.ptp(pixels, axis=1) > 60] // 32, axis=0))


def blue(path):
    """How many pixels have the colour of the front."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    return (np.abs(pixels - [0x00, 0x72, 0xB2]).sum(axis=2) < 30).sum()


def test_the_saved_view_shows_the_front_beside_the_presets(ui, tmp_path):
    found, server = ui
    with opened(f"{server}/{found['view']}", tmp_path / "profile") as page:
        page.wait("document.querySelectorAll('.scatterlayer .point').length >= 6")
        page.wait("document.body.innerText.includes('Parallel Coordinates')")
        text = page.value("document.body.innerText")
        for words in ("front and presets", "2.0× · drift 0.040", "FORA N=2", "teacher", "macs vs. drift"):
            assert words in text
        assert "6 matching runs" in " ".join(text.split())  # the search itself is no point of the chart
        assert colours(page.screenshot(tmp_path / "view.png")) > 5


def test_the_run_page_says_what_was_found_and_how_to_apply_it(ui, tmp_path):
    found, server = ui
    url = f"{server}/#/experiments/{found['experiment_id']}/runs/{found['run_id']}"
    with opened(url, tmp_path / "profile") as page:
        page.wait("document.body.innerText.includes('cache schedules for tiny')")
        text = page.value("document.body.innerText")
        for words in ("Recommended: 2.0× · drift 0.040", "prompts, calibration", "python -m search.export run=2026"):
            assert words in " ".join(text.split())


def test_the_front_is_drawn_among_the_artifacts(ui, tmp_path):
    found, server = ui
    url = f"{server}/#/experiments/{found['experiment_id']}/runs/{found['run_id']}/artifacts/figures/pareto.html"
    with opened(url, tmp_path / "profile") as page:
        end = time.monotonic() + 60
        while blue(page.screenshot(tmp_path / "artifact.png")) < 300:  # in a frame that the page may not look into
            assert time.monotonic() < end, page.value("document.body.innerText")
            time.sleep(0.5)


def test_the_front_page_is_drawn_without_a_network(result, tmp_path):
    with opened((result.folder / "figures" / "pareto.html").as_uri(), tmp_path / "profile") as page:
        page.wait("document.querySelectorAll('.scatterlayer .point').length >= 6")
        text = page.value("document.querySelector('.main-svg').parentElement.textContent")
        for words in ("FORA", "searched front", "recommended: 2.0× · drift 0.040", "3 held-out prompts"):
            assert words in text
        assert page.value("performance.getEntriesByType('resource').length") == 0
        assert colours(page.screenshot(tmp_path / "front.png")) > 3
