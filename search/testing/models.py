"""Models of tiny pipelines: small enough to search in a test, and with everything that a real model has."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, TypeVar

import torch

from search.models.base import Model
from search.models.pipeline import Pipeline
from search.testing import pipelines
from search.testing.pipelines import TOKENS

M = TypeVar("M", bound=Model)
SIZE = {"height": 16, "width": 16}

# family: how to build its pipeline, and the arguments of a small run
FAMILIES: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "sd": (pipelines.stable_diffusion, {"guidance_scale": 4.0}),
    "sdxl": (pipelines.stable_diffusion_xl, {"guidance_scale": 4.0}),
    "dit": (pipelines.dit, {"guidance_scale": 4.0}),
    "flux": (pipelines.flux, {"max_sequence_length": TOKENS, "guidance_scale": 3.5, **SIZE}),
    "sd3": (pipelines.stable_diffusion_3, {"max_sequence_length": TOKENS, "guidance_scale": 4.0, **SIZE}),
    "wan": (
        pipelines.wan,
        {"max_sequence_length": TOKENS, "height": 32, "width": 32, "num_frames": 5, "vae_dtype": "float32"},
    ),
}


def pixart(path: str | Path = "pixart", **arguments: Any) -> Pipeline:
    """A PixArt pipeline as conf/model/pixart.yaml has it; the bundled one by default."""
    call = {"use_resolution_binning": False, "clean_caption": False}
    usual = {"name": "pixart", "steps": 20, "guidance_scale": 4.0, "max_sequence_length": 16}
    return Pipeline(**{**usual, "path": path, "call": call, **arguments})


def tiny_model(steps: int = 6, **arguments: Any) -> Pipeline:
    """A fresh tiny PixArt, three blocks; tests that change the pipeline do not meet each other."""
    return pixart(tiny_folder(), steps=steps, max_sequence_length=TOKENS, **arguments)


def tiny_family(family: str, steps: int = 5, **arguments: Any) -> Pipeline:
    """A fresh model of any family but PixArt: a key of `FAMILIES`."""
    return Pipeline(
        **{"name": family, "path": family_folder(family), "steps": steps, **FAMILIES[family][1], **arguments}
    )


@cache
def tiny_folder() -> Path:
    """The tiny PixArt pipeline, saved."""
    return save_tiny(Path(mkdtemp()) / "tiny")


@cache
def family_folder(family: str) -> Path:
    """The tiny pipeline of a family, saved."""
    return saved(FAMILIES[family][0], Path(mkdtemp()) / family)


def save_tiny(folder: Path, blocks: int = 3, scheduler: Any = None) -> Path:
    """Write a PixArt pipeline of so many blocks; the folder."""
    return saved(lambda: pipelines.pixart(scheduler, num_layers=blocks), folder)


def saved(build: Callable[[], Any], folder: Path) -> Path:
    """Build a pipeline from one seed and write it; the folder."""
    torch.manual_seed(0)
    build().save_pretrained(folder)
    return folder


def lively(model: M) -> M:
    """The model with weights so large that every action shows in the latents."""
    torch.manual_seed(0)
    for parameter in model.denoiser.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model
