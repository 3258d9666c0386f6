"""One training loop for every bundled network: resumable, deterministic for a seed, with a progress bar."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor


@dataclass(frozen=True)
class Recipe:
    """Steps and optimiser of one training run. AdamW; the rate rises linearly, then falls as (1-f)^decay."""

    steps: int
    rate: float
    warmup: int = 100
    decay: float = 1.0
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    ema: float = 0.997
    seed: int = 0
    checkpoint_every: int = 250


def train(
    name: str,
    module: torch.nn.Module,
    loss_at: Callable[[int, torch.Generator], Tensor],
    recipe: Recipe,
    work: Path,
    export: Callable[[], None] | None = None,
) -> float:
    """Train `module` and leave its moving average in it; return the last running loss.

    `loss_at(step, generator)` gives the loss of one batch. The generator is seeded by (seed, step), so a
    run that was stopped and resumed draws the same batches and ends with the same weights. `export` is
    called with the moving average loaded, about every ten minutes, so that the result so far can be looked at.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    parameters = [p for p in module.parameters() if p.requires_grad]
    average = [p.detach().clone() for p in parameters]
    optimiser = torch.optim.AdamW(parameters, lr=recipe.rate, betas=recipe.betas, weight_decay=recipe.weight_decay)
    file, first, running = work / f"{name}.checkpoint.pt", 0, math.nan
    if file.exists():
        state = torch.load(file, map_location=parameters[0].device, weights_only=True)
        module.load_state_dict(state["module"])
        optimiser.load_state_dict(state["optimiser"])
        average, first, running = state["average"], state["step"], state["running"]

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as bar:
        task = bar.add_task(name, total=recipe.steps, completed=first)
        exported = time.monotonic()
        for step in range(first, recipe.steps):
            done = step / recipe.steps
            rate = recipe.rate * min(1, (step + 1) / recipe.warmup) * (1 - done) ** recipe.decay
            for group in optimiser.param_groups:
                group["lr"] = rate + 1e-5
            loss = loss_at(step, torch.Generator().manual_seed(recipe.seed * 1_000_003 + step))
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            keep = min(recipe.ema, (step + 1) / (step + 10))
            with torch.no_grad():
                torch._foreach_lerp_(average, parameters, 1 - keep)
            value = loss.item()
            running = value if math.isnan(running) else 0.98 * running + 0.02 * value
            bar.update(task, advance=1, description=f"{name}  loss {running:.4f}")
            if (step + 1) % recipe.checkpoint_every == 0 or step + 1 == recipe.steps:
                if not bar.console.is_terminal:
                    print(f"{name} step {step + 1} of {recipe.steps} loss {running:.4f}", flush=True)
                _save(file, module, optimiser, average, step + 1, running)
            if export is not None and time.monotonic() - exported > 600:
                with _averaged(parameters, average):
                    export()
                exported = time.monotonic()
    with torch.no_grad():
        for parameter, mean in zip(parameters, average, strict=True):
            parameter.copy_(mean)
    return running


class _averaged:
    """A context in which the parameters have the values of the moving average; the trained weights return after it."""

    def __init__(self, parameters: list[Tensor], average: list[Tensor]) -> None:
        self.parameters, self.average = parameters, average

    def __enter__(self) -> None:
        self.trained = [p.detach().clone() for p in self.parameters]
        self._copy(self.average)

    def __exit__(self, *_: object) -> None:
        self._copy(self.trained)

    def _copy(self, values: list[Tensor]) -> None:
        with torch.no_grad():
            for parameter, value in zip(self.parameters, values, strict=True):
                parameter.copy_(value)


def _save(
    file: Path,
    module: torch.nn.Module,
    optimiser: torch.optim.Optimizer,
    average: list[Tensor],
    step: int,
    running: float,
) -> None:
    """Write a temporary file, then rename it: a run that is killed here resumes from the checkpoint before."""
    state = {
        "module": module.state_dict(),
        "optimiser": optimiser.state_dict(),
        "average": average,
        "step": step,
        "running": running,
    }
    temporary = file.with_suffix(".new")
    torch.save(state, temporary)
    temporary.replace(file)
