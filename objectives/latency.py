"""Time to make one picture on this device."""

from search.objectives.base import Cost
from search.profile.costs import Costs
from search.schedule import Schedule


class Latency(Cost):
    """Predicted milliseconds for denoising and decoding one picture: measured per-node times plus an intercept."""

    key, unit = "latency", "ms"
    label = "latency of one picture"

    def __call__(self, schedule: Schedule, costs: Costs) -> float:
        return costs.latency(schedule)

    def worst(self, costs: Costs) -> float:
        return costs.teacher_latency
