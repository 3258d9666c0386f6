"""Memory of the kept values."""

from search.objectives.base import Cost
from search.profile.costs import Costs
from search.schedule import Schedule


class Memory(Cost):
    """Peak MiB of values kept between steps for one picture; weights and activations are not counted."""

    key, unit = "memory", "MiB"
    label = "peak memory of kept values"

    def __call__(self, schedule: Schedule, costs: Costs) -> float:
        return costs.peak_bytes(schedule) / 2**20

    def worst(self, costs: Costs) -> float:
        return 2 * costs.all_bytes / 2**20
