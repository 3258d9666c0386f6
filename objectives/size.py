"""Objective `size`: size of the weights of the denoiser."""

from search.objectives.base import Cost
from search.profile.costs import Costs
from search.schedule import Schedule


class Size(Cost):
    """MiB of the weights of all denoisers that run, at their nominal bits and with their scales.

    A library may pack weights in another way, and then needs another amount of memory.

    Example:
        >>> from search.objectives.size import Size
        >>> Size.kind, Size.unit, Size.share
        ('cost', 'MiB', False)
    """

    key, unit = "size", "MiB"
    label = "denoiser weights"

    def __call__(self, schedule: Schedule, costs: Costs) -> float:
        return costs.size(schedule) / 2**20

    def worst(self, costs: Costs) -> float:
        return costs.all_weight_bytes / 2**20
