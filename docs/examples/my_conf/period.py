"""Whole-step reuse with a fixed period: two genes for the plan that FORA applies by hand."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, ClassVar

import numpy as np

from search.profile.tables import Tables
from search.profile.target import Target
from search.spaces.base import Space
from search.spaces.gene import Gene

WARM_UPS = 4  # levels: one to four computed steps come first


@dataclass(frozen=True)
class PeriodSpace(Space):
    """Compute the denoiser at every n-th step and reuse its output in between, after a warm-up (arXiv:2407.01425)."""

    longest: int = 5  # the largest period, in steps of the teacher
    key: ClassVar[str] = "period"

    def genes(self, target: Target) -> list[Gene]:
        """The period minus one (0: off, everything is computed), and the steps of the warm-up minus one."""
        return [Gene("period", self.longest), Gene("warm-up", WARM_UPS)]

    def decode(self, x: Sequence[int] | np.ndarray, target: Target) -> Mapping[str, Any]:
        """The plan part; `{}` where the period is one step."""
        if not x[0]:
            return {}
        of_teacher = self._actions(x, target.reference)
        actions = "".join(of_teacher[t] for t in target.at)
        return {"plan": {"rules": [["denoiser", "C" + actions[1:]]]}}

    def presets(self, target: Target) -> dict[str, np.ndarray]:
        """Every second and every third step, as the paper does it."""
        return {f"FORA by period N={n}": np.array([n - 1, 0]) for n in (2, 3) if n <= self.longest}

    def encode(self, tokens: Mapping[str, Sequence[str]], target: Target) -> np.ndarray | None:
        """The row with exactly these actions of the denoiser; None where no row has them."""
        wanted = list(tokens.get("denoiser", "C" * target.reference))
        rows = product(range(self.longest), range(WARM_UPS))
        same = (np.array(row) for row in rows if self._actions(row, target.reference) == wanted)
        return None if set(tokens) - {"denoiser"} else next(same, None)

    def propose(self, tables: Tables) -> list[np.ndarray]:
        """For each period the warm-up with the least expected drift, by the measured errors of reuse."""
        errors, weights, steps = tables.reuse_errors(["denoiser"]), tables.weights, tables.target.reference

        def expected_drift(row: np.ndarray) -> float:
            computed = np.array([action == "C" for action in self._actions(row, steps)])
            source = np.maximum.accumulate(np.where(computed, np.arange(steps), 0))
            return float((weights * errors[source, np.arange(steps)])[~computed].sum())

        periods = [[np.array([n, w]) for w in range(WARM_UPS)] for n in range(1, self.longest)]
        return [min(rows, key=expected_drift) for rows in periods]

    def _actions(self, x: Sequence[int] | np.ndarray, steps: int) -> list[str]:
        period, warm_up = int(x[0]) + 1, int(x[1]) + 1
        return ["C" if t < warm_up or (t - warm_up + 1) % period == 0 else "R" for t in range(steps)]
