"""The documentation is complete: every command, folder, example and word is where a reader looks for it."""

import re
import tomllib
from itertools import pairwise

from tests.helpers.pages import PAGES, Page
from tests.helpers.repository import ROOT


def folders() -> list[str]:
    """The folders with code, as they are imported: `loop`, `schedule/plan`, `spaces`."""
    below = [path.parent.relative_to(ROOT / "search") for path in (ROOT / "search").rglob("__init__.py")]
    inside = [str(path) for path in below if str(path) != "." and "training" not in path.parts]
    return sorted([*inside, "spaces", "objectives", "kernels", "conf"])


def commands() -> list[str]:
    """The modules at the top of search/ that can be typed."""
    files = sorted((ROOT / "search").glob("*.py"))
    return [file.stem for file in files if file.read_text("utf-8").startswith(f'"""python -m search.{file.stem}')]


def test_the_readme_is_short():
    text = PAGES[0].text
    assert len(text.splitlines()) <= 100
    assert len(text.split()) <= 900


def test_every_page_of_docs_is_in_the_navigation_or_linked():
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = [str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")]
    assert [page for page in sorted(pages) if f": {page}\n" not in nav + "\n"] == []


def test_every_command_is_on_the_page_of_commands():
    text = Page("docs/commands.md").text
    assert len(commands()) >= 9
    assert [name for name in commands() if f"python -m search.{name}" not in text] == []


def test_every_folder_is_on_the_architecture_page_and_its_picture():
    picture = (ROOT / "docs" / "images" / "architecture.svg").read_text(encoding="utf-8")
    for text in (Page("docs/architecture.md").text, picture):
        assert [name for name in folders() if f"{name.rpartition('/')[2]}/" not in text] == []


def test_the_architecture_page_names_no_folder_that_is_not_there():
    named = re.findall(r"`search/(\w+)/`", Page("docs/architecture.md").text)
    assert len(named) > 10
    assert [name for name in named if not (ROOT / "search" / name).is_dir()] == []


def test_the_picture_has_the_layers_that_imports_are_checked_against():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    (layers,) = [contract["layers"] for contract in settings["contracts"] if contract["type"] == "layers"]
    picture = (ROOT / "docs" / "images" / "architecture.svg").read_text(encoding="utf-8")
    rows = [re.findall(r"search\.(\w+)", layer) for layer in layers]
    places = [{picture.find(f">{name}/<") for name in row if (ROOT / "search" / name).is_dir()} for row in rows]
    places = [found - {-1} for found in places if found - {-1}]
    assert len(places) > 8
    assert all(max(above) < min(below) for above, below in pairwise(places))


def test_every_option_of_a_group_is_on_the_page_that_helps_to_choose():
    text = Page("docs/choose.md").text
    for group in ("space", "engine", "objective", "model", "experiment"):
        options = [path.stem for path in (ROOT / "conf" / group).glob("*.yaml")]
        missing = [name for name in sorted(options) if f"`{name}`" not in text and f"={name}`" not in text]
        assert missing == [], group


def test_the_glossary_is_in_alphabetical_order():
    words = re.findall(r"^\| \*\*(.+?)\*\*", Page("docs/glossary.md").text, re.M)
    assert len(words) > 40
    assert words == sorted(words, key=str.lower)


def test_messages_on_the_page_for_them_are_those_of_the_code():
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "search").rglob("*.py"))
    rows = re.findall(r"^\| (`.+?) \|", Page("docs/troubleshooting.md").text, re.M)
    said = [part.strip(" ,") for row in rows for span in re.findall("`(.+?)`", row) for part in span.split("…")]
    assert len(said) > 7
    assert [part for part in said if part not in code] == []
