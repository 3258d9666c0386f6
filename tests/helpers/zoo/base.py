"""What a sample is, and the table of all samples."""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


@dataclass
class Sample:
    """A tiny pipeline with the arguments of one call.

    `latents` names what the pipeline returns that holds its result (latents where the pipeline gives them), several
    separated by commas, "" where it returns the tensor itself. `denoisers` names the attributes of `pipe` that are
    called at every step.
    """

    pipe: Any
    call: dict[str, Any]
    latents: str = "images"
    denoisers: tuple[str, ...] = ("transformer",)

    def run(self, seed: int = 0, **changes: Any) -> Tensor:
        """The result of one call with a fresh generator; several tensors are flattened into one.

        The global generator is seeded too: some pipelines draw from it, whatever generator they are given.
        """
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            result = self.pipe(**self.call | {"generator": torch.Generator().manual_seed(seed)} | changes)
        found = [as_tensor(part(result, name)) for name in self.latents.split(",")]
        return found[0] if len(found) == 1 else torch.cat([t.flatten().float() for t in found])


def part(result: Any, name: str) -> Any:
    """What a pipeline returned under this name; itself where there is none."""
    if not name:
        return result
    return result[name] if isinstance(result, dict) else getattr(result, name)


def as_tensor(value: Any) -> Tensor:
    """Tensors, arrays, pictures and lists of them as one tensor."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, list | tuple):
        return torch.stack([as_tensor(v) for v in value])
    return torch.from_numpy(np.array(value))


ZOO: dict[str, Callable[[], Sample]] = {}


def entry(name: str) -> Callable[[Callable[[], Sample]], Callable[[], Sample]]:
    """Put a builder into the table under a denoiser's class name, or `class/variant`. It builds the same every time."""

    def add(build: Callable[[], Sample]) -> Callable[[], Sample]:
        def seeded() -> Sample:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                sample = build()
            for module in vars(sample.pipe).values():
                if isinstance(module, nn.Module):
                    module.eval()
            if hasattr(sample.pipe, "set_progress_bar_config"):
                sample.pipe.set_progress_bar_config(disable=True)
            return sample

        if name in ZOO:
            raise ValueError(f"two builders are named {name}")
        ZOO[name] = seeded
        return seeded

    return add


def lively(module: Any, gain: float = 1.0) -> Any:
    """Random weights in every parameter, so that no gate is closed and no block is without effect."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            draw = torch.randn_like(parameter)
            if not parameter.numel():
                continue
            if parameter.ndim > 1:
                parameter.copy_(draw * (gain / math.sqrt(parameter[0].numel())))
            elif name.endswith("weight"):
                parameter.copy_(1 + 0.1 * draw)
            else:
                parameter.copy_(0.1 * draw)
    return module


def assemble(kind: Any, **parts: Any) -> Any:
    """A pipeline of these parts; what it asks for and is not given is None."""
    required = [p.name for p in inspect.signature(kind.__init__).parameters.values() if p.default is p.empty]
    return kind(**dict.fromkeys(required[1:]) | parts)


def noise(*shape: int, seed: int = 7) -> Tensor:
    """Normal numbers, the same for the same seed: embeddings, mostly."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def picture(width: int = 16, height: int | None = None, seed: int = 3) -> Any:
    """A PIL picture of random colours."""
    from PIL import Image

    colours = np.random.default_rng(seed).integers(0, 256, (height or width, width, 3), dtype=np.uint8)
    return Image.fromarray(colours)


def mask(width: int = 16, height: int | None = None) -> Any:
    """A PIL mask: the left half is white."""
    from PIL import Image

    white = np.zeros((height or width, width), dtype=np.uint8)
    white[:, : width // 2] = 255
    return Image.fromarray(white)
