"""Who is evaluated to the end: a candidate that is surely behind another one on some of the prompts is left there.

Successive halving on growing subsets of the prompts. Noise and prompts are the same for all, so two candidates are
compared prompt by prompt, and how sure a difference is follows from resampling the prompts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

DRAWS = 400
FEWEST = 3  # prompts, below which resampling says nothing


@dataclass(frozen=True)
class Rival:
    """A schedule that was evaluated on all prompts: drift [P], and its costs [C] to be minimised."""

    drift: np.ndarray
    costs: np.ndarray


class Race:
    """Drops a candidate that some rival beats at no more cost, in `sure` of the resampled subsets.

    With `slack` above 1 a rival has to have so many times less drift: for scores that follow drift only roughly.
    """

    def __init__(self, rivals: Sequence[Rival], sure: float = 0.95, slack: float = 1.0) -> None:
        self.rivals, self.sure, self.slack = list(rivals), sure, slack

    def beaten(self, drift: Sequence[float], costs: np.ndarray) -> bool:
        """Whether a candidate of this drift on the first prompts [p] and these costs [C] need not run on the others."""
        own = np.asarray(drift, dtype=float)
        if len(own) < FEWEST:
            return False
        if not np.isfinite(own).all():
            return True
        cheaper = [rival.drift[: len(own)] for rival in self.rivals if (rival.costs <= costs).all()]
        if not cheaper:
            return False
        ahead = own - self.slack * np.array(cheaper)  # [R, p], positive where the rival is better
        best = ahead[ahead.mean(axis=1).argmax()]
        drawn = np.random.default_rng(0).integers(len(own), size=(DRAWS, len(own)))
        return bool((best[drawn].mean(axis=1) > 0).mean() >= self.sure)

    def expected_mean(self, drift: Sequence[float]) -> float:
        """What the mean drift on all prompts would be if the others treated it as they treat the rivals."""
        part = float(np.mean(drift))
        shares = [
            r.drift.mean() / r.drift[: len(drift)].mean() for r in self.rivals if r.drift[: len(drift)].mean() > 0
        ]
        return part * float(np.median(shares)) if shares else part
