"""What a space is: integer genes that decode to parts of a schedule."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from search.profile.target import Target


@dataclass(frozen=True)
class Gene:
    """One integer decision with values 0 .. levels-1; level 0 is off.

    `group` names the genes that belong together (all genes of one step, say): operators move groups as one.
    `ordered` is false where neighbouring levels have nothing in common.
    """

    name: str
    levels: int
    group: str = ""
    ordered: bool = True


class Space(ABC):
    """Decisions about how a denoiser is run. The zero row decodes to nothing, that is the bare pipeline."""

    key: ClassVar[str]
    stage: ClassVar[int] = 2  # of decoding: 0 moves the steps, 1 solves on them or names denoisers, 2 what runs inside
    additive: ClassVar[bool] = False  # few enough levels to measure each alone, for dynamic and integer programs

    @abstractmethod
    def genes(self, target: Target) -> list[Gene]:
        """The decisions on this target; raises ValueError where the space does not apply."""

    @abstractmethod
    def decode(self, x: Sequence[int] | np.ndarray, target: Target) -> Mapping[str, Any]:
        """Parts of a schedule file (`{"plan": ...}`) from G integers; `{}` where everything is off."""

    def encode(self, tokens: Mapping[str, Sequence[str]], target: Target) -> np.ndarray | None:
        """Genes [G] for one action per step of `denoiser` or of component kinds; None where genes cannot say it.

        This is how calibration tables reach a search: their exact fronts become rows to begin with. A space that
        neither reuses nor forecasts has no genes for any.
        """
        return None

    @abstractmethod
    def presets(self, target: Target) -> dict[str, np.ndarray]:
        """Published rules as genes, by the name that plots show: int [G] each."""
