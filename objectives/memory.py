"""Objective `memory`: memory of the values that a schedule keeps between steps."""

from search.objectives.base import Cost
from search.profile.costs import Costs
from search.schedule import Schedule


class Memory(Cost):
    """Peak MiB of the values that are kept between steps for one picture.

    Weights, and activations within a step, are not counted.

    Example:
        >>> from search.objectives.memory import Memory
        >>> Memory.kind, Memory.unit, Memory.share
        ('cost', 'MiB', False)
    """

    key, unit = "memory", "MiB"
    label = "peak memory of kept values"

    def __call__(self, schedule: Schedule, costs: Costs) -> float:
        return costs.peak_bytes(schedule) / 2**20

    def worst(self, costs: Costs) -> float:
        return 2 * costs.all_bytes / 2**20
