"""Objective `bops`: bit operations of the denoiser."""

from search.objectives.base import Cost
from search.profile.costs import Costs
from search.schedule import Schedule


class Bops(Cost):
    """Bit operations: executed MACs times weight bits times activation bits, as a share of the teacher's at 16 x 16.

    The count is known as BOPs (Baskin et al., arXiv:1804.10969). It says nothing of a kernel's speed on a device.

    Example:
        >>> from search.objectives.bops import Bops
        >>> Bops.kind, Bops.unit, Bops.share
        ('cost', 'ratio', True)
    """

    key, unit = "bops", "ratio"
    label = "bit operations, share of the teacher's at 16 bits"
    share = True

    def __call__(self, schedule: Schedule, costs: Costs) -> float:
        return costs.bops(schedule) / costs.teacher_bops

    def worst(self, costs: Costs) -> float:
        return 1.0
