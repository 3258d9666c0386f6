"""What every bundled model is held to."""

from pathlib import Path

import torch

from search import Schedule
from search.models.pipeline import Pipeline


def bundled_loops_agree(model: Pipeline, prompts: list[str], rules: list[list[str]]) -> None:
    """A bundled model under a plan: both loops give the same, and something else than the bare model."""
    prompts, seeds = prompts, [0, 1]
    bare = model.sample(prompts, seeds)
    assert torch.equal(bare, model.stock(prompts, [0, 1], output_type="latent"))
    with Schedule.from_dict(model.target.schedule({"plan": {"rules": rules}})).apply(model.pipe):
        own = model.sample(prompts, seeds)
        assert torch.equal(own, model.stock(prompts, [0, 1], output_type="latent"))
    drift = (own - bare).norm() / bare.norm()
    assert 0 < drift < 0.7


def bundled_size(folder: Path) -> int:
    """Bytes of a bundled pipeline."""
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
