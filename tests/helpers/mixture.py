"""A Gaussian mixture whose denoiser is exact, and the probability flow of it solved finely."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.integrate import solve_ivp


@dataclass(frozen=True)
class Mixture:
    """Weights [K], means [K, d] and isotropic standard deviations [K] of the clean data, all float64."""

    weights: torch.Tensor
    means: torch.Tensor
    deviations: torch.Tensor

    @classmethod
    def random(cls, d: int = 2, components: int = 4, seed: int = 0) -> "Mixture":
        draw = torch.Generator().manual_seed(seed)

        def numbers(*shape: int) -> torch.Tensor:
            return torch.rand(*shape, generator=draw, dtype=torch.float64)

        weights = 0.5 + numbers(components)
        return cls(weights / weights.sum(), 2 * numbers(components, d) - 1, 0.3 + 0.3 * numbers(components))

    def x0(self, x: torch.Tensor, alpha: float, sigma: float) -> torch.Tensor:
        """The mean of the clean data given x [B, d] = alpha * clean + sigma * noise."""
        spread = (alpha * self.deviations) ** 2 + sigma**2  # [K]
        away = x[:, None] - alpha * self.means  # [B, K, d]
        d = x.shape[1]
        score = self.weights.log() - d / 2 * spread.log() - (away**2).sum(-1) / (2 * spread)
        means = self.means + (alpha * self.deviations**2 / spread)[:, None] * away  # [B, K, d]
        return (score.softmax(1)[..., None] * means).sum(1)

    def epsilon(self, x: torch.Tensor, alpha: float, sigma: float) -> torch.Tensor:
        """The mean of the noise given x."""
        return (x - alpha * self.x0(x, alpha, sigma)) / sigma

    def flow(self, x: torch.Tensor, start: tuple[float, float], end: tuple[float, float]) -> torch.Tensor:
        """x carried along the probability flow from scales (alpha, sigma) to others, to about 1e-12."""

        def slope(ratio: float, y: np.ndarray) -> np.ndarray:
            # with y = x / alpha and ratio = sigma / alpha: dy = epsilon d ratio, and epsilon knows y at alpha = 1
            return self.epsilon(torch.from_numpy(y).view(x.shape), 1.0, ratio).numpy().ravel()

        span = (start[1] / start[0], end[1] / end[0])
        found = solve_ivp(slope, span, x.numpy().ravel() / start[0], method="DOP853", rtol=1e-12, atol=1e-13)
        return torch.from_numpy(found.y[:, -1].copy()).view(x.shape) * end[0]
