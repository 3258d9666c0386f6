"""How colourful pictures are."""

from collections.abc import Sequence

from torch import Tensor

from search.objectives.base import Reward
from search.profile.costs import Costs


class Colourful(Reward):
    """Spread and distance from grey in the opponent colours (Hasler and Süsstrunk 2003), for values of 0 to 1.

    `pull` is the weight of the distance from grey.
    """

    key, unit = "colourful", ""

    def __init__(self, pull: float = 0.3) -> None:
        self.pull = pull

    def score(self, pictures: Tensor, prompts: Sequence[str]) -> Tensor:
        red, green, blue = pictures.unbind(1)
        across = [red - green, (red + green) / 2 - blue]
        spread = sum(c.flatten(1).var(dim=1) for c in across) ** 0.5
        distance = sum(c.flatten(1).mean(dim=1).square() for c in across) ** 0.5
        return spread + self.pull * distance

    def worst(self, costs: Costs) -> float:
        return 0.0
