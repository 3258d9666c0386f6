"""Corrections of reused values, by chance."""

import torch

from search import Schedule
from search.schedule.apply.corrections import reused_steps
from tests.helpers import pipelines


def numbers(schedule: Schedule, root: int = 8, seed: int = 0) -> dict[str, torch.Tensor]:
    """Corrections of every reused value, by chance; a denoiser's output has `root` channels."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, steps in reused_steps(schedule.plan).items():
        shape = len(steps), root if name == "denoiser" else pipelines.WIDTH
        found[f"{name}.scale"] = (1 + 0.3 * torch.randn(shape, generator=generator)).half()
        found[f"{name}.shift"] = (0.1 * torch.randn(shape, generator=generator)).half()
    return found
