"""What a space knows of a model, without its weights."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from search.schedule.nodes import Tree


@dataclass(frozen=True)
class Target:
    """The denoiser's nodes, the number of steps T, and the teacher's own sampler part.

    `model` and `sampler` are parts of a schedule file, ready to be joined with what a space decodes.
    """

    name: str
    tree: Tree
    steps: int
    model: Mapping[str, Any] = field(default_factory=dict)
    sampler: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Component kinds in the order of execution, `("attn1", "attn2", "ff")`."""
        return tuple(dict.fromkeys(c for stack in self.tree.contract for c in stack.components))

    def schedule(self, parts: Mapping[str, Any]) -> dict[str, Any]:
        """The schedule file's content for parts that a space decoded."""
        return (
            {"format": "schedule/1", "model": dict(self.model), "steps": self.steps}
            | {"sampler": dict(self.sampler)}
            | dict(parts)
        )
