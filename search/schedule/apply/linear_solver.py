"""The interpreter of a solver table."""

from collections.abc import Sequence

import torch


class LinearSolver:
    """The interpreter of a solver table: x[i+1] = state[i] * x[0] + sum over j <= i of outputs[i][j] * e[j].

    Sums are accumulated in float64 on devices that have it, and returned in the latents' dtype.
    """

    def __init__(self, state: Sequence[float], outputs: Sequence[Sequence[float]]) -> None:
        self.state, self.outputs = state, outputs
        self.values: list[torch.Tensor] = []  # x[0], e[0], e[1], ...

    def step(self, i: int, output: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
        """x[i+1] from what the denoiser gave at step i; `sample` is read at step 0 only."""
        precise = torch.float32 if output.device.type == "mps" else torch.float64
        if i == 0:
            self.values = [sample.to(precise)]
        self.values.append(output.to(precise))
        total = self.values[0] * self.state[i]
        for value, weight in zip(self.values[1:], self.outputs[i], strict=True):
            if weight:
                total = torch.add(total, value, alpha=weight)
        if i + 1 == len(self.state):
            self.values = []
        return total.to(sample.dtype)
