"""Objective `reward`: a network that was trained on people's choices between pictures."""

import inspect
from collections.abc import Sequence

import torch
from torch import Tensor

from search.objectives.base import Reward
from search.objectives.network import Network, cosines
from search.profile.costs import Costs

EXAMPLE = "yuvalkirstain/PickScore_v1"


class Preference(Reward):
    """Reward of a transformers checkpoint that was trained on people's choices; none is bundled.

    Two kinds of checkpoints work. Two encoders as in CLIP (PickScore, arXiv:2305.01569; HPS v2, arXiv:2306.09341): the
    cosine times the learned scale of the logits. One network that takes picture and text together: the last column of
    its `logits`, or of the `itm_score` of a BLIP; with two or more columns the probability of the last one.

    Args:
        path: Folder or hub id of the checkpoint.
        floor: A value below which no useful schedule is; only the hypervolume depends on it.
        device: Where it runs; by default the GPU if there is one.

    Raises:
        ValueError: There is no `path`, or the checkpoint gives no score of a picture and its text.
    """

    key, unit = "reward", ""

    def __init__(self, path: str | None = None, floor: float = 0.0, device: str | None = None) -> None:
        if path is None:
            raise ValueError(
                "objective=reward has no weights of its own; type objective.reward.path=<folder or hub id of a reward "
                f"model>, for example {EXAMPLE}, or use objective=clip"
            )
        self._network = Network(path, device, "objective.reward.path")
        self.path, self.floor, self.weights = path, floor, self._network.weights

    def score(self, pictures: Tensor, prompts: Sequence[str]) -> Tensor:
        """Rewards [B] in fp64 of pictures [B, 3, H, W] in [0, 1]; ValueError if the checkpoint gives none."""
        model = self._network.model
        if hasattr(model, "get_image_features") and hasattr(model, "logit_scale"):
            values = cosines(self._network.pictures(pictures), self._network.texts(prompts))
            return model.logit_scale.detach().double().exp().cpu() * values
        return self._head(pictures, prompts)

    def worst(self, costs: Costs) -> float:
        """The constructor's `floor`, the reference point of the hypervolume."""
        return self.floor

    @torch.no_grad()
    def _head(self, pictures: Tensor, prompts: Sequence[str]) -> Tensor:
        network, logits = self._network, None
        if {"pixel_values", "input_ids"} <= set(inspect.signature(network.model.forward).parameters):
            inputs = network.tokens(prompts) | {"pixel_values": network.prepared(pictures)}
            outputs = network.model(**inputs, return_dict=True)
            logits = outputs.get("logits", outputs.get("itm_score"))
        if logits is None or logits.ndim != 2 or len(logits) != len(pictures):
            raise ValueError(
                f"objective.reward.path={self.path} is a {type(network.model).__name__}, which gives no score of a "
                f"picture and its text; type objective.reward.path={EXAMPLE} or another CLIPModel"
            )
        return (logits.softmax(dim=1) if logits.shape[1] > 1 else logits)[:, -1].double().cpu()
