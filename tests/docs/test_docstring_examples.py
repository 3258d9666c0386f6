"""Examples in docstrings print what they say. Those of search/api.py need a search: tests/commands/test_api.py."""

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDERS = ("search", "spaces", "objectives", "kernels")
FILES = sorted(
    file
    for folder in FOLDERS
    for file in (ROOT / folder).rglob("*.py")
    if ">>>" in file.read_text(encoding="utf-8") and file != ROOT / "search" / "api.py"
)


def name_of(file: Path) -> str:
    name = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    return name if name.startswith("search") else f"search.{name}"


@pytest.mark.parametrize("name", map(name_of, FILES))
def test_the_examples_of_a_module_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    failed, tried = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert tried and not failed


def test_there_are_examples_in_every_folder_that_is_extended():
    assert len(FILES) >= 20
