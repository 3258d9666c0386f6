"""Objective `latency`: time to make one picture on this device."""

from search.objectives.base import Cost
from search.profile.costs import Costs
from search.schedule import Schedule


class Latency(Cost):
    """Predicted milliseconds to denoise and decode one picture: measured times per node plus an intercept.

    Times are measured on the device of the search, before it starts. Reports have measured times of whole runs.

    Example:
        >>> from search.objectives.latency import Latency
        >>> Latency.kind, Latency.unit, Latency.share
        ('cost', 'ms', False)
    """

    key, unit = "latency", "ms"
    label = "latency of one picture"

    def __call__(self, schedule: Schedule, costs: Costs) -> float:
        return costs.latency(schedule)

    def worst(self, costs: Costs) -> float:
        return costs.teacher_latency
