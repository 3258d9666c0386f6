"""Objective `lpips`: perceptual distance of the decoded pictures."""

from collections.abc import Sequence
from functools import cached_property
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor

from search.objectives.aggregate import Over
from search.objectives.base import Quality
from search.profile.costs import Costs

NETWORKS = ("alex", "vgg", "squeeze")


class Lpips(Quality):
    """LPIPS against the teacher's picture (arXiv:1801.03924); 0 is identical.

    The learned weights of the layers come with torchmetrics; torchvision downloads the weights of the network once.

    Args:
        network: `alex`, `vgg` or `squeeze`.
        over: See `Quality`.

    Raises:
        ValueError: The network is unknown, torchvision is not installed, or its weights cannot be had.
    """

    key, unit = "lpips", ""

    def __init__(self, network: Literal["alex", "vgg", "squeeze"] = "alex", over: Over = "mean") -> None:
        super().__init__(over)
        if network not in NETWORKS:
            raise ValueError(
                f"objective.lpips.network={network} is not one of {', '.join(NETWORKS)}; "
                "type objective.lpips.network=alex"
            )
        if find_spec("torchvision") is None:
            raise ValueError(
                "objective=lpips needs torchvision: pip install torchvision, in the release for this torch, "
                "or use objective=ssim"
            )
        self.network = network

    @torch.no_grad()
    def __call__(self, run: Tensor, teacher: Tensor, prompts: Sequence[str] = ()) -> Tensor:
        """LPIPS [B] in fp64 of pictures [B, 3, H, W] in [0, 1]."""
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
                f"objective=lpips cannot load torchvision's weights of {self.network}: {error}. Run once with "
                f"access to the internet, which downloads them, or use objective=ssim"
            ) from None
