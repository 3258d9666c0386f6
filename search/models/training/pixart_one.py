"""The one-step PixArt: pixart_turbo, distilled from four steps to one call, from noise to latents."""

from pathlib import Path

import torch
from torch.nn.functional import l1_loss

from .emoji import EmojiSet
from .few_steps import Distillation, distil
from .loop import Recipe

RECIPE = Recipe(steps=3000, rate=1e-3, warmup=100, decay=0.8, weight_decay=0.01, ema=0.995)
BATCH = 16
TASK = Distillation(
    name="pixart_one",
    teacher="pixart_turbo",
    guidance=1.0,
    teacher_steps=4,
    steps=1,
    trajectories=6144,
    batch=BATCH,
    loss=l1_loss,  # the mean square makes what the noise decides blurred
)


def fit(pictures: EmojiSet | None, work: Path, device: torch.device, out: Path, recipe: Recipe = RECIPE) -> float:
    """Train the student, write its pipeline to `out`, return the loss; `pictures` is not read."""
    return distil(TASK, work, device, out, recipe)
