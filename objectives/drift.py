"""Objective `drift`: distance of the final latents to the teacher's."""

from collections.abc import Sequence

from torch import Tensor

from search.objectives.base import Quality
from search.profile.costs import Costs


class Drift(Quality):
    """Drift: ||run - teacher|| / ||teacher|| of the final latents, per prompt, in fp64; 0 is identical.

    It needs no decoder and no network, so it is the default quality.

    Example:
        >>> import torch
        >>> from search.objectives.drift import Drift
        >>> teacher = torch.ones(1, 4, 8, 8)
        >>> Drift()(1.1 * teacher, teacher)
        tensor([0.1000], dtype=torch.float64)
    """

    key, unit, of = "drift", "ratio", "latents"
    label = "drift: distance to the teacher's latents"

    def __call__(self, run: Tensor, teacher: Tensor, prompts: Sequence[str] = ()) -> Tensor:
        """Drift [B] in fp64 of latents [B, C, h, w]."""
        run, teacher = run.double().flatten(1), teacher.double().flatten(1)
        return (run - teacher).norm(dim=1) / teacher.norm(dim=1)

    def worst(self, costs: Costs) -> float:
        return 1.0
