"""How well a picture fits its prompt."""

from collections.abc import Sequence

from torch import Tensor

from search.objectives.base import Reward
from search.objectives.network import Network, cosines
from search.profile.costs import Costs


class Clip(Reward):
    """100 times the cosine between a CLIPModel's vectors of picture and prompt (CLIP score, arXiv:2104.08718).

    The original has a factor of 2.5 and cuts negative cosines off; both are left out here. `path` null is the bundled
    CLIP, which knows the bundled models' words and no others.
    """

    key, unit, ceiling = "clip", "cosine × 100", 100.0

    def __init__(self, path: str | None = None, device: str | None = None) -> None:
        self._network = Network(path, device, "objective.clip.path")
        self.path, self.weights = path, self._network.weights

    def score(self, pictures: Tensor, prompts: Sequence[str]) -> Tensor:
        return 100 * cosines(self._network.pictures(pictures), self._network.texts(prompts))

    def worst(self, costs: Costs) -> float:
        return 0.0
