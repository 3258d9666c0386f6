"""A LoRA of the tiny PixArt: trained for a moment by peft, and saved."""

from pathlib import Path
from tempfile import mkdtemp

from search.models.pipeline import Pipeline
from search.models.training.lora import train
from search.testing.models import tiny_model

PROMPTS = ["red apple", "blue boat", "red boat", "blue apple"]


def tiny_lora(steps: int = 20, model: Pipeline | None = None) -> Path:
    """A folder with weights that change what `tiny_model` draws."""
    return train(model or tiny_model(), PROMPTS, Path(mkdtemp()) / "lora", steps=steps, rate=0.05)
