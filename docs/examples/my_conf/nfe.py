"""How many denoiser calls a schedule makes."""

from search.objectives.base import Cost
from search.profile.costs import Costs
from search.schedule import Schedule


class Nfe(Cost):
    """Steps at which the denoiser runs; at the others its last output is reused or forecast."""

    key, unit, label = "nfe", "", "denoiser calls"

    def __call__(self, schedule: Schedule, costs: Costs) -> float:
        return schedule.plan.tokens["denoiser"].count("C")

    def worst(self, costs: Costs) -> float:
        return costs.steps
