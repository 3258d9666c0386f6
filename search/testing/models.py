"""Adapters of tiny pipelines: small enough to search in a test, and with everything that a real model has."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, TypeVar

import torch

from search.models.dit import DiT
from search.models.flux import Flux
from search.models.pipeline import Pipeline
from search.models.pixart import PixArt
from search.models.sd3 import StableDiffusion3
from search.models.stable_diffusion import StableDiffusion, StableDiffusionXL
from search.models.wan import Wan
from search.testing import pipelines
from search.testing.pipelines import TOKENS

Adapter = TypeVar("Adapter", bound=Pipeline)

# family: its adapter, how to build its pipeline, and the arguments of a small run
FAMILIES: dict[str, tuple[type[Pipeline], Callable[[], Any], dict[str, Any]]] = {
    "sd": (StableDiffusion, pipelines.stable_diffusion, {}),
    "sdxl": (StableDiffusionXL, pipelines.stable_diffusion_xl, {}),
    "dit": (DiT, pipelines.dit, {}),
    "flux": (Flux, pipelines.flux, {"max_sequence_length": TOKENS}),
    "sd3": (StableDiffusion3, pipelines.stable_diffusion_3, {"max_sequence_length": TOKENS, "guidance_scale": 4.0}),
    "wan": (Wan, pipelines.wan, {"max_sequence_length": TOKENS, "height": 32, "width": 32, "num_frames": 5}),
}


def tiny_model(steps: int = 6, **arguments: Any) -> PixArt:
    """A fresh adapter of a tiny PixArt, three blocks; tests that change the pipeline do not meet each other."""
    return PixArt(path=tiny_folder(), steps=steps, max_sequence_length=TOKENS, **arguments)


def tiny_family(family: str, steps: int = 5, **arguments: Any) -> Any:
    """A fresh adapter of any family but PixArt: a key of `FAMILIES`."""
    adapter, _, small = FAMILIES[family]
    return adapter(**{"path": family_folder(family), "steps": steps, **small, **arguments})


@cache
def tiny_folder() -> Path:
    """The tiny PixArt pipeline, saved."""
    return save_tiny(Path(mkdtemp()) / "tiny")


@cache
def family_folder(family: str) -> Path:
    """The tiny pipeline of a family, saved."""
    return saved(FAMILIES[family][1], Path(mkdtemp()) / family)


def save_tiny(folder: Path, blocks: int = 3, scheduler: Any = None) -> Path:
    """Write a PixArt pipeline of so many blocks; the folder."""
    return saved(lambda: pipelines.pixart(scheduler, num_layers=blocks), folder)


def saved(build: Callable[[], Any], folder: Path) -> Path:
    """Build a pipeline from one seed and write it; the folder."""
    torch.manual_seed(0)
    build().save_pretrained(folder)
    return folder


def lively(model: Adapter) -> Adapter:
    """The model with weights so large that every action shows in the latents."""
    torch.manual_seed(0)
    for parameter in model.denoiser.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model
