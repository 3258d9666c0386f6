"""The pages of the documentation, and what stands in them: blocks of code, commands within sentences, links."""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tests.helpers.repository import ROOT

FENCE = re.compile(
    r"(?:`my_conf/(?P<file>[\w./]+)`\n\n)?(?:<!-- not run: (?P<reason>[^>]+?) -->\n)?"
    r"```(?P<language>\w*)\n(?P<text>.*?)```",
    re.S,
)
EXAMPLES = ROOT / "docs" / "examples" / "my_conf"


@dataclass(frozen=True)
class Block:
    """A fenced block. `file`: it shows that file of docs/examples; `reason`: why it is not run."""

    language: str
    text: str
    file: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Page:
    """A page by its path in the repository."""

    name: str

    @property
    def path(self) -> Path:
        return ROOT / self.name

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def blocks(self) -> list[Block]:
        return [Block(m["language"], m["text"], m["file"] or "", m["reason"] or "") for m in FENCE.finditer(self.text)]

    def of(self, *languages: str) -> list[Block]:
        return [block for block in self.blocks if block.language in languages]

    @property
    def code(self) -> list[str]:
        """The Python that is run, block by block; without files, doctests and what says why it is not run."""
        return [b.text for b in self.of("python") if not (b.file or b.reason or b.text.startswith(">>>"))]

    @property
    def commands(self) -> list[str]:
        """Every command line: of the bash blocks, and those in sentences that begin with python or pip."""
        lines = [line for block in self.of("bash") for line in block.text.replace("\\\n", " ").splitlines()]
        prose = FENCE.sub("", self.text)
        spans = re.findall(r"`((?:(?:python3?|pip|schedule-search|make|mlflow) |\.ci/)[^`]*)`", prose)
        return [line.strip() for line in [*lines, *spans] if line.strip() and not line.strip().startswith("#")]

    @property
    def links(self) -> list[str]:
        """Paths that the page links to or shows, relative to its folder."""
        found = re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", self.text))
        return [link.partition("#")[0] for link in found if not link.startswith(("http", "#"))]

    def __str__(self) -> str:
        return self.name


ROOT_PAGES = ("README.md", "CONTRIBUTING.md", "SECURITY.md")
PAGES = [
    *(Page(name) for name in ROOT_PAGES),
    *(Page(str(path.relative_to(ROOT))) for path in sorted((ROOT / "docs").rglob("*.md"))),
]
