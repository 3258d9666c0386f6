"""The report in headless Chromium, opened from disk: what a mouse, a finger, a keyboard and a screen reader get."""

import dataclasses
import json
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from search.figures.report.page import report_page as page_of
from tests.helpers.browser import CHROMIUM, Page, opened
from tests.helpers.finished_search import made_result

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium; apt-get install chromium to look at the pages"),
]
DESKTOP, PHONE = (1440, 1000, False), (390, 844, True)
HOSTILE = '<img src=x onerror="window.hacked=1"><b>bold</b></script><script>window.hacked=2</script>'
DRAWN = "document.querySelectorAll('#chart .scatterlayer .point').length >= 6"
POINT = """(() => {  // the middle of a point of the trace of this colour
  const mark = [...document.querySelectorAll('#chart .trace')].filter(t => t.innerHTML.includes('%s'))[0]
    .querySelectorAll('.point')[%d].getBoundingClientRect();
  return [mark.x + mark.width / 2, mark.y + mark.height / 2];
})()"""
FRONT = "rgb(0, 114, 178)"


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return made_result(tmp_path_factory.mktemp("report") / "runs")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with opened("about:blank", tmp_path_factory.mktemp("profile")) as page:
        for domain in ("Network", "Runtime", "Log", "Page"):
            page.call(f"{domain}.enable")
        yield page


@pytest.fixture
def show(browser, result, tmp_path):
    """Open a result's page from disk at a size; afterwards nothing was asked of a network and nothing complained."""

    def open_(size=DESKTOP, shown=result, fragment="") -> Page:
        file = tmp_path / "report.html"
        file.write_text(page_of(shown), encoding="utf-8")
        resize(browser, size)
        browser.call("Page.navigate", url="about:blank")  # so that a link to the same page opens it again
        browser.wait("location.href === 'about:blank'")
        browser.events.clear()
        browser.call("Page.navigate", url=file.as_uri() + fragment)
        browser.wait(f"document.readyState === 'complete' && {DRAWN}")
        return browser

    yield open_
    time.sleep(0.3)
    browser.value("1")  # takes the events that are still on their way
    asked = [e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"]
    assert [url[:60] for url in asked if not url.startswith(("file://", "data:"))] == []
    assert len([url for url in asked if url.startswith("file://")]) == 1
    assert [e["params"] for e in browser.events if e["method"] in ("Runtime.exceptionThrown", "Log.entryAdded")] == []
    assert [e["params"] for e in browser.events if e["method"] == "Runtime.consoleAPICalled"] == []


def resize(page: Page, size: tuple[int, int, bool]) -> None:
    width, height, mobile = size
    page.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)
    page.call("Emulation.setTouchEmulationEnabled", enabled=mobile, maxTouchPoints=1)


def click(page: Page, x: float, y: float) -> None:
    for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
        more = {} if kind == "mouseMoved" else {"button": "left", "clickCount": 1}
        page.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)
        time.sleep(0.1)


def tap(page: Page, x: float, y: float) -> None:
    page.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
    page.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])


def press(page: Page, key: str, code: int) -> None:
    text = {"text": "\r"} if key == "Enter" else {}
    for kind in ("keyDown", "keyUp"):
        page.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **text)


def name(page: Page) -> str:
    return page.value("document.getElementById('name').textContent")


def blue(picture: Path) -> int:
    """How many pixels have the colour of the front."""
    pixels = np.asarray(Image.open(picture).convert("RGB")).astype(int)
    return int((np.abs(pixels - [0x00, 0x72, 0xB2]).sum(axis=2) < 30).sum())


def scroll_to(page: Page, what: str) -> None:
    page.value(f"document.querySelector('{what}').scrollIntoView({{behavior: 'instant', block: 'center'}})")
    time.sleep(0.3)


def test_the_recommended_schedule_is_shown_first(show, result, tmp_path):
    page = show()
    assert name(page) == result.recommended
    assert page.value("[...document.querySelectorAll('#pictures img')].every(i => i.complete && i.naturalWidth === 16)")
    assert page.value("document.querySelectorAll('#pictures img').length") == 12
    caption = page.value("document.querySelector('#pictures figcaption').textContent")
    assert caption == "worst run: psnr 34 dB, blue boat, flat style"
    assert page.value("document.querySelectorAll('#table tbody tr').length") == 6
    assert blue(page.screenshot(tmp_path / "page.png")) > 3000  # the front and the plan are drawn


