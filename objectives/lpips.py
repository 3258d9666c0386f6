"""Perceptual distance of the decoded pictures."""

from collections.abc import Sequence
from functools import cached_property
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor

from search.objectives.base import Quality
from search.profile.costs import Costs

NETWORKS = ("alex", "vgg", "squeeze")


class Lpips(Quality):
    """LPIPS against the teacher's picture (arXiv:1801.03924), 0 is identical.

    torchmetrics has the learned weights of the layers; the network below is torchvision's, which fetches its weights
    once.
    """

    key, unit = "lpips", ""

    def __init__(self, network: Literal["alex", "vgg", "squeeze"] = "alex") -> None:
        if network not in NETWORKS:
            raise ValueError(
                f"objective.lpips.network={network} is none of {', '.join(NETWORKS)}; type objective.lpips.network=alex"
            )
        if find_spec("torchvision") is None:
            raise ValueError(
                "objective=lpips needs torchvision: pip install torchvision of the release that goes with this torch, "
                "or use objective=ssim"
            )
        self.network = network

    @torch.no_grad()
    def __call__(self, run: Tensor, teacher: Tensor, prompts: Sequence[str] = ()) -> Tensor:
        pairs = zip(run.float().split(1), teacher.float().split(1), strict=True)
        return torch.stack([self._metric(2 * a - 1, 2 * b - 1).flatten()[0].double() for a, b in pairs])

    def worst(self, costs: Costs) -> float:
        return 1.0

    @cached_property
    def _metric(self) -> Any:
        from torchmetrics.functional.image.lpips import _LPIPS

        try:
            return _LPIPS(pretrained=True, net=self.network).eval()
        except Exception as error:  # no network, no permission to write, a broken file
            raise ValueError(
                f"objective=lpips cannot have torchvision's weights of {self.network}: {error}. Fetch them once with "
                f"the network there, or use objective=ssim"
            ) from None
