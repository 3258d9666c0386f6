"""Calibration of static activations: least and greatest value of each layer's input in a run at full precision.

Inputs change from step to step, so that the range of one step is wrong for the others. Q-Diffusion (arXiv:2302.04304,
section 4.2) takes the same number of inputs from every c-th step of the full-precision sampler: here all pictures.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from search.models.base import Model
from search.profile.target import Target
from search.schedule import Schedule
from search.schedule.apply.rounding import halves
from search.schedule.model.layers import input_splits, layers_of

Ranges = dict[str, list[tuple[float, float]]]


def measure_ranges(
    model: Model, schedule: Schedule, prompts: Sequence[str], seeds: Sequence[int], every: int = 1, first: int = 0
) -> Ranges:
    """Ranges of the schedule's static layers, from a run of this schedule without its bits.

    Args:
        model: The model that runs.
        schedule: Its bits name the layers.
        prompts: B calibration prompts.
        seeds: Of their noise.
        every: Observe the steps first, first + every, ...
        first: The first observed step.

    Returns:
        By layer one (least, greatest) pair for each side of its input, for `Schedule.with_ranges`.

    Raises:
        ValueError: None of the observed steps runs a layer.
    """
    splits = {name: form.split for name, form in schedule.bits.items() if form.static}
    parts = schedule.with_corrections({}).to_dict()
    plain = Schedule.from_dict({k: v for k, v in parts.items() if k not in ("digest", "scores", "certificate", "bits")})
    return observe_inputs(model, plain, splits, prompts, seeds, every, first)


def target_with_ranges(model: Model, prompts: Sequence[str], seeds: Sequence[int], every: int = 1) -> Target:
    """The model's target with the ranges of all layers over the teacher's run: what static formats are decoded with.

    Args:
        model: The model that runs.
        prompts: B calibration prompts.
        seeds: Of their noise.
        every: Observe every n-th step.

    Returns:
        The target, with `ranges` for every linear layer and convolution.
    """
    layers = layers_of(model.denoiser)
    splits = dict.fromkeys(layers) | input_splits(layers)
    teacher = Schedule.from_dict(model.target.schedule({}))
    return replace(model.target, ranges=observe_inputs(model, teacher, splits, prompts, seeds, every))


def observe_inputs(
    model: Model,
    schedule: Schedule,
    splits: Mapping[str, int | None],
    prompts: Sequence[str],
    seeds: Sequence[int],
    every: int = 1,
    first: int = 0,
) -> Ranges:
    """One run of a schedule, in which the inputs of some layers are observed.

    Args:
        model: The model that runs.
        schedule: What is run.
        splits: The layers, and how many channels lie before the split of each; None for a layer without a split.
        prompts: B calibration prompts.
        seeds: Of their noise.
        every: Observe the steps first, first + every, ...
        first: The first observed step.

    Returns:
        By layer one (least, greatest) pair for each side of its input.

    Raises:
        ValueError: `every` or `first` is out of range, or none of the observed steps runs a layer.
    """
    if every < 1 or first < 0:
        raise ValueError(f"every={every}, first={first}: observe every step with 1, every second one with 2, from 0 on")
    watchers = {name: RangeObserver(split) for name, split in splits.items()}
    removers: list[Any] = []
    with torch.no_grad(), model.apply(schedule) as handle:
        clock = handle.clock
        try:
            for name, watcher in watchers.items():

                def before(
                    _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], watcher: RangeObserver = watcher
                ) -> None:
                    if clock.step >= first and (clock.step - first) % every == 0:
                        watcher(args[0] if args else kwargs["input"])

                layers = [expert.get_submodule(name) for expert in model.experts]
                removers += [layer.register_forward_pre_hook(before, with_kwargs=True) for layer in layers]
            model.sample(prompts, seeds)
        finally:
            for remover in removers:
                remover.remove()
    if missing := [name for name, watcher in watchers.items() if not watcher.seen]:
        raise ValueError(
            f"{missing[0]} and {len(missing) - 1} other layers ran at none of the steps {first}, {first + every}, …; "
            "observe every step (every=1, first=0), or use a static format only for layers that the plan runs"
        )
    return {name: watcher.ranges() for name, watcher in watchers.items()}


class RangeObserver:
    """Least and greatest value of one input at each call, on both sides of a split."""

    def __init__(self, split: int | None) -> None:
        self.split = split
        self.seen: list[Tensor] = []  # [sides, 2] each

    def __call__(self, value: Tensor) -> None:
        ends = [torch.stack(side.float().aminmax()) for side in halves(value.detach(), self.split)]
        self.seen.append(torch.stack(ends))

    def ranges(self) -> list[tuple[float, float]]:
        """(least, greatest) of each side over all calls, extended to contain 0, to six digits as in a file."""
        seen = torch.stack(self.seen)
        low, high = seen[..., 0].amin(0).clamp(max=0).tolist(), seen[..., 1].amax(0).clamp(min=0).tolist()
        return [(float(f"{a:.6g}"), float(f"{b:.6g}")) for a, b in zip(low, high, strict=True)]
