"""The noise schedule behind a sampler part: signal and noise scales, log-SNR, and timesteps of given sigmas."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from search.schedule.errors import ScheduleError
from search.schedule.schedulers import GRIDDED, build_scheduler

FLOW = ("flow_prediction", "flow")
# These classes divide the denoiser's input by sqrt(sigma² + 1) and keep x0 + sigma * noise as their state.
VE = (
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "LMSDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "DPMSolverSDEScheduler",
)


@dataclass(frozen=True, eq=False)
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
        """The noise schedule of a schedule file's sampler part (class and config); ScheduleError where it has none.

        >>> noise = Noise.of({"class": "DDIMScheduler", "config": {}})
        >>> len(noise.sigmas), noise.kind, noise.prediction
        (1000, 'vp', 'epsilon')
        """
        return _of_part(sampler["class"], json.dumps(sampler.get("config", {}), sort_keys=True))

    @classmethod
    def of_scheduler(cls, scheduler: Any) -> "Noise":
        """The noise schedule of a scheduler of diffusers; ScheduleError where it has no table of noise levels."""
        prediction = str(scheduler.config.get("prediction_type", "epsilon"))
        if is_flow(scheduler):
            count = int(scheduler.config.num_train_timesteps)
            # a shift moves the grid, not this relation
            return cls(
                _read_only(np.arange(count) / count), "flow", "flow" if _predicts_flow(scheduler) else prediction
            )
        name = type(scheduler).__name__
        if getattr(scheduler, "alphas_cumprod", None) is None:
            raise ScheduleError(
                f"{name} has no table of noise levels (alphas_cumprod); use a pipeline with "
                f"{GRIDDED[0]}, or another that has one: {', '.join(GRIDDED[1:])}"
            )
        alphas = scheduler.alphas_cumprod.double().numpy()
        with np.errstate(divide="ignore"):
            sigmas = np.sqrt((1 - alphas) / alphas)
        return cls(_read_only(sigmas), "ve" if name in VE else "vp", prediction)

    def scales(self, sigma: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
        """Signal scale alpha and noise scale sigma of the state, for sigma/alpha (flow: sigma) as stored in files."""
        s = np.asarray(sigma, dtype=float)
        if self.kind == "flow":
            return 1 - s, s
        if self.kind == "ve":
            return np.ones_like(s), s
        alpha = 1 / np.hypot(1, s)
        return alpha, np.where(np.isinf(s), 1.0, alpha * np.where(np.isinf(s), 0.0, s))

    def logsnr(self, sigma: np.ndarray | float) -> np.ndarray:
        """The logarithm of alpha / sigma; infinite where there is no noise, or nothing but noise."""
        alpha, s = self.scales(sigma)
        with np.errstate(divide="ignore"):
            logarithms: np.ndarray = np.log(alpha) - np.log(s)
            return logarithms

    def sigma(self, timestep: Sequence[float] | np.ndarray | float) -> np.ndarray:
        """sigma/alpha at training timesteps, linear between them as diffusers interpolates."""
        wanted = np.asarray(timestep, dtype=float)
        if self.kind == "flow":
            return wanted / len(self.sigmas)
        sigmas: np.ndarray = np.interp(wanted, np.arange(len(self.sigmas)), self.sigmas)
        return sigmas

    def timestep(self, sigma: Sequence[float] | np.ndarray | float) -> np.ndarray:
        """Training timestep (fractional) of a sigma, between training timesteps as diffusers interpolates it."""
        wanted, steps = np.asarray(sigma, dtype=float), np.arange(len(self.sigmas), dtype=float)
        if self.kind == "flow":
            return wanted * len(self.sigmas)
        logarithms = np.log(np.clip(wanted, 1e-10, 1e10))
        timesteps: np.ndarray = np.interp(logarithms, np.log(np.minimum(self.sigmas, 1e10)), steps)
        return timesteps

    def grid_logsnr(self, sampler: Mapping[str, Any]) -> np.ndarray:
        """log-SNR [T] of a sampler part's steps, within -30..30 so that steps can be compared."""
        given = sampler.get("sigmas")
        sigmas = self.sigma(sampler["timesteps"]) if given is None else np.array(given[:-1])
        clipped: np.ndarray = np.clip(self.logsnr(sigmas), -30, 30)
        return clipped


@lru_cache(maxsize=64)
def _of_part(class_name: str, config_json: str) -> Noise:
    """Noise.of, once per class and config: to build a scheduler takes a millisecond."""
    return Noise.of_scheduler(build_scheduler(class_name, json.loads(config_json)))


def is_flow(scheduler: Any) -> bool:
    """Whether a scheduler's sigmas are those of flow matching: x = (1 - sigma) * x0 + sigma * noise."""
    config = scheduler.config
    return _predicts_flow(scheduler) or bool(config.get("use_flow_sigmas", False))


def _predicts_flow(scheduler: Any) -> bool:
    prediction = str(scheduler.config.get("prediction_type", ""))
    return type(scheduler).__name__.startswith("FlowMatch") or prediction in FLOW


def _read_only(values: np.ndarray) -> np.ndarray:
    values.flags.writeable = False  # shared by all callers
    return values
