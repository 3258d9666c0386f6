"""Multiply-accumulate operations of the denoiser."""

from search.objectives.base import Cost
from search.profile.costs import Costs
from search.schedule import Schedule


class Macs(Cost):
    """Share of the teacher's denoiser MACs that the schedule executes; exact, from counted per-node tables."""

    key, unit = "macs", "ratio"
    label = "denoiser MACs, share of the teacher's"
    share = True

    def __call__(self, schedule: Schedule, costs: Costs) -> float:
        return costs.macs(schedule) / costs.teacher_macs

    def worst(self, costs: Costs) -> float:
        return 1.0
