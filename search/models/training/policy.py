"""The bundled trajectory policy: trained from scratch on demonstrations that are drawn at random for each batch."""

from pathlib import Path

import torch
from diffusers import DPMSolverMultistepScheduler
from torch import Tensor

from search.models.trajectory import (
    CLEARANCE,
    DIMS,
    HORIZON,
    TIMES,
    TrajectoryDenoiser,
    TrajectoryPipeline,
    clears,
    condition,
    demonstrations,
    times,
)

from .loop import Recipe, train

RECIPE = Recipe(steps=1500, rate=2e-3, decay=1.0, weight_decay=0.01, ema=0.995)
BATCH = 64
CHUNKS = (2, 4, 8, 16)


def fit(work: Path, out: Path, recipe: Recipe = RECIPE) -> float:
    """Train the denoiser, write the pipeline to `out`, return the last running loss."""
    torch.manual_seed(recipe.seed)
    denoiser = TrajectoryDenoiser()

    def loss_at(step: int, generator: torch.Generator) -> Tensor:
        plans, task = draw(BATCH, generator)
        level, noise = levels(BATCH, generator), torch.randn(plans.shape, generator=generator)
        noised = plans + level[..., None] * (noise - plans)
        return (denoiser(noised, level * TIMES, task) - (noise - plans)).square().mean()

    loss = train("policy", denoiser, loss_at, recipe, work)
    TrajectoryPipeline(denoiser.eval(), build_scheduler()).save_pretrained(out)
    return loss


def build_scheduler() -> DPMSolverMultistepScheduler:
    """DPM-Solver++ 2M (arXiv:2211.01095) on unshifted sigmas of flow matching."""
    return DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=1.0)


def draw(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Plans [B, H, 2] and their tasks [B, 4]: a plan begins anywhere on a demonstration and stays at its end."""
    start, goal, spread = (2 * torch.rand(3, count, generator=generator) - 1).unbind()
    side = torch.randint(2, (count,), generator=generator) * 2.0 - 1
    paths = demonstrations(start, goal, side, CLEARANCE + 0.05 * spread)
    begun = torch.stack([torch.full((count,), -1.0), start], dim=1)
    whole = torch.cat([begun[:, None], paths, paths[:, -1:].expand(-1, HORIZON - 1, -1)], dim=1)
    at = torch.randint(HORIZON, (count,), generator=generator) * (torch.rand(count, generator=generator) < 0.5)
    rows = torch.arange(count)
    stated_side = torch.where(torch.rand(count, generator=generator) < 0.3, 0.0, side)
    plans = whole[rows[:, None], at[:, None] + torch.arange(1, HORIZON + 1)]
    return plans, torch.cat([whole[rows, at], goal[:, None], stated_side[:, None]], dim=1)


def levels(count: int, generator: torch.Generator) -> Tensor:
    """Noise levels [B, H] from 0 to 1: one for a whole plan, rising by chunks, or drawn for each action."""
    t, separate = torch.rand(count, 1, generator=generator), torch.rand(count, HORIZON, generator=generator)
    rising = torch.stack([times(t * TIMES, chunks) / TIMES for chunks in CHUNKS])
    choice = torch.randint(len(CHUNKS), (count,), generator=generator)
    kind = torch.rand(count, 1, generator=generator)
    return torch.where(kind < 0.5, t, torch.where(kind < 0.9, rising[choice, torch.arange(count)], separate))


def success(pipe: TrajectoryPipeline, chunks: int, steps: int, episodes: int = 50) -> dict[str, float]:
    """Of random tasks: the share of episodes that clear the obstacle, and the mean distance to the goal at the end."""
    generator = torch.Generator().manual_seed(1)
    cleared, missed = 0.0, 0.0
    for _ in range(episodes):
        start, goal = (2 * torch.rand(2, generator=generator) - 1).tolist()
        line = f"start {start:.2f} goal {goal:.2f}"
        actions = pipe.stream(line, chunks, steps, chunks, generator)
        path = torch.cat([condition([line])[:, :DIMS], actions])
        cleared += float(clears(path[None]))
        missed += float((path[-1] - torch.tensor([1.0, goal])).norm())
    return {"clears": cleared / episodes, "misses by": missed / episodes}
