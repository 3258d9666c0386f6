"""Drift of the final latents."""

from collections.abc import Sequence

from torch import Tensor

from search.objectives.base import Quality
from search.profile.costs import Costs


class Drift(Quality):
    """Relative RMS distance of the final latents to the teacher's, per prompt; 0 is identical."""

    key, unit, of = "drift", "ratio", "latents"
    label = "drift: distance to the teacher's latents"

    def __call__(self, run: Tensor, teacher: Tensor, prompts: Sequence[str] = ()) -> Tensor:
        run, teacher = run.double().flatten(1), teacher.double().flatten(1)
        return (run - teacher).norm(dim=1) / teacher.norm(dim=1)

    def worst(self, costs: Costs) -> float:
        return 1.0
