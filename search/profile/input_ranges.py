"""Ranges of layers' inputs at every step of a run, and what static formats take of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

DRAWN = 8  # steps of a law


@dataclass(frozen=True, eq=False)
class InputRanges:
    """Least and greatest value of layers' inputs at each step of one run.

    One run has the ranges of every subset of its steps: those of several steps are the extremes over them.

    Attributes:
        timesteps: Of the run's steps [T].
        layers: By layer [T, sides, 2]: at every step the least and the greatest value on each side of its split;
            not a number where the layer did not run.

    Example:
        >>> import numpy as np
        >>> from search.profile.input_ranges import InputRanges
        >>> ranges = InputRanges((900.0, 400.0), {"proj_out": np.array([[[-1, 1]], [[-0.5, 2]]])})
        >>> ranges.over("proj_out"), ranges.over("proj_out", steps=[0])
        ([(-1.0, 2.0)], [(-1.0, 1.0)])
    """

    timesteps: tuple[float, ...]
    layers: Mapping[str, np.ndarray]

    def over(self, layer: str, steps: Sequence[int] | None = None) -> list[tuple[float, float]]:
        """(least, greatest) of each side over some steps, extended to contain 0, to six digits as in a file.

        Args:
            layer: Its full name.
            steps: Indices of the steps; None for all.

        Raises:
            ValueError: The layer ran at none of these steps.
        """
        seen = self.layers[layer] if steps is None else self.layers[layer][list(steps)]
        seen = seen[~np.isnan(seen).any((1, 2))]
        if not len(seen):
            raise ValueError(
                f"{layer} ran at none of the steps {', '.join(map(str, steps or ()))}; give it all steps (steps=None), "
                "or use a static format only for layers that the plan runs"
            )
        return [_rounded(low, high) for low, high in zip(seen[..., 0].min(0), seen[..., 1].max(0), strict=True)]

    @property
    def at(self) -> list[float]:
        """The timesteps, each once and falling: those that `per_step` has ranges of."""
        return sorted(set(self.timesteps), reverse=True)

    def per_step(self, layer: str) -> list[list[tuple[float, float]]]:
        """(least, greatest) of each side at each timestep of `at`, extended to contain 0, as in a file.

        Where the layer did not run, it is between that of the steps around.
        """
        seen = self.layers[layer]
        steps = np.arange(len(seen))
        ran = ~np.isnan(seen).any((1, 2))
        filled = np.stack([np.interp(steps, steps[ran], ends) for ends in seen[ran].reshape(ran.sum(), -1).T], 1)
        filled, timesteps = filled.reshape(seen.shape), np.array(self.timesteps)
        rows = [filled[timesteps == timestep] for timestep in self.at]  # some solvers call twice at one timestep
        ends = [zip(row[..., 0].min(0), row[..., 1].max(0), strict=True) for row in rows]
        return [[_rounded(low, high) for low, high in sides] for sides in ends]

    def reaching(self, timesteps: Sequence[float]) -> "InputRanges":
        """The same, where timesteps lie outside with the first or the last step's range at the outermost of them."""
        before = [max(timesteps)] if timesteps and max(timesteps) > self.timesteps[0] else []
        after = [min(timesteps)] if timesteps and min(timesteps) < self.timesteps[-1] else []
        ends = {name: (seen[:1][: len(before)], seen, seen[-1:][: len(after)]) for name, seen in self.layers.items()}
        layers = {name: np.concatenate(parts) for name, parts in ends.items()} if before or after else self.layers
        return InputRanges((*before, *self.timesteps, *after), layers)


def _rounded(low: float, high: float) -> tuple[float, float]:
    return float(f"{min(low, 0.0):.6g}"), float(f"{max(high, 0.0):.6g}")


def drawn_steps(mean: float, spread: float, steps: int, seed: int = 0, count: int = DRAWN) -> list[int]:
    """Steps of a run by a normal law, as PTQ4DM (arXiv:2211.15736) draws the steps whose inputs it calibrates on.

    Args:
        mean: Where in the run most of them are, from 0, the first step, to 1, the last.
        spread: Standard deviation, as a share of the run.
        steps: The number of steps T.
        seed: Of the draw, whose normal numbers are the same for every mean and spread.
        count: How many are drawn.

    Returns:
        Indices of steps, rising, each once: fewer than `count` where some meet.

    Example:
        >>> from search.profile.input_ranges import drawn_steps
        >>> drawn_steps(0.5, 0.1, 20)
        [8, 9, 10, 11, 12]
    """
    places = mean + spread * np.random.default_rng(seed).standard_normal(count)
    return sorted({int(step) for step in np.clip(np.floor(places * steps), 0, steps - 1)})