def test_a_click_on_a_point_shows_its_plan_and_pictures(show, result):
    page = show()
    before = page.value("document.querySelector('#plan svg').outerHTML")
    source = page.value("document.querySelectorAll('#pictures img')[1].src")
    click(page, *page.value(POINT % (FRONT, 0)))
    page.wait(f"document.getElementById('name').textContent === '{result.entries[0].name}'", 10)
    assert page.value("document.querySelector('#plan svg').outerHTML") != before
    assert page.value("document.querySelectorAll('#pictures img')[1].src") != source
    assert page.value("document.getElementById('export').textContent").endswith(
        "'pick=3.0× · drift 0.120' out=schedule.json"
    )
    assert page.value("location.hash.slice(1)") == result.entries[0].schedule.digest.removeprefix("sha256:")[:12]


def test_a_tap_on_a_phone_shows_it_too_and_nothing_is_wider_than_the_screen(show, result):
    page = show(PHONE)
    assert page.value("[document.documentElement.scrollWidth, innerWidth]") == [390, 390]
    scroll_to(page, "#chart")
    tap(page, *page.value(POINT % (FRONT, 0)))
    page.wait(f"document.getElementById('name').textContent === '{result.entries[0].name}'", 10)
    assert page.value("document.documentElement.scrollWidth") == 390
    least = page.value(
        "Math.min(...[...document.querySelectorAll('button, select')].map(e => e.getBoundingClientRect().height))"
    )
    assert least >= 24  # CSS pixels: the smallest target of WCAG 2.2


def test_a_finger_on_the_chart_scrolls_the_page(show):
    page = show(PHONE)
    scroll_to(page, "#chart")
    before = page.value("scrollY")
    page.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": 200, "y": 420}])
    for y in (380, 330, 280, 220):
        page.call("Input.dispatchTouchEvent", type="touchMove", touchPoints=[{"x": 200, "y": y}])
        time.sleep(0.05)
    page.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
    page.wait(f"scrollY > {before} + 100", 10)


def test_a_schedule_is_chosen_by_keyboard_alone(show, result):
    page = show()
    page.value("document.getElementById('next').focus()")
    press(page, "Enter", 13)
    assert name(page) == result.entries[2].name
    page.value("document.querySelectorAll('#table tbody button')[4].focus()")
    outline = page.value("getComputedStyle(document.activeElement).outlineStyle")
    press(page, "Enter", 13)
    assert name(page) == result.entries[4].name and outline == "solid"
    assert page.value("document.querySelectorAll('#table [aria-pressed=true]').length") == 1
    assert page.value("document.getElementById('chosen').textContent").startswith("Chosen: TaylorSeer N=3 O=1")
    reached = []
    page.value("document.body.focus(); document.activeElement.blur()")
    for _ in range(60):
        press(page, "Tab", 9)
        reached.append(page.value("document.activeElement.id || document.activeElement.textContent"))
    assert {"x", "y", "previous", "next", "FORA N=2", "teacher", "Copy command"} <= set(reached)


def test_the_axes_can_be_changed(show, result):
    page = show()
    for name_, value in (("x", "latency"), ("y", "psnr")):
        page.value(
            f"var e = document.getElementById('{name_}'); e.value = '{value}'; e.dispatchEvent(new Event('change'))"
        )
    drawn = page.value("document.getElementById('chart').data.find(t => t.group === 'front')")
    front = sorted(result.of("front"), key=lambda e: e.held_out["latency"].value)
    assert drawn["x"] == [e.held_out["latency"].value for e in front]
    assert drawn["y"] == [e.held_out["psnr"].value for e in front]
    for axis, score in (("error_x", "latency"), ("error_y", "psnr")):
        known = [e.held_out[score] for e in front]
        assert np.allclose(drawn[axis]["array"], [k.high - k.value for k in known])
        assert np.allclose(drawn[axis]["arrayminus"], [k.value - k.low for k in known])
    assert "PSNR against the teacher" in page.value("document.querySelector('#chart .ytitle').textContent")


def test_the_table_is_sorted_by_any_column(show, result):
    page = show()
    names = "[...document.querySelectorAll('#table tbody button')].map(b => b.textContent)"
    for falling in (False, True):
        page.value(
            "[...document.querySelectorAll('#table th button')].find(b => b.textContent.startsWith('drift')).click()"
        )
        order = sorted(result.entries, key=lambda e: e.held_out["drift"].value, reverse=falling)
        assert page.value(names) == [e.name for e in order]
        assert page.value(
            "document.querySelector('#table [aria-sort=ascending], #table [aria-sort=descending]').ariaSort"
        ) == ("descending" if falling else "ascending")


