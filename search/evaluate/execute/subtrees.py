"""Splits a population into groups of runs that begin alike, so that several workers repeat few steps."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise, takewhile

from search.evaluate.execute.jobs import Batch, Job
from search.evaluate.execute.prefix import prefix_ids
from search.profile.costs import Costs

WORTH = 0.75  # the larger part of a cut is at most this share of the group: else too much would be repeated


@dataclass(frozen=True)
class PrefixPath:
    """A run for sharing: an identifier of the run up to and with each step [T], and the MACs of each step [T]."""

    prefix_ids: tuple[int, ...]
    macs: tuple[float, ...]

    @staticmethod
    def of(job: Job, batch: Batch, costs: Costs) -> "PrefixPath":
        """The path of a job; a job that runs alone is a single step that no other job has."""
        if job.alone:
            return PrefixPath(tuple(prefix_ids((job.schedule.digest,), repr(batch))), (costs.macs(job.schedule),))
        return PrefixPath(tuple(job.prefix_ids(batch)), tuple(costs.macs_by_step(job.schedule)))

    @cached_property
    def total(self) -> float:
        """MACs of all steps."""
        return sum(self.macs)

    def beyond(self, other: "PrefixPath") -> float:
        """MACs of the steps that this run does not share with the other one."""
        shared = takewhile(lambda pair: pair[0] == pair[1], zip(self.prefix_ids, other.prefix_ids, strict=False))
        return sum(self.macs[len(list(shared)) :])


def split_into_subtrees(paths: Sequence[PrefixPath], count: int) -> list[list[int]]:
    """Divide runs into groups that begin alike.

    Args:
        paths: The runs.
        count: The largest number of groups.

    Returns:
        Groups of numbers of paths, the costliest first; every number is in one of them.

    In the order of their numbers, runs with common beginnings lie side by side: a group is a stretch of that order, and
    costs its first run, and of each following run the steps that the run before it does not share. The costliest group
    is cut where its larger part is smallest, repeatedly. Both parts then run the steps that they share, so a cut that
    hardly makes the larger part smaller is not made.
    """
    order = sorted(range(len(paths)), key=lambda i: paths[i].prefix_ids)
    added = [paths[b].beyond(paths[a]) for a, b in pairwise(order)]
    upto = list(accumulate(added, initial=0.0))  # work of a tree from its second run to each

    def work(first: int, last: int) -> float:
        return paths[order[first]].total + upto[last - 1] - upto[first]

    def larger(first: int, cut: int, last: int) -> float:
        return max(work(first, cut), work(cut, last))

    left = [(0, len(order))] if order else []
    groups: list[tuple[int, int]] = []
    while left:
        first, last = part = max(left, key=lambda part: work(*part))
        left.remove(part)
        cut = min(range(first + 1, last), key=lambda cut: larger(first, cut, last), default=0)
        if cut and len(left) + len(groups) + 1 < count and larger(first, cut, last) <= WORTH * work(first, last):
            left += [(first, cut), (cut, last)]
        else:
            groups.append(part)
    return [order[first:last] for first, last in sorted(groups, key=lambda part: -work(*part))]
