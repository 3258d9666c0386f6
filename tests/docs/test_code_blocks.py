"""What the pages show works: Python runs as printed, commands are accepted as typed, files and links are there."""

import doctest
import importlib
import json
import pkgutil
import re
import shlex
import tomllib
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import yaml

from search import Schedule
from search.loop.held_out import MOST_ON_FRONT
from tests.helpers.pages import EXAMPLES, PAGES, Page
from tests.helpers.repository import ROOT
from tests.helpers.short_report import short_report

LANGUAGES = {"bash", "json", "python", "text", "yaml"}
PLACEHOLDERS = re.compile(r"NAME|RUN|<[a-z]|…|\.\.\.|search\.x\b")
README = PAGES[0]


def by_page(wanted: Callable[[Page], Any]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("page", [page for page in PAGES if wanted(page)], ids=str)


@by_page(lambda page: page.blocks)
def test_every_block_says_its_language(page):
    assert {block.language for block in page.blocks} <= LANGUAGES


@by_page(lambda page: page.links)
def test_pictures_and_links_are_there(page):
    for link in page.links:
        assert (page.path.parent / link).exists(), link


# Python


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A folder with what pages name by its path: the repository's folders, and a schedule of the bundled PixArt."""
    for name in ("search", "docs", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def schedule(folder) -> Schedule:
    from search.testing.models import pixart

    model = pixart()
    parts = {"plan": {"rules": [["transformer_blocks.*:*", "(CR)*10"]]}}
    monitor = {"runs": 32, "steps": [1], "mean": [0.0], "spread": [1.0], "limit": [50.0]}
    certificate = {"criterion": "psnr>=30", "share": 0.9, "confidence": 0.95, "runs": 32, "misses": 0, "prompts": 32}
    certificate |= {"noises": 1, "population": "a new prompt of this kind with new noise", "monitor": monitor}
    made = Schedule.from_dict(model.target.schedule(parts)).with_made({"call": dict(model.arguments)})
    made = made.with_certificate(certificate)
    made.save(folder / "schedule.json")
    return made


def one_picture(names: dict[str, Any], schedule: Schedule) -> None:
    assert names["image"].size == (64, 64)
    assert names["schedule"].digest == schedule.digest


def notebook(names: dict[str, Any], schedule: Schedule) -> None:
    assert names["image"].size == (64, 64)
    assert names["choice"].schedule == names["choice"].schedule
    assert "<" in names["result"]._repr_html_() and names["explanation"]._repr_png_()[:4] == b"\x89PNG"
    assert Path("report.html").stat().st_size > 100_000
    assert names["verdict"].exit_code in (0, 3)


# What holds after the blocks of a page ran; and how many blocks there are, so that none is missed.
AFTERWARDS = {"README.md": (1, one_picture), "docs/start.md": (2, one_picture), "docs/notebook.md": (7, notebook)}


def searches(page: Page) -> bool:
    return any("search(" in code for code in page.code)


@pytest.mark.parametrize(
    "page",
    [pytest.param(p, marks=pytest.mark.slow if searches(p) else (), id=str(p)) for p in PAGES if p.code],
)
def test_python_runs_as_printed(page, schedule, monkeypatch):
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    names: dict[str, Any] = {"__name__": "page"}
    with short_report(front=MOST_ON_FRONT) if searches(page) else nullcontext():
        for code in page.code:
            exec(code, names)
    count, check = AFTERWARDS.get(str(page), (len(page.code), lambda *_: None))
    assert len(page.code) == count
    check(names, schedule)


@by_page(lambda page: any(block.text.startswith(">>>") for block in page.of("python")))
def test_doctests_give_what_is_printed(page):
    failed, tried = doctest.testfile(str(page.path), module_relative=False)
    assert tried == len(re.findall(r"^>>> ", page.text, re.M)) and not failed


NAMES = re.compile(r"`(search(?:\.\w+)+)[`(]")


@by_page(lambda page: NAMES.search(page.text))
def test_names_of_the_package_are_there(page):
    for name in NAMES.findall(page.text):
        if not PLACEHOLDERS.search(name):
            pkgutil.resolve_name(name)


# Files and data


@by_page(lambda page: page.of("json", "yaml"))
def test_json_and_yaml_can_be_read(page):
    for block in page.of("json", "yaml"):
        (json.loads if block.language == "json" else yaml.safe_load)(block.text)


def test_every_part_of_the_format_page_is_a_valid_schedule():
    whole, *parts = [json.loads(block.text) for block in Page("docs/format.md").of("json")]
    assert Schedule.from_dict(whole).plan.planned()
    head = {name: whole[name] for name in ("format", "model", "steps")}
    for part in parts:
        assert Schedule.from_dict(head | part) != Schedule.from_dict(head) or set(part) <= {
            "scores",
            "certificate",
            "made",
        }


def test_the_format_page_explains_every_part_and_field():
    text = Page("docs/format.md").text
    schema = json.loads((ROOT / "search" / "schedule" / "schedule-1.schema.json").read_text(encoding="utf-8"))
    fields = {name for part in [schema, *schema["$defs"].values()] for name in part.get("properties", {})}
    assert [name for name in sorted(fields) if not re.search(rf"\b{name}\b", text)] == []
    for name in schema["properties"]:
        assert f"`{name}`" in text


@by_page(lambda page: any(block.file for block in page.blocks))
def test_example_files_are_shown_as_they_are(page):
    for block in page.blocks:
        if block.file:
            assert block.text == (EXAMPLES / block.file).read_text(encoding="utf-8")


def test_every_example_file_is_shown():
    shown = {block.file for page in PAGES for block in page.blocks}
    files = {str(path.relative_to(EXAMPLES)) for path in EXAMPLES.rglob("*.[py]*") if path.suffix in (".py", ".yaml")}
    assert files <= shown


# Commands


def test_the_two_commands_of_the_readme():
    first, second = [block.text.strip() for block in README.of("bash")[:2]]
    assert first == (
        'python3 -m venv .venv && . .venv/bin/activate && pip install "torch==2.13.0" && '
        'pip install -e ".[search,dev]" && python -m search +space=cache model=pixart'
    )
    assert second == ". .venv/bin/activate && python -m pytest -n 2"


@by_page(lambda page: page.commands)
def test_commands_are_accepted(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    for line in page.commands:
        if PLACEHOLDERS.search(line):
            continue
        for command in re.split(r"&&|\|(?=\s)", line):
            words = shlex.split(command, comments=True)
            assert accepted(words, monkeypatch), line


def accepted(words: list[str], monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether a command exists and takes these arguments; nothing is run."""
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):  # variables before the program
        words = words[1:]
    match words:
        case []:
            return True
        case ["python", "-m", "search", *arguments] | ["schedule-search", *arguments]:
            return searches_with(arguments, monkeypatch)
        case ["python", "-m", module, *arguments] if module.startswith("search."):
            return command_takes(module, arguments, monkeypatch)
        case ["python", "-m", module, *_] if module.startswith(("benchmarks.", "tests.")):
            return (ROOT / (module.replace(".", "/") + ".py")).exists()
        case ["python", "-m", "pytest", *arguments]:
            return all((ROOT / a).exists() for a in arguments if a.startswith("tests"))
        case ["python3", "-m", "venv", _] | [".", _] | ["pip", "check"]:
            return True
        case ["python", file, *_]:
            return (ROOT / file).exists()
        case ["pip", "install", *what]:
            return all(known_package(name) for name in what if not name.startswith("-"))
        case ["make", target]:
            return f"\n{target}: ##" in "\n" + (ROOT / "Makefile").read_text(encoding="utf-8")
        case [program, *_] if program.startswith(".ci/"):
            return (ROOT / program).exists()
        case ["eval" | "mlflow" | "mkdocs" | "pre-commit" | "git", *_]:
            return True
    return False


def known_package(name: str) -> bool:
    extras = re.fullmatch(r"\.(?:/[\w-]+)*(?:\[([\w,]+)\])?", name)
    if extras is None:
        return bool(re.fullmatch(r"[\w-]+==[\d.]+|[\w-]+", name))
    known = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    return (ROOT / name.partition("[")[0]).is_dir() and set((extras[1] or "search").split(",")) <= set(known)


def searches_with(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> bool:
    """`python -m search` up to the search itself: options composed and checked."""
    import search.__main__ as command
    from search.config.compose import compose_config
    from search.config.settings import Config

    if {"--help", "-sc"} & set(arguments):
        return True
    flags, overrides = command.split(arguments)
    Config.check(compose_config(overrides, flags.get("--config-dir")))
    return True


def command_takes(module: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> bool:
    """A command up to its work: its own options parsed, overrides of the configuration composed."""
    from search.config.compose import compose_config, normalise_overrides
    from search.config.options import parse_options

    def parse_only(arguments, text, work, defaults, first=None, configurable=False):
        compose_config(normalise_overrides(parse_options(arguments, defaults, first, configurable).overrides))
        return 0

    command = importlib.import_module(module)
    with monkeypatch.context() as patch:
        patch.setattr(command, "run_command", parse_only)
        return not arguments or command.main(arguments) == 0
