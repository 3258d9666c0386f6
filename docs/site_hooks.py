"""What `mkdocs build` does beyond its configuration: links, help texts of the commands, and where the code is found."""

import ast
import re
import tempfile
from pathlib import Path
from typing import Any

from mkdocs.plugins import event_priority
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
HELP = "<!-- the help text of every command -->"
SCHEMA = ROOT / "search" / "schedule" / "schedule-1.schema.json"
OUTSIDE = re.compile(r"(?<!!)\[([^\]]+)\]\(((?:\.\./)+[^)]+)\)")


@event_priority(100)  # before mkdocstrings reads it
def on_config(config: Any) -> Any:
    """Show the code as it is installed: spaces/, objectives/, kernels/ and conf/ lie below search/ there."""
    linked = Path(tempfile.mkdtemp(prefix="docs-")) / "search"
    linked.mkdir()
    folders = [ROOT / name for name in ("spaces", "objectives", "kernels", "conf")]
    for path in [*(ROOT / "search").iterdir(), *folders]:
        if path.name != "__pycache__":
            (linked / path.name).symlink_to(path)
    config.plugins["mkdocstrings"].config.handlers["python"]["paths"] = [str(linked.parent)]
    return config


def on_files(files: Any, config: Any, **_: Any) -> Any:
    """The JSON Schema is part of the site."""
    files.append(File.generated(config, SCHEMA.name, abs_src_path=str(SCHEMA)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Fill in the help texts; a link to a file outside of docs/, which the site does not have, becomes its text."""
    folder = Path(page.file.abs_src_path).parent

    def text(link: re.Match[str]) -> str:
        target = (folder / link[2].partition("#")[0]).resolve()
        if target == SCHEMA:
            return f"[{link[1]}]({SCHEMA.name})"
        return link[0] if target.is_relative_to(config.docs_dir) else link[1]

    return OUTSIDE.sub(text, markdown.replace(HELP, help_texts()))


def help_texts() -> str:
    """A section for each command: a module at the top of search/ whose docstring begins with how it is typed."""
    found = []
    for file in sorted((ROOT / "search").glob("*.py")):
        text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        if text.startswith(f"python -m search.{file.stem}"):
            found.append(f"### `{file.stem}`\n\n```text\n{text}\n```\n")
    return "\n".join(found)
