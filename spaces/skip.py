"""Skip schedules: which blocks or components a step leaves out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from search.profile.target import Target
from search.schedule.plan.tokens import OFF
from search.spaces.base import Space
from search.spaces.gene import Gene

GRANULARITIES = ("block", "component")


@dataclass(frozen=True)
class SkipSpace(Space):
    """A skipped block passes its input on; a skipped component adds nothing. One gene per step and node.

    This is AutoDiffusion's architecture search (arXiv:2309.10438): a set of left-out layers for every step. Genes of
    one step form a group, and moves that swap genes or groups keep the number of executed layers.

    Args:
        granularity: Which nodes have genes: whole blocks, or components of blocks.

    Raises:
        ValueError: The granularity is unknown, or the denoiser has no such node that can be skipped.

    Example:
        >>> from search.profile.target import Target
        >>> from search.schedule.model.nodes import Tree
        >>> from search.spaces.skip import SkipSpace
        >>> target = Target("pixart", Tree("PixArtTransformer2DModel", {"transformer_blocks": 2}), steps=2)
        >>> [gene.name for gene in SkipSpace().genes(target)]
        ['skip transformer_blocks.0@0', 'skip transformer_blocks.1@0',
         'skip transformer_blocks.0@1', 'skip transformer_blocks.1@1']
        >>> SkipSpace().decode([0, 0, 1, 0], target)["plan"]["rules"]
        [['transformer_blocks.0', 'CS']]
    """

    granularity: Literal["block", "component"] = "block"
    key: ClassVar[str] = "skip"
    additive: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.granularity not in GRANULARITIES:
            raise ValueError(
                f"granularity {self.granularity!r} is unknown; choose from {', '.join(GRANULARITIES)}, for "
                "example space.skip.granularity=component"
            )

    def genes(self, target: Target) -> list[Gene]:
        """One gene a step and node: 0 compute, 1 skip."""
        return [
            Gene(f"skip {node}@{t}", 2, step=t, ordered=False)
            for t in range(target.reference)
            for node in self._nodes(target)
        ]

    def decode(self, x: Sequence[int] | np.ndarray, target: Target) -> Mapping[str, Any]:
        """The plan part; `{}` where nothing is skipped."""
        nodes = self._nodes(target)
        table = np.asarray(x, dtype=np.int64).reshape(target.reference, len(nodes))[list(target.at)]
        rules = [
            [node, "".join("S" if skipped else OFF for skipped in column)]
            for node, column in zip(nodes, table.T.tolist(), strict=True)
            if any(column)
        ]
        return {"plan": {"value": "out", "axis": "index", "rules": rules}} if rules else {}

    def presets(self, target: Target) -> dict[str, np.ndarray]:
        """Even thinning of the inner nodes, at all steps and at the noisier half of them."""
        nodes, steps = len(self._nodes(target)), target.reference
        rows = {}
        for every in (4, 3, 2):
            left_out = (np.arange(nodes) % every == every - 1) & (np.arange(nodes) < nodes - 1)
            for name, first in ((f"skip every {every}. {self.granularity}", steps), ("", (steps + 1) // 2)):
                x = np.zeros((steps, nodes), dtype=np.int64)
                x[:first] = left_out
                if x.any():
                    rows[name or f"skip every {every}. {self.granularity}, first half"] = x.ravel()
        return rows

    def _nodes(self, target: Target) -> list[str]:
        """The nodes that can be skipped; ValueError where this denoiser has none."""
        tree = target.tree
        nodes = [node.name for node in tree if node.kind == self.granularity and tree.skipped(node) is not None]
        if not nodes:
            raise ValueError(
                f"+space=skip: no {self.granularity} of {tree.model_class} can be skipped; type "
                "space.skip.granularity=component, or use +space=depth or +space=cache"
            )
        return nodes
