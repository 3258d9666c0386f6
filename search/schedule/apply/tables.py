"""Layers whose outputs depend on the timestep alone: computed for one row per step, and stored."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from search.schedule.apply.clock import Clock
from search.schedule.apply.hooks import PlannedHook
from search.schedule.apply.weights import WeightState
from search.schedule.errors import ScheduleError

# To add a model class: layers whose outputs depend on the timestep alone, as patterns of their full names. Inputs
# that are constant in a run (PixArt-alpha's resolution) are allowed too: a table is dropped when they change.
ELIDABLE: Mapping[str, tuple[str, ...]] = {
    "PixArtTransformer2DModel": (
        r"adaln_single\.emb\.timestep_embedder\.linear_[12]",
        r"adaln_single\.linear",
    ),
    "DiTTransformer2DModel": (r"transformer_blocks\.\d+\.norm1\.emb\.timestep_embedder\.linear_[12]",),
    # of SDXL, whose time embedding takes the pooled text up, the first alone
    "UNet2DConditionModel": (
        r"time_embedding\.linear_[12]",
        r"(?:down_blocks\.\d+|mid_block|up_blocks\.\d+)\.resnets\.\d+\.time_emb_proj",
    ),
}


def elidable_layers(model_class: str, layer: str) -> bool:
    """Whether a layer's outputs can be tabulated per step."""
    return any(re.fullmatch(pattern, layer) for pattern in ELIDABLE.get(model_class, ()))


def check_elided(name: str, denoiser: nn.Module) -> None:
    """Raise ScheduleError where a layer's outputs depend on more than the timestep."""
    model_class = type(denoiser).__name__
    if not elidable_layers(model_class, name):
        allowed = [n for n, _ in denoiser.named_modules() if elidable_layers(model_class, n)]
        raise ScheduleError(
            f"bits.layers.{name} is elided, but its outputs do not depend on the timestep alone; of a {model_class} "
            f"these may be: {', '.join(allowed[:4]) or 'none'}"
        )


class TableHook(PlannedHook):
    """An elided layer: its output for one row per step, stored for all runs of one grid, and returned for every row."""

    def __init__(self, clock: Clock, name: str, timesteps: Callable[[], list[float]]) -> None:
        super().__init__(clock)
        self.name, self.timesteps = name, timesteps
        self.grid: list[float] = []
        self.rows: dict[int, Tensor] = {}
        self.first: tuple[int, Tensor] | None = None  # step and input of the first row
        self.states: list[WeightState] = []  # of the weight and the bias that the rows were computed with
        self.fresh = True
        clock.on_reset.append(self._reset)

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        if self.clock.full:
            full: Tensor = self.fn_ref.original_forward(*args, **kwargs)
            return full
        given, step = args[0] if args else kwargs["input"], self.clock.step
        if self.fresh:
            self._check_first(given, step)
            self.fresh = False
        if step not in self.rows:
            self._check_rows(given)
            self.rows[step] = self.fn_ref.original_forward(given[:1]).detach()
            self.first = self.first or (step, given[:1].detach().clone())
        return self.rows[step].expand(*given.shape[:-1], -1)

    def initialize_hook(self, module: nn.Module) -> nn.Module:
        self.module = module
        return module

    def follow_weights(self, states: list[WeightState]) -> None:
        """Once a run: drop the rows of other weights."""
        if states != self.states:
            self.states = states
            self._clear()

    def _reset(self) -> None:
        self.fresh = True
        if self.clock.step >= 0 and (grid := self.timesteps()) != self.grid:
            self.grid = grid
            self._clear()

    def _clear(self) -> None:
        self.rows.clear()
        self.first = None

    def _check_first(self, given: Tensor, step: int) -> None:
        """Once a run: drop the rows where the input (a resolution), its type or its device has changed."""
        if self.first is None:
            return
        at, row = self.first
        same = at == step and (row.dtype, row.device) == (given.dtype, given.device)
        if not (same and torch.equal(row, given[:1])):
            self._clear()

    def _check_rows(self, given: Tensor) -> None:
        spread = (given - given[:1]).abs().max()
        if spread > 0.01 * given.abs().max():
            raise ScheduleError(
                f"bits.layers.{self.name} is elided, but its input differs between pictures by {float(spread):.3g}; "
                "give all pictures of a call the same timestep and resolution, or leave this layer out"
            )
