"""The documentation site: it builds without a warning, and is read from files without a network."""

import re
import subprocess
import sys

import pytest

from tests.helpers.browser import CHROMIUM, opened
from tests.helpers.repository import ROOT

pytest.importorskip("material", reason='needs the documentation tools: pip install -e ".[docs]"')
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


def test_nothing_is_fetched_from_elsewhere(site):
    loaded = re.compile(r"""<(?:script|img|iframe|source)[^>]*\ssrc="?(?:https?:)?//|<link[^>]*href="?https?://""")
    for page in site.rglob("*.html"):
        assert not loaded.search(page.read_text(encoding="utf-8")), page
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(\s*['\"]?(?:https?:)?//", style.read_text(encoding="utf-8")), style


def test_help_texts_and_docstrings_are_in_it(site):
    commands = (site / "commands.html").read_text(encoding="utf-8")
    assert "python -m search.budget: the best schedule of a finished search" in commands
    api = (site / "api.html").read_text(encoding="utf-8")
    for name in ("search.schedule.Schedule.apply", "search.spaces.base.Space.decode", "search.engines.base.Engine.ask"):
        assert f'id="{name}"' in api, name
    assert (site / "schedule-1.schema.json").stat().st_size > 10_000


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium; apt-get install chromium to look at the pages")
def test_pages_and_search_work_from_files(site, tmp_path):
    with opened("about:blank", tmp_path / "profile") as page:
        for domain in ("Network", "Runtime", "Log", "Page"):
            page.call(f"{domain}.enable")
        page.call("Page.navigate", url=(site / "index.html").as_uri() + "?q=hypervolume")
        page.wait("document.querySelectorAll('.md-search-result__item').length > 3")
        for name in ("format", "architecture", "api"):
            page.call("Page.navigate", url=(site / f"{name}.html").as_uri())
            page.wait(f"document.readyState === 'complete' && location.pathname.endsWith('{name}.html')")
            assert page.value("[...document.images].every(i => i.complete && i.naturalWidth)")
            assert page.value("document.documentElement.scrollWidth <= innerWidth")
        asked = [e["params"]["request"]["url"] for e in page.events if e["method"] == "Network.requestWillBeSent"]
        assert all(url.startswith(("file:", "data:", "blob:", "about:")) for url in asked)
        complaints = [e for e in page.events if e["method"] in ("Runtime.exceptionThrown", "Log.entryAdded")]
        assert not complaints, complaints[:2]
