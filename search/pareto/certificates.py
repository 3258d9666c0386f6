"""Certificates: of which schedules it can be promised how rarely a new run misses a criterion. Counts only."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

ROUND = 8  # the first decision is taken after a multiple of so many runs
TINY = 1e-12  # sums of probabilities are compared with this slack


@dataclass(frozen=True)
class MissCount:
    """The runs that decided on one schedule.

    Attributes:
        runs: How many of its runs were looked at.
        misses: How many of these missed the criterion.
        certified: Whether the promise is made.
    """

    runs: int
    misses: int
    certified: bool


@dataclass(frozen=True)
class StoppingRule:
    """After how many runs a certificate is decided on, and with how many misses at most it is given.

    The first decision is taken after as many runs as are needed without a miss, rounded up to a multiple of 8; the
    next ones after two, three, … times as many. Of a schedule that misses as often as is just not promised, the exact
    probability of a certificate at any of these decisions is at most 1 - confidence: what an earlier decision leaves
    of it a later one uses. So runs may be added until the decision is made, and a rule for more runs certifies what one
    for fewer did. With a single decision it is the exact binomial test.

    Attributes:
        share: Of new runs that meet the criterion, at least.
        confidence: The probability that no promise is made which does not hold.
        looks: Numbers of runs after which it is decided, ascending.
        allowed: For each of them the most misses with which a certificate is given.

    Example:
        >>> from search.pareto.certificates import StoppingRule
        >>> rule = StoppingRule.of(share=0.9, confidence=0.95, most=128)
        >>> rule.looks, rule.allowed
        ((32, 64, 96, 128), (0, 1, 3, 5))
    """

    share: float
    confidence: float
    looks: tuple[int, ...]
    allowed: tuple[int, ...]

    @classmethod
    def of(cls, share: float, confidence: float, most: int) -> "StoppingRule":
        """The rule for at most `most` runs; ValueError where these could never decide."""
        first = -(-runs_without_a_miss(share, confidence) // ROUND) * ROUND
        if most < first:
            raise ValueError(
                f"a share of {share:g} at a confidence of {confidence:g} takes {first} runs or more, and at most "
                f"{most} are made; give runs={first} or more, or a smaller share"
            )
        looks = tuple(range(first, most + 1, first))
        return cls(share, confidence, looks, _allowed(share, confidence, looks))

    def decide(self, missed: Sequence[bool]) -> MissCount | None:
        """The decision on a schedule by which of its runs missed, in their order; None while it is open.

        A certificate is refused as soon as there are more misses than the last decision allows.
        """
        counts = np.cumsum(np.asarray(missed, dtype=int))
        for look, allowed in zip(self.looks, self.allowed, strict=True):
            upto = min(look, len(counts))
            if upto and counts[upto - 1] > self.allowed[-1]:
                runs = int(np.argmax(counts > self.allowed[-1])) + 1
                return MissCount(runs, int(counts[runs - 1]), False)
            if len(counts) < look:
                return None
            if counts[look - 1] <= allowed:
                return MissCount(look, int(counts[look - 1]), True)
        return MissCount(self.looks[-1], int(counts[self.looks[-1] - 1]), False)

    def further_runs(self, tested: MissCount) -> int:
        """How many runs without another miss a schedule needs until it is certified; 0 if it is."""
        if tested.certified:
            return 0
        first, most = self.looks[0], tested.runs
        while True:
            most += first
            rule = StoppingRule.of(self.share, self.confidence, most)
            enough = [look for look, allowed in zip(rule.looks, rule.allowed, strict=True) if tested.misses <= allowed]
            if later := [look for look in enough if look > tested.runs]:
                return later[0] - tested.runs


def runs_without_a_miss(share: float, confidence: float) -> int:
    """How many runs without a miss are needed before this can be promised.

    Raises:
        ValueError: The share or the confidence is not between 0 and 1.

    Example:
        >>> from search.pareto.certificates import runs_without_a_miss
        >>> runs_without_a_miss(0.9, 0.95)
        29
    """
    for name, value in (("share", share), ("confidence", confidence)):
        if not 0 < value < 1:
            raise ValueError(f"{name}={value:g}: give a number between 0 and 1, for example 0.9")
    return math.ceil(math.log(1 - confidence) / math.log(share) - TINY)


def greatest_miss_rate(misses: int, runs: int, confidence: float) -> float:
    """The upper end of the exact one-sided interval of the share of misses (Clopper and Pearson 1934).

    Example:
        >>> from search.pareto.certificates import greatest_miss_rate
        >>> round(greatest_miss_rate(0, 29, 0.95), 3)
        0.098
    """
    from scipy.stats import beta

    return 1.0 if misses >= runs else float(beta.ppf(confidence, misses + 1, runs - misses))


def certify_in_order(
    count: int,
    measure: Callable[[int, range], Sequence[bool]],
    rule: StoppingRule,
    blocks: Sequence[range],
) -> list[MissCount | None]:
    """Test schedules one after the other until the first one fails: Learn-then-Test with a fixed sequence.

    With probability `confidence` every schedule that is certified keeps its promise, however many there are: for one
    that does not to be certified, the first such in the order has to pass, and that is one test (Angelopoulos et al.
    2021, arXiv:2110.01052). It needs an order that these runs did not choose.

    Args:
        count: How many schedules there are; number 0 is tested first.
        measure: Returns for the schedule of this number which of these runs miss.
        rule: When it is decided.
        blocks: The runs that are measured at once, one block after the other from run 0.

    Returns:
        For each schedule the runs that decided on it; None where that is open, and behind the first not certified.
    """
    tested: list[MissCount | None] = [None] * count
    decision: MissCount | None = None
    for number in range(count):
        missed: list[bool] = []
        for runs in blocks:
            missed += measure(number, runs)
            tested[number] = decision = rule.decide(missed)
            if decision is not None:
                break
        if decision is None or not decision.certified:
            break
    return tested


@cache
def _allowed(share: float, confidence: float, looks: tuple[int, ...]) -> tuple[int, ...]:
    """The most misses at each look; -1 where no number of them is few enough."""
    from scipy.stats import binom

    undecided, spent, runs = np.ones(1), 0.0, 0  # probability of each number of misses without a decision so far
    allowed = []
    for look in looks:
        undecided = np.convolve(undecided, binom.pmf(np.arange(look - runs + 1), look - runs, 1 - share))
        left = 1 - confidence - spent
        most = int(np.searchsorted(np.cumsum(undecided), left + TINY, side="right")) - 1
        spent += float(undecided[: most + 1].sum())
        undecided[: most + 1] = 0
        allowed.append(most)
        runs = look
    return tuple(allowed)
