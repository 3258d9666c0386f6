"""Objective `macs`: multiply-accumulate operations of the denoiser."""

from search.objectives.base import Cost
from search.profile.costs import Costs
from search.schedule import Schedule


class Macs(Cost):
    """MACs of the denoiser that the schedule executes, as a share of the teacher's; exact, from counts per node.

    The teacher itself has 1. The text encoder and the decoder are not counted.

    Example:
        >>> from search.objectives.macs import Macs
        >>> Macs.kind, Macs.unit, Macs.share
        ('cost', 'ratio', True)
    """

    key, unit = "macs", "ratio"
    label = "denoiser MACs, share of the teacher's"
    share = True

    def __call__(self, schedule: Schedule, costs: Costs) -> float:
        return costs.macs(schedule) / costs.teacher_macs

    def worst(self, costs: Costs) -> float:
        return 1.0
