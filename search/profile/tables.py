"""What is measured of a model before a search, as a space reads it in `Space.propose`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from search.profile.costs import Costs
from search.profile.target import Target

FindPaths = Callable[[np.ndarray, np.ndarray, Sequence[int]], list[list[int]]]


@dataclass(frozen=True)
class GeneTable:
    """What each gene does alone, all other genes off: measured once, read by engines that solve instead of search.

    Attributes:
        errors: Of each gene g the drift at each level, [levels of g]; 0 at level 0.
        costs: Of each cost c and gene g the change of the cost at each level, [levels of g]; negative where it saves.
        vectors: Of each gene g the relative errors of the final latents, [levels of g, D], whose norms `errors` are;
            empty where they were not recorded.
    """

    errors: Sequence[np.ndarray]
    costs: Sequence[Sequence[np.ndarray]]
    vectors: Sequence[np.ndarray] = ()


@dataclass(frozen=True)
class DenseRun:
    """A recorded run of more steps than the teacher has.

    Attributes:
        states: The flattened latents before each step and at the end, [M+1, D].
        outputs: What the denoiser gave at each step, [M, D].
        timesteps: Training timesteps of the steps, falling, [M].
    """

    states: np.ndarray
    outputs: np.ndarray
    timesteps: np.ndarray

    def paths(self, find_paths: FindPaths, counts: Sequence[int]) -> list[list[float]]:
        """Falling timesteps of short runs through this one.

        Args:
            find_paths: `shortest_step_paths` or `reach_paths` of search/exact/paths.py.
            counts: The numbers of steps of the short runs.

        Returns:
            For each count the timesteps of its steps.
        """
        paths = find_paths(self.states, self.outputs, counts)
        return [[float(self.timesteps[i]) for i in path] for path in paths]


class Tables(Protocol):
    """Measured tables of one model; each is measured when it is first read, which costs runs of the model.

    T is the number of the teacher's steps. All errors are relative RMS errors, all times are indices of steps.
    """

    @property
    def target(self) -> Target:
        """The model's nodes, layers, steps and sampler."""

    @property
    def costs(self) -> Costs:
        """MACs and bytes of every node."""

    @property
    def weights(self) -> np.ndarray:
        """Terminal drift per unit of relative error in the denoiser's output, [T]."""

    @property
    def scales(self) -> dict[str, float]:
        """By component kind: measured drift of reusing it at every second step over what the tables predict."""

    @property
    def distances(self) -> np.ndarray:
        """L1 distances between the denoiser's outputs at two steps, [T, T]."""

    @property
    def dense_run(self) -> DenseRun:
        """A run of the pipeline's own sampler with more steps than the teacher; ValueError without sigmas."""

    def reuse_errors(self, names: Sequence[str]) -> np.ndarray:
        """Error at a step (column) of the value of an earlier step (row), mean over these nodes, [T, T]."""

    def forecast_errors(self, names: Sequence[str]) -> np.ndarray:
        """Error at step t of the line through the values of steps p < s < t, mean over these nodes, [T, T, T]."""

    def gene_table(self, key: str) -> GeneTable:
        """What each gene of the space `key` does alone; one run of the model for each level of each gene."""
