"""The noise schedule behind a sampler part: signal and noise scales, log-SNR, and timesteps of given sigmas."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from search.schedule.sampler import scheduler_class

FLOW = ("flow_prediction", "flow")


@dataclass(frozen=True)
class Noise:
    """Scales of x = alpha * x0 + sigma * noise over the training timesteps, all in float64.

    `sigmas` [N] are sigma/alpha of the training timesteps 0..N-1, rising (flow matching: sigma itself, in 0..1).
    `kind` is vp (alpha² + sigma² = 1), ve (alpha = 1: the denoiser's input is scaled instead) or flow
    (alpha = 1 - sigma). `prediction` is what the denoiser predicts: epsilon, v_prediction, sample or flow.
    """

    sigmas: np.ndarray
    kind: Literal["vp", "ve", "flow"] = "vp"
    prediction: str = "epsilon"

    @classmethod
    def of(cls, sampler: Mapping[str, Any]) -> "Noise":
        """The noise schedule of a schedule file's sampler part (class and config)."""
        scheduler = scheduler_class(sampler["class"]).from_config(dict(sampler.get("config", {})))
        config = scheduler.config
        prediction = str(getattr(config, "prediction_type", "epsilon"))
        if type(scheduler).__name__.startswith("FlowMatch") or prediction in FLOW:
            count = int(config.num_train_timesteps)
            return cls(np.arange(count) / count, "flow", "flow")  # a shift moves the grid, not this relation
        kept = scheduler.alphas_cumprod.double().numpy()
        # These classes divide the denoiser's input by sqrt(sigma² + 1) and keep x0 + sigma * noise as their state.
        scaled = type(scheduler).__name__ in VE
        return cls(np.sqrt((1 - kept) / kept), "ve" if scaled else "vp", prediction)

    def scales(self, sigma: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
        """Signal scale alpha and noise scale sigma of the state, for sigma/alpha (flow: sigma) as stored in files."""
        s = np.asarray(sigma, dtype=float)
        if self.kind == "flow":
            return 1 - s, s
        if self.kind == "ve":
            return np.ones_like(s), s
        alpha = 1 / np.sqrt(1 + s**2)
        return alpha, alpha * s

    def logsnr(self, sigma: np.ndarray | float) -> np.ndarray:
        """lambda = log(alpha / sigma); infinite at sigma 0."""
        alpha, s = self.scales(sigma)
        with np.errstate(divide="ignore"):
            return np.log(alpha) - np.log(s)

    def sigma(self, timestep: Sequence[float] | np.ndarray | float) -> np.ndarray:
        """sigma/alpha at training timesteps, linear between them as diffusers interpolates."""
        wanted = np.asarray(timestep, dtype=float)
        if self.kind == "flow":
            return wanted / len(self.sigmas)
        return np.interp(wanted, np.arange(len(self.sigmas)), self.sigmas)

    def timestep(self, sigma: Sequence[float] | np.ndarray | float) -> np.ndarray:
        """Training timestep (fractional) of a sigma, between training timesteps as diffusers interpolates it."""
        wanted, steps = np.asarray(sigma, dtype=float), np.arange(len(self.sigmas), dtype=float)
        if self.kind == "flow":
            return wanted * len(self.sigmas)
        return np.interp(np.log(np.maximum(wanted, 1e-10)), np.log(self.sigmas), steps)

    def grid_logsnr(self, sampler: Mapping[str, Any]) -> np.ndarray:
        """log-SNR [T] of a sampler part's steps."""
        if sampler.get("sigmas") is not None:
            return self.logsnr(np.array(sampler["sigmas"][:-1]))
        return self.logsnr(self.sigma(sampler["timesteps"]))


VE = (
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "LMSDiscreteScheduler",
    "KDPM2DiscreteScheduler",
)
