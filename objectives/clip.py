"""Objective `clip`: how well a picture matches its prompt."""

from collections.abc import Sequence

from torch import Tensor

from search.objectives.base import Reward
from search.objectives.network import Network, cosines
from search.profile.costs import Costs


class Clip(Reward):
    """100 times the cosine between a CLIPModel's vectors of picture and prompt (CLIPScore, arXiv:2104.08718).

    The original has a factor of 2.5 and sets negative cosines to 0; both are left out here.

    Args:
        path: Folder or hub id of a CLIPModel. None is the bundled CLIP, whose vocabulary is that of the bundled models.
        device: Where it runs; by default the GPU if there is one.

    Example:
        >>> from search.objectives.clip import Clip
        >>> Clip(device="cpu").better
        'higher'
    """

    key, unit, ceiling = "clip", "cosine × 100", 100.0

    def __init__(self, path: str | None = None, device: str | None = None) -> None:
        self._network = Network(path, device, "objective.clip.path")
        self.path, self.weights = path, self._network.weights

    def score(self, pictures: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores [B] in fp64; ValueError if the bundled CLIP does not have a word of a prompt."""
        return 100 * cosines(self._network.pictures(pictures), self._network.texts(prompts))

    def worst(self, costs: Costs) -> float:
        return 0.0
