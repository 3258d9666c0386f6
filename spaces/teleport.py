"""How many first steps are those of the Gaussian of the model's own final latents, which costs nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from search.profile.target import Target
from search.schedule.parts.gaussian import GAUSSIAN
from search.schedule.plan.tokens import OWN
from search.spaces.base import Space
from search.spaces.gene import Gene

SHARE = 0.6  # of the steps, at most
PERCENT = (10, 20, 30, 40, 50)


@dataclass(frozen=True)
class TeleportSpace(Space):
    """The first steps by the Gaussian of final latents instead of the denoiser (arXiv:2412.09726).

    Before the search it is fitted to 64 runs of the model (search/calibrate/gaussian.py). One gene: the number of the
    teacher's first steps that it runs, at most 60 % of them. It has an effect alone, so that tables can be measured.

    Args:
        rank: In how many directions final latents vary.

    Raises:
        ValueError: The rank is not a number above 0.

    Example:
        >>> from search.profile.target import Target
        >>> from search.schedule.model.nodes import Tree
        >>> from search.spaces.teleport import TeleportSpace
        >>> tree = Tree("PixArtTransformer2DModel", {"transformer_blocks": 2})
        >>> target = Target("pixart", tree, steps=5, others={"G": {"class": "GaussianDenoiser"}})
        >>> [(gene.name, gene.levels) for gene in TeleportSpace().genes(target)]
        [('until@G', 4)]
        >>> TeleportSpace().decode([2], target)["models"]["at"]
        'GGLLL'
    """

    rank: int = 32
    key: ClassVar[str] = "teleport"
    stage: ClassVar[int] = 1  # on the moved steps, before spaces that decide what runs inside of them
    additive: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if type(self.rank) is not int or self.rank < 1:
            raise ValueError(
                f"rank is {self.rank!r}; it is the number of directions in which final latents vary, from 1 on, for "
                "example space.teleport.rank=32"
            )

    @property
    def gaussian_rank(self) -> int:
        return self.rank

    def genes(self, target: Target) -> list[Gene]:
        """One gene.

        Raises:
            ValueError: The model has no Gaussian, or too few steps.
        """
        letter = self._letter(target)
        if (most := int(SHARE * target.reference)) < 1:
            raise ValueError(
                f"the teleport space replaces at most {SHARE:.0%} of the first steps, and {target.name} has "
                f"{target.reference}; it needs two steps, for example model.steps=4"
            )
        return [Gene(f"until@{letter}", 1 + most, group=f"step after {letter}")]

    def decode(self, x: Sequence[int] | np.ndarray, target: Target) -> Mapping[str, Any]:
        """The models part; `{}` where the network runs throughout."""
        letter, end = self._letter(target), int(np.asarray(x)[0])
        others = target.models or OWN * target.steps
        return target.stitched("".join(letter if at < end else n for at, n in zip(target.at, others, strict=True)))

    def presets(self, target: Target) -> dict[str, np.ndarray]:
        """Shares of the steps: the paper skips 15 to 30 %."""
        counts = dict.fromkeys(target.reference * percent // 100 for percent in PERCENT)
        return {f"Gaussian for {n} step{'s' * (n > 1)}": np.array([n]) for n in counts if n}

    @staticmethod
    def _letter(target: Target) -> str:
        letters = [letter for letter, part in target.others.items() if part["class"] == GAUSSIAN]
        if not letters:
            raise ValueError(
                f"{target.name} has no Gaussian of its final latents; a search with space=teleport fits it, in Python "
                "search.calibrate.gaussian.add_gaussian does"
            )
        return letters[0]
