"""Races: a candidate that is surely worse than another one on some of the prompts is not run on the rest.

Successive halving on growing subsets of the prompts. Noise and prompts are the same for all, so two candidates are
compared prompt by prompt, and the confidence in a difference is estimated by resampling the prompts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from search.objectives.aggregate import AGGREGATES, Over

DRAWS = 400
FEWEST = 3  # prompts, below which resampling is meaningless


@dataclass(frozen=True)
class Rival:
    """A schedule that was evaluated on all prompts.

    Attributes:
        drift: Its drift on each prompt [P].
        costs: Its costs [C], to be minimised.
    """

    drift: np.ndarray
    costs: np.ndarray


class Race:
    """Decides which candidates are not run on further prompts: those that some rival surely beats at no more cost.

    Args:
        rivals: What candidates are compared with.
        sure: The share of the resampled subsets of prompts in which the rival has to have less drift.
        slack: A rival has to have so many times less drift; above 1 for scores that follow drift only roughly.
        over: What is compared of the drift on several prompts, as in objectives/aggregate.py.

    Example:
        >>> import numpy as np
        >>> from search.evaluate.racing import Race, Rival
        >>> race = Race([Rival(np.array([0.1, 0.2, 0.1, 0.2]), np.array([0.5]))])
        >>> race.beaten([0.3, 0.4, 0.3], np.array([0.6])), race.beaten([0.3, 0.4, 0.3], np.array([0.4]))
        (True, False)
    """

    def __init__(self, rivals: Sequence[Rival], slack: float = 1.0, over: Over = "mean", sure: float = 0.95) -> None:
        self.rivals, self.sure, self.slack, self.over = list(rivals), sure, slack, AGGREGATES[over]

    def beaten(self, drift: Sequence[float], costs: np.ndarray) -> bool:
        """Whether a candidate with this drift on the first prompts [p] and these costs [C] has lost."""
        candidate = np.asarray(drift, dtype=float)
        if len(candidate) < FEWEST:
            return False
        if not np.isfinite(candidate).all():
            return True
        cheaper = [rival.drift[: len(candidate)] for rival in self.rivals if (rival.costs <= costs).all()]
        if not cheaper:
            return False
        best = min(cheaper, key=self.over)
        drawn = np.random.default_rng(0).integers(len(candidate), size=(DRAWS, len(candidate)))
        ahead = self.over(candidate[drawn]) - self.slack * self.over(best[drawn])  # positive where the rival is better
        return bool((ahead > 0).mean() >= self.sure)

    def expected(self, drift: Sequence[float]) -> float:
        """Expected drift over all prompts, from the drift on the first prompts [p].

        The factor from the first prompts to all is the median over the rivals, 1 without any.
        """
        first = float(self.over(np.array(drift)))
        factors = [self.over(r.drift) / begun for r in self.rivals if (begun := self.over(r.drift[: len(drift)])) > 0]
        return first * float(np.median(factors)) if factors else first
