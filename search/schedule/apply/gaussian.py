"""The denoiser of a Gaussian: what a perfect denoiser would predict if final latents were normally distributed.

At high noise a trained denoiser does little more than that (arXiv:2412.09726), so its first calls can be saved. The
mean and the largest principal components of the model's own final latents give the first steps for nothing.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor, nn

from search.schedule.apply.calls import parameter_names
from search.schedule.errors import ScheduleError
from search.schedule.noise import Noise
from search.schedule.parts.gaussian import BASIS, GAUSSIAN, MEAN, VALUES
from search.schedule.tensors import digest_of


@dataclass(frozen=True, eq=False)
class Gaussian:
    """A normal distribution of final latents: N(mean, basis.T diag(values) basis).

    Attributes:
        mean: Of the latents of one picture, as the scheduler has them [...], in fp32.
        basis: Orthonormal directions [rank, numbers of mean], in fp16.
        values: The variance in each direction [rank], in fp32.
    """

    mean: Tensor
    basis: Tensor
    values: Tensor

    @classmethod
    def of(cls, latents: Tensor, rank: int) -> "Gaussian":
        """That of some final latents [N, ...], in the `rank` directions in which they vary most, at most N - 1."""
        rows = latents.double().flatten(1)
        mean = rows.mean(0)
        _, scales, basis = torch.linalg.svd(rows - mean, full_matrices=False)
        rank = min(rank, len(rows) - 1)
        values = scales[:rank].square() / max(len(rows) - 1, 1)
        return cls(mean.view(latents.shape[1:]).float(), basis[:rank].half().contiguous(), values.float())

    @classmethod
    def read(cls, letter: str, tensors: Mapping[str, Tensor]) -> "Gaussian | None":
        """That of a letter from the tensors file; None where it was not read."""
        names = [f"models/{letter}.{key}" for key in (MEAN, BASIS, VALUES)]
        return cls(*(tensors[name] for name in names)) if tensors.keys() >= set(names) else None

    def tensors(self, letter: str) -> dict[str, Tensor]:
        """Its numbers by their names in the tensors file."""
        return {
            f"models/{letter}.{key}": value
            for key, value in ((MEAN, self.mean), (BASIS, self.basis), (VALUES, self.values))
        }

    def digest(self, letter: str) -> str:
        """`sha256:…` of its numbers under a letter, computed once."""
        if letter not in self._digests:
            self._digests[letter] = digest_of(self.tensors(letter))
        return self._digests[letter]

    @cached_property
    def _digests(self) -> dict[str, str]:
        return {}

    def part(self, letter: str) -> dict[str, Any]:
        """Its entry in `models.names` of a schedule file."""
        return {
            "class": GAUSSIAN,
            "fingerprint": self.digest(letter),
            "stacks": {},
            "name": f"Gaussian of rank {len(self.values)}",
        }

    @property
    def nbytes(self) -> int:
        """Of all numbers."""
        return sum(t.numel() * t.element_size() for t in (self.mean, self.basis, self.values))

    @property
    def macs(self) -> int:
        """Of one prediction for one row: onto the basis and back."""
        return 2 * int(self.basis.numel())

    def predict_final(self, state: Tensor, alpha: float, sigma: float) -> Tensor:
        """The expected final latents [B, ...] of states alpha * latents + sigma * noise, in fp32."""
        mean, basis, values = (t.to(state.device, torch.float32) for t in (self.mean, self.basis, self.values))
        inner = (state.float() - alpha * mean).flatten(1) @ basis.T  # [B, rank]
        gain = alpha * values / (alpha * alpha * values + sigma * sigma).clamp(min=1e-30)
        return mean + ((inner * gain) @ basis).view(state.shape)


class GaussianDenoiser(nn.Module):
    """A Gaussian in the place of a denoiser: it takes the denoiser's arguments, and predicts the same quantity."""

    def __init__(self, gaussian: Gaussian, denoiser: nn.Module, noise: Noise, name: str) -> None:
        """`denoiser` is the pipeline's own, `noise` that of its scheduler, `name` the place in the file."""
        super().__init__()
        self.gaussian, self.noise, self.name = gaussian, noise, name
        self.own_class = type(denoiser)
        config = getattr(denoiser, "config", {})
        self.channels = config.get("out_channels"), config.get("in_channels")
        self.timestep = 0.0  # of the step that runs, set before each call

    @cached_property
    def latents_name(self) -> str:
        """The name of the denoiser's argument for latents."""
        return parameter_names(self.own_class)[0]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the denoiser would return; ScheduleError where latents have another shape than those of the Gaussian."""
        state = args[0] if args else kwargs[self.latents_name]
        if not isinstance(state, Tensor) or state.shape[1:] != self.gaussian.mean.shape:
            given = list(state.shape[1:]) if isinstance(state, Tensor) else type(state).__name__
            raise ScheduleError(
                f"{self.name} is for latents {list(self.gaussian.mean.shape)}, and those of this run are {given}; the "
                "Gaussian holds for one size of pictures: search at this one"
            )
        output = self._prediction(state).to(state.dtype)
        outputs, inputs = self.channels
        if outputs and inputs and outputs == 2 * inputs:  # learned variances, which samplers of few steps leave out
            output = torch.cat([output, torch.zeros_like(output)], 1)
        return (output,) if kwargs.get("return_dict") is False else Transformer2DModelOutput(sample=output)

    def _prediction(self, state: Tensor) -> Tensor:
        ratio = float(self.noise.sigma(self.timestep))
        if self.noise.kind == "flow":
            alpha, sigma = 1 - ratio, ratio
        else:  # also where the state is latents + sigma * noise: the denoiser's input is then divided
            alpha = 1 / math.hypot(1, ratio)
            sigma = ratio * alpha
        final = self.gaussian.predict_final(state, alpha, sigma)
        if self.noise.prediction == "sample":
            return final
        noise = (state.float() - alpha * final) / max(sigma, 1e-12)
        if self.noise.kind == "flow":
            return noise - final
        return alpha * noise - sigma * final if self.noise.prediction == "v_prediction" else noise
