"""Whole-step reuse with a fixed period: two genes for the plan that FORA applies by hand."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from search.profile.target import Target
from search.spaces.base import Gene, Space


@dataclass(frozen=True)
class PeriodSpace(Space):
    """Compute the denoiser at every n-th step and reuse its output in between, after a warm-up (arXiv:2407.01425)."""

    longest: int = 5  # the largest period, in steps of the teacher
    key: ClassVar[str] = "period"

    def genes(self, target: Target) -> list[Gene]:
        """The period minus one (0: off, everything is computed), and how many further steps come before it."""
        return [Gene("period", self.longest), Gene("warm-up", 4)]

    def decode(self, x: Sequence[int] | np.ndarray, target: Target) -> Mapping[str, Any]:
        """The plan part; `{}` where the period is one step."""
        period, warm_up = int(x[0]) + 1, int(x[1]) + 1
        if period == 1:
            return {}
        computed = [t < warm_up or (t - warm_up + 1) % period == 0 for t in range(target.reference)]
        actions = "".join("C" if computed[t] else "R" for t in target.at)
        return {"plan": {"rules": [["denoiser", "C" + actions[1:]]]}}

    def presets(self, target: Target) -> dict[str, np.ndarray]:
        """Every second and every third step, as the paper does it."""
        return {f"FORA by period N={n}": np.array([n - 1, 0]) for n in (2, 3) if n <= self.longest}