def test_a_family_can_be_hidden(show):
    page = show()
    page.value("document.querySelectorAll('#legend input')[1].click()")
    assert page.value("document.getElementById('chart').data.filter(t => t.visible === false).map(t => t.group)") == [
        "family 0"
    ]


def test_a_link_opens_its_schedule(show, result):
    digest = result.entries[4].schedule.digest
    for fragment in (f"#{digest.removeprefix('sha256:')[:12]}", f"#{digest}"):
        assert name(show(fragment=fragment)) == result.entries[4].name
    assert name(show(fragment="#nothing-like-it")) == result.recommended


def test_a_hostile_name_stays_text(show, result):
    entries = [dataclasses.replace(e, name=f"{e.name} {HOSTILE}") for e in result.entries]
    bad = dataclasses.replace(
        result, entries=entries, model=HOSTILE, space=HOSTILE, recommended=entries[1].name, shown=[HOSTILE] * 3,
        prompts={HOSTILE: [HOSTILE]}, environment={HOSTILE: HOSTILE}, notes=[HOSTILE],
    )  # fmt: skip
    page = show(shown=bad)
    x, y = page.value(POINT % (FRONT, 0))
    click(page, x, y)
    page.wait("document.querySelector('.hoverlayer').textContent.includes('<img src=x')", 10)
    assert page.value("document.querySelector('.hoverlayer').textContent.includes('<b>bold</b>')")
    assert name(page) == entries[0].name
    assert page.value("window.hacked === undefined && !document.querySelector('img:not([src^=\"data:\"])')")
    assert page.value("document.querySelectorAll('script').length") == 3


def tried(page: Page, scheme: str) -> set[str]:
    """Requests that the page has made of a scheme."""
    sent = [e["params"] for e in page.events if e["method"] == "Network.requestWillBeSent"]
    return {e["requestId"] for e in sent if e["request"]["url"].startswith(scheme)}


def test_a_script_that_got_in_would_not_run(browser, result, tmp_path):
    """The second line of defence: the page's policy, with a hole made on purpose."""
    file = tmp_path / "report.html"
    hole = '<img src="x" onerror="window.hacked=1"><script>window.hacked=2</script><img src="http://127.0.0.1:9/x">'
    file.write_text(page_of(result).replace("<header>", f"<header>{hole}"), encoding="utf-8")
    browser.events.clear()
    browser.call("Page.navigate", url=file.as_uri())
    browser.wait(DRAWN)
    assert browser.value("window.hacked") is None
    (failed,) = [
        e["params"]
        for e in browser.events
        if e["method"] == "Network.loadingFailed" and e["params"]["requestId"] in tried(browser, "http")
    ]
    assert failed["blockedReason"] == "csp"


@pytest.mark.skipif(find_spec("axe_core_python") is None, reason="no axe-core; pip install axe-core-python")
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_axe_finds_nothing(show, size):
    page = show(size)
    found = find_spec("axe_core_python")
    page.value(Path(found.origin).with_name("axe.min.js").read_text(encoding="utf-8") + "; 1")
    page.value("document.querySelectorAll('details').forEach(d => { d.open = true })")
    report = page.value("axe.run().then(r => ({bad: r.violations, good: r.passes.length}))")
    assert [(v["id"], [n["html"][:200] for n in v["nodes"]]) for v in report["bad"]] == []
    assert report["good"] > 20


def test_it_is_drawn_in_a_sandboxed_frame(browser, result, tmp_path):
    """As viewers of artifacts show it: no address of its own, no clipboard, no storage."""
    resize(browser, DESKTOP)
    browser.call("Page.navigate", url="about:blank")
    browser.wait("location.href === 'about:blank'")
    browser.events.clear()
    browser.value(
        f"const html = {json.dumps(page_of(result))}, frame = document.createElement('iframe');"
        "frame.sandbox = 'allow-scripts'; frame.width = 1400; frame.height = 950;"
        "frame.src = URL.createObjectURL(new Blob([html], {type: 'text/html'})); document.body.append(frame); 1"
    )
    end = time.monotonic() + 60
    while blue(browser.screenshot(tmp_path / "frame.png")) < 3000:
        assert time.monotonic() < end
        time.sleep(0.5)
    assert [e for e in browser.events if e["method"] == "Runtime.exceptionThrown"] == []


def test_it_prints_on_pages(show):
    page = show()
    pdf = page.call("Page.printToPDF", printBackground=True)["data"]
    assert len(pdf) > 20_000
