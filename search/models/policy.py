"""A policy instead of an image model (search/models/trajectory.py), described only by the contract in its YAML."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from search.models.base import Model
from search.models.trajectory import HORIZON, RADIUS, TrajectoryPipeline
from search.profile.bundled import bundled_model
from search.profile.target import Target
from search.schedule.model.contracts import Contract
from search.schedule.model.identity import model_part
from search.schedule.model.nodes import Tree

PIXELS = 64
PLAIN = "start 0 goal 0"


@dataclass(eq=False, repr=False)
class Policy(Model):
    """Plans of a point that passes an obstacle; a prompt is a line such as `start -0.4 goal 0.8 above`.

    Latents are the plans [B, H, 2]; decoded they are drawings.

    Attributes:
        contract: What can be planned, as `Contract.from_dict` reads it.
        chunks: Into how many parts a plan is divided. With more than one a run is a tick of a stream: each part has
            another level of noise, and time is a vector.
        guidance_scale: Always 1: the policy has no guidance.

    Raises:
        ValueError: `chunks` does not divide the length of a plan, a scale is given, or `path` has no policy.
    """

    contract: Mapping[str, Any]
    name: str = "policy"
    path: str | Path | None = None
    steps: int = 20
    chunks: int = 1
    guidance_scale: float = 1.0
    device: Any = "cpu"

    def __post_init__(self) -> None:
        if self.chunks < 1 or HORIZON % self.chunks:
            raise ValueError(
                f"model.chunks={self.chunks} does not divide {HORIZON}, the actions of a plan; try model.chunks=4"
            )
        if self.guidance_scale != 1:
            raise ValueError(f"model.guidance_scale={self.guidance_scale}: {self.name} has no guidance; leave it at 1")
        folder = Path(self.path or bundled_model("policy"))
        if not (folder / "config.json").is_file():
            raise ValueError(
                f"model.path={str(self.path)!r} has no config.json of a policy; type model.path=<such a folder>"
            )
        self.device = torch.device(self.device)
        self.pipe = TrajectoryPipeline.from_pretrained(folder)
        self.denoiser.to(self.device)
        contract = Contract.from_dict(self.contract)
        layers = {n: (m.out_features, m.in_features) for n, m in self.denoiser.named_modules() if type(m) is nn.Linear}
        tree, part = Tree.of(self.denoiser, contract), model_part(self.denoiser, contract)
        self.target = Target(self.name, tree, self.steps, part, self.shorter(self.steps), layers)

    @property
    def arguments(self) -> Mapping[str, Any]:
        return {"num_inference_steps": self.steps, "chunks": self.chunks}

    def call_arguments(self, prompts: Sequence[str], seeds: Sequence[int]) -> dict[str, Any]:
        """Lines and generators; the empty prompt is the plain one."""
        return {
            **self.arguments,
            "lines": [line or PLAIN for line in prompts],
            "num_inference_steps": self.steps_to_run(self.steps),
            "generator": [torch.Generator().manual_seed(seed) for seed in seeds],
        }

    def decode(self, latents: Tensor, prompts: Sequence[str] = (), seeds: Sequence[int] = ()) -> Tensor:
        """Drawings [B, 3, 64, 64] of the obstacle and the way around it, from -1.2 to 1.2 along both axes."""
        axis = torch.linspace(-1.2, 1.2, PIXELS, device=latents.device)
        places = torch.stack(torch.meshgrid(-axis, axis, indexing="ij")[::-1], dim=-1)  # y upwards
        plans = latents.float()
        between = torch.lerp(
            plans[:, :-1, None], plans[:, 1:, None], torch.linspace(0, 1, 8, device=axis.device)[:, None]
        )
        far = (
            torch.cdist(places.flatten(0, 1)[None], between.flatten(1, 2))
            .min(dim=-1)
            .values.unflatten(1, (PIXELS, PIXELS))
        )
        ink = torch.exp(-((far / 0.04) ** 2))
        ground = torch.where(places.norm(dim=-1) < RADIUS, 0.75, 1.0)
        color = torch.tensor([0.0, 0.45, 0.7], device=axis.device)[:, None, None]
        return ground * (1 - ink[:, None]) + color * ink[:, None]

    def stock(self, prompts: Sequence[str], seeds: Sequence[int], **arguments: Any) -> Any:
        """Drawings [B, 64, 64, 3] in a tuple, as pipelines of pictures give them."""
        arguments.pop("output_type", None)
        return (self.decode(super().stock(prompts, seeds, **arguments)).movedim(1, -1),)
