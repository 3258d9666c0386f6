"""The size alarm of .ci/check: what it counts and what it reports."""

import ast
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def sizes(root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("sizes", root / ".ci" / "sizes.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def function(body: int, docstring: int = 0) -> str:
    """Source of a function with one `def` line, a docstring of so many lines and a body of so many."""
    text = ['    """First'] + ["    more"] * (docstring - 2) + ['    """'] if docstring else []
    return "\n".join(["@decorated", "def long():", *text, *["    x = 1"] * body]) + "\n"


@pytest.mark.parametrize(("body", "docstring", "lines"), [(59, 0, 60), (60, 0, 61), (59, 30, 60), (60, 30, 61)])
def test_a_function_is_counted_without_decorators_and_docstring(
    sizes: ModuleType, body: int, docstring: int, lines: int
) -> None:
    (node,) = ast.parse(function(body, docstring)).body
    assert sizes.function_lines(node) == lines
    expected = {"a.py::long": lines} if lines > 60 else {}
    assert sizes.oversized_functions(ast.parse(function(body, docstring)), "a.py") == expected


def test_methods_and_nested_functions_have_full_names(sizes: ModuleType) -> None:
    nested = "class A:\n    def b(self):\n        def c():\n" + "            x = 1\n" * 61
    assert sizes.oversized_functions(ast.parse(nested), "a.py") == {"a.py::A.b": 63, "a.py::A.b.c": 62}


def test_files_are_found_in_every_folder_of_the_package(sizes: ModuleType, tmp_path: Path) -> None:
    for folder in sizes.FOLDERS:
        (tmp_path / folder / "room").mkdir(parents=True)
        (tmp_path / folder / "room" / "long.py").write_text("x = 1\n" * 301)
        (tmp_path / folder / "short.py").write_text("x = 1\n" * 300)
    assert sizes.oversized(tmp_path) == {f"{folder}/room/long.py": 301 for folder in sizes.FOLDERS}


def test_a_reason_is_needed_and_must_not_be_left_over(sizes: ModuleType) -> None:
    assert sizes.problems({"a.py": 301}, {"a.py": "one table"}) == []
    (missing,) = sizes.problems({"a.py": 301}, {})
    assert missing == "a.py has 301 lines, at most 300: split it, or give a reason in .ci/sizes.toml"
    (empty,) = sizes.problems({"a.py::f": 61}, {"a.py::f": " "})
    assert empty == "a.py::f has 61 lines, at most 60: split it, or give a reason in .ci/sizes.toml"
    (left,) = sizes.problems({}, {"a.py": "one table"})
    assert left == "a.py is short enough or gone: delete its line in .ci/sizes.toml"
