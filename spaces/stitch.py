"""Model schedules: at each step, whether a smaller denoiser runs in the place of the large one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from search.profile.target import Target
from search.schedule.plan.tokens import OWN
from search.spaces.base import Space
from search.spaces.gene import Gene

GRANULARITIES = ("switch", "step")
PERCENT = range(10, 101, 10)


@dataclass(frozen=True)
class StitchSpace(Space):
    """The first steps on a small denoiser, T-Stitch (arXiv:2402.14167); both must share latents and text states.

    Granularities:

    - `switch` (default): one gene for each smaller denoiser, the number of the teacher's steps after which it no longer
      runs. Of several the smallest runs first, and each continues where the one before ends.
    - `step`: one gene per step, the large denoiser or one of the smaller ones.

    T-Stitch's fractions are rows of both. Each gene has an effect alone, so that tables can be measured.

    Args:
        granularity: See above.

    Raises:
        ValueError: The granularity is unknown.

    Example:
        >>> from search.profile.target import Target
        >>> from search.schedule.model.nodes import Tree
        >>> from search.spaces.stitch import StitchSpace
        >>> tree = Tree("PixArtTransformer2DModel", {"transformer_blocks": 2})
        >>> small = {"class": "PixArtTransformer2DModel", "stacks": {"transformer_blocks": 1}}
        >>> target = Target("pixart", tree, steps=4, others={"S": small})
        >>> [(gene.name, gene.levels) for gene in StitchSpace().genes(target)]
        [('until@S', 5)]
        >>> StitchSpace().decode([1], target)["models"]["at"]
        'SLLL'
    """

    granularity: Literal["switch", "step"] = "switch"
    key: ClassVar[str] = "stitch"
    stage: ClassVar[int] = 1  # on the moved steps, before spaces that decide what runs inside of them
    additive: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.granularity not in GRANULARITIES:
            raise ValueError(
                f"granularity {self.granularity!r} is unknown; choose from {', '.join(GRANULARITIES)}, for "
                "example space.stitch.granularity=step"
            )

    def genes(self, target: Target) -> list[Gene]:
        """The genes of the granularity.

        Raises:
            ValueError: The model has no smaller denoiser (`model.small=`).
        """
        if not target.networks:
            raise ValueError(
                f"model={target.name} has no smaller denoiser at hand; type model.small=<folder or hub id of a "
                "pipeline with the same latents and text encoder>, for the bundled pixart model.small=pixart_small"
            )
        steps = target.reference
        if self.granularity == "switch":
            return [Gene(f"until@{name}", steps + 1, group=f"step after {name}") for name in target.networks]
        levels = 1 + len(target.networks)
        return [Gene(f"model@{t}", levels, step=t, ordered=False) for t in range(steps)]

    def decode(self, x: Sequence[int] | np.ndarray, target: Target) -> Mapping[str, Any]:
        """The models part; `{}` where the large denoiser runs throughout. Steps of a Gaussian stay its own."""
        levels, others = np.asarray(x, dtype=np.int64).tolist(), target.networks
        if self.granularity == "step":
            letters = [[OWN, *others][levels[at]] for at in target.at]
        else:
            ends = dict(zip(others, levels, strict=True))
            letters = [next((n for n, end in ends.items() if at < end), OWN) for at in target.at]
        taken = target.models or OWN * target.steps
        return target.stitched("".join(a if a != OWN else b for a, b in zip(taken, letters, strict=True)))

    def presets(self, target: Target) -> dict[str, np.ndarray]:
        """T-Stitch's fractions of early steps on the smallest denoiser: step i where (i + 1) / T is within them."""
        presets: dict[int, tuple[str, np.ndarray]] = {}
        genes = len(self.genes(target))
        for percent in PERCENT:
            if count := target.reference * percent // 100:
                x = np.zeros(genes, dtype=np.int64)
                if self.granularity == "switch":
                    x[0] = count
                else:
                    x[:count] = 1
                presets.setdefault(count, (f"T-Stitch {percent} %", x))
        return dict(presets.values())
