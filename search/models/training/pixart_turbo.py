"""The four-step PixArt: the bundled one with guidance, distilled to four steps without."""

from pathlib import Path

import torch
from torch.nn.functional import mse_loss

from .emoji import EmojiSet
from .few_steps import Distillation, distil
from .loop import Recipe

RECIPE = Recipe(steps=1200, rate=1e-3, warmup=50, decay=0.7, weight_decay=0.01, ema=0.99, checkpoint_every=100)
BATCH = 4  # trajectories, each with four calls of the student
TASK = Distillation(
    name="pixart_turbo",
    teacher="pixart",
    guidance=4.0,
    teacher_steps=8,
    steps=4,
    trajectories=768,
    batch=BATCH,
    loss=mse_loss,
)


def fit(pictures: EmojiSet | None, work: Path, device: torch.device, out: Path, recipe: Recipe = RECIPE) -> float:
    """Train the student, write its pipeline to `out`, return the loss; `pictures` is not read."""
    return distil(TASK, work, device, out, recipe)
