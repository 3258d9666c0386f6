"""Size alarm: files over 300 lines and functions over 60 lines need a reason in .ci/sizes.toml.

Only code of the package counts: search/, spaces/, objectives/, kernels/. A file's length is its number of lines. A
function's length runs from its `def` line to its last line, without decorators and without its docstring, so that
nobody shortens a description to pass. A reason that is no longer needed fails as well.
"""

import ast
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("search", "spaces", "objectives", "kernels")
REASONS = ROOT / ".ci" / "sizes.toml"
MAX_FILE = 300
MAX_FUNCTION = 60


def function_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without decorators and docstring."""
    lines = (node.end_lineno or node.lineno) - node.lineno + 1
    first = node.body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        lines -= (first.end_lineno or first.lineno) - first.lineno + 1
    return lines


def oversized_functions(tree: ast.Module, path: str) -> dict[str, int]:
    """`path::Class.function` and its length, of each function that is too long."""
    sizes = {}

    def visit(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                name = f"{prefix}.{child.name}" if prefix else child.name
                if not isinstance(child, ast.ClassDef) and (lines := function_lines(child)) > MAX_FUNCTION:
                    sizes[f"{path}::{name}"] = lines
                visit(child, name)
            else:
                visit(child, prefix)

    visit(tree, "")
    return sizes


def oversized(root: Path) -> dict[str, int]:
    """All files and functions below `root` that are too long, with their lengths."""
    sizes = {}
    for folder in FOLDERS:
        for file in sorted((root / folder).rglob("*.py")):
            path, text = file.relative_to(root).as_posix(), file.read_text(encoding="utf-8")
            if (lines := len(text.splitlines())) > MAX_FILE:
                sizes[path] = lines
            sizes |= oversized_functions(ast.parse(text, path), path)
    return sizes


def problems(sizes: dict[str, int], reasons: dict[str, str]) -> list[str]:
    """What is wrong, one line each with what to do; empty where all is well."""
    lines = []
    for name, size in sizes.items():
        limit = MAX_FUNCTION if "::" in name else MAX_FILE
        if not reasons.get(name, "").strip():
            lines.append(f"{name} has {size} lines, at most {limit}: split it, or give a reason in .ci/sizes.toml")
    for name in sorted(set(reasons) - set(sizes)):
        lines.append(f"{name} is short enough or gone: delete its line in .ci/sizes.toml")
    return lines


def main() -> int:
    sizes, reasons = oversized(ROOT), tomllib.loads(REASONS.read_text(encoding="utf-8"))
    lines = problems(sizes, reasons)
    print("\n".join(lines) if lines else f"sizes: {len(reasons)} exceptions, each with its reason")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
