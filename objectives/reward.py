"""What people prefer, as a network has learned it."""

import inspect
from collections.abc import Sequence

import torch
from torch import Tensor

from search.objectives.base import Reward
from search.objectives.network import Network, cosines
from search.profile.costs import Costs

EXAMPLE = "yuvalkirstain/PickScore_v1"


class Preference(Reward):
    """Reward of a transformers checkpoint that was trained on people's choices; its weights are the user's.

    Two kinds are understood. Two towers as in CLIP (PickScore, arXiv:2305.01569; HPS v2, arXiv:2306.09341): the cosine
    times the scale of the logits that the checkpoint has learned. One network with a head that takes picture and text
    together: its `logits`, or `itm_score` of a BLIP, of which the last column is meant; two columns become the
    probability of the last one.
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
        model = self._network.model
        if hasattr(model, "get_image_features") and hasattr(model, "logit_scale"):
            found = cosines(self._network.pictures(pictures), self._network.texts(prompts))
            return model.logit_scale.detach().double().exp().cpu() * found
        return self._head(pictures, prompts)

    def worst(self, costs: Costs) -> float:
        """`floor`, which is only what the hypervolume is measured against."""
        return self.floor

    @torch.no_grad()
    def _head(self, pictures: Tensor, prompts: Sequence[str]) -> Tensor:
        network, logits = self._network, None
        if {"pixel_values", "input_ids"} <= set(inspect.signature(network.model.forward).parameters):
            given = network.tokens(prompts) | {"pixel_values": network.prepared(pictures)}
            found = network.model(**given, return_dict=True)
            logits = found.get("logits", found.get("itm_score"))
        if logits is None or logits.ndim != 2 or len(logits) != len(pictures):
            raise ValueError(
                f"objective.reward.path={self.path} is a {type(network.model).__name__}, which gives no score of a "
                f"picture and its text; type objective.reward.path={EXAMPLE} or another CLIPModel"
            )
        return (logits.softmax(dim=1) if logits.shape[1] > 1 else logits)[:, -1].double().cpu()
