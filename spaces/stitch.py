"""Model schedules: at each step, whether a smaller denoiser runs in the place of the large one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from search.profile.target import Target
from search.schedule.parts.gaussian import GAUSSIAN
from search.schedule.plan.tokens import OWN
from search.spaces.base import Space
from search.spaces.gene import Gene

GRANULARITIES = ("switch", "step")
PERCENT = range(10, 101, 10)
GAUSSIAN_SHARE = 0.6  # of the steps, at most
GAUSSIAN_PERCENT = (10, 20, 30, 40, 50)


@dataclass(frozen=True)
class StitchSpace(Space):
    """The first steps on a small denoiser, T-Stitch (arXiv:2402.14167), or on none at all.

    A small denoiser must share latents and text states. With `gaussian` the first steps may be those of the
    distribution of the model's own final latents, which costs nothing (arXiv:2412.09726): before the search it is
    fitted to 64 runs of the model.

    Granularities:

    - `switch` (default): one gene for each smaller denoiser, the number of the teacher's steps after which it no longer
      runs. Of several the smallest runs first, and each continues where the one before ends. The Gaussian is the
      smallest, for at most 60 % of the steps.
    - `step`: one gene per step, the large denoiser or one of the smaller ones.

    T-Stitch's fractions are rows of both. Each gene has an effect alone, so that tables can be measured.

    Args:
        granularity: See above.
        gaussian: In how many directions the Gaussian's latents vary; 0 for none.

    Raises:
        ValueError: The granularity is unknown, or the rank of the Gaussian is negative.

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
    gaussian: int = 0
    key: ClassVar[str] = "stitch"
    stage: ClassVar[int] = 1  # on the moved steps, before spaces that decide what runs inside of them
    additive: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.granularity not in GRANULARITIES:
            raise ValueError(
                f"granularity {self.granularity!r} is unknown; choose from {', '.join(GRANULARITIES)}, for "
                "example space.stitch.granularity=step"
            )
        if type(self.gaussian) is not int or self.gaussian < 0:
            raise ValueError(
                f"gaussian is {self.gaussian!r}; it is the number of directions in which final latents vary, 0 for no "
                "Gaussian, for example space.stitch.gaussian=32"
            )

    @property
    def gaussian_rank(self) -> int:
        return self.gaussian

    def genes(self, target: Target) -> list[Gene]:
        """The genes of the granularity.

        Raises:
            ValueError: The model has no smaller denoiser (`model.small=`).
        """
        if not target.others:
            raise ValueError(
                f"model={target.name} has no smaller denoiser at hand; type model.small=<folder or hub id of a "
                "pipeline with the same latents and text encoder>, for the bundled pixart model.small=pixart_small; or "
                "+space=teleport, which needs none"
            )
        steps, gaussians = target.reference, self._gaussians(target)
        if self.granularity == "switch":
            return [
                Gene(
                    f"until@{name}",
                    1 + (int(GAUSSIAN_SHARE * steps) if name in gaussians else steps),
                    group=f"step after {name}",
                )
                for name in target.others
            ]
        levels = 1 + len(target.others)
        return [Gene(f"model@{t}", levels, step=t, ordered=False) for t in range(steps)]

    def decode(self, x: Sequence[int] | np.ndarray, target: Target) -> Mapping[str, Any]:
        """The models part; `{}` where the large denoiser runs throughout."""
        levels, others = np.asarray(x, dtype=np.int64).tolist(), list(target.others)
        if self.granularity == "step":
            return target.stitched("".join([OWN, *others][levels[at]] for at in target.at))
        ends = dict(zip(others, levels, strict=True))
        return target.stitched("".join(next((n for n, end in ends.items() if at < end), OWN) for at in target.at))

    def presets(self, target: Target) -> dict[str, np.ndarray]:
        """T-Stitch's fractions of early steps on the smallest network, and the Gaussian for the first steps.

        A fraction has step i where (i + 1) / T is within it.
        """
        letters, gaussians = list(target.others), self._gaussians(target)
        rows: dict[tuple[str, int], str] = {}
        networks = [letter for letter in letters if letter not in gaussians]
        for percent in PERCENT if networks else ():
            if count := target.reference * percent // 100:
                rows.setdefault((networks[0], count), f"T-Stitch {percent} %")
        for letter in gaussians:
            for percent in GAUSSIAN_PERCENT:
                if count := target.reference * percent // 100:
                    rows.setdefault((letter, count), f"Gaussian for {count} step{'s' * (count > 1)}")
        return {name: self._row(letters.index(letter), count, target) for (letter, count), name in rows.items()}

    def _row(self, number: int, count: int, target: Target) -> np.ndarray:
        """The row that runs another denoiser for the first steps."""
        x = np.zeros(len(self.genes(target)), dtype=np.int64)
        if self.granularity == "switch":
            x[number] = count
        else:
            x[:count] = number + 1
        return x

    @staticmethod
    def _gaussians(target: Target) -> list[str]:
        return [letter for letter, part in target.others.items() if part["class"] == GAUSSIAN]
