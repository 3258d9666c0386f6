"""Calibration of static activations: least and greatest value of each layer's input in a run at full precision.

Inputs change from step to step, so that the range of one step is wrong for the others. Q-Diffusion (arXiv:2302.04304,
section 4.2) takes the same number of inputs from every c-th step of the full-precision sampler, PTQ4DM
(arXiv:2211.15736) takes steps by a normal law. Here one run records the range of every step: that of any choice of
steps follows without another run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from search.models.base import Model
from search.profile.input_ranges import InputRanges
from search.profile.target import Target
from search.schedule import Schedule
from search.schedule.apply.rounding import halves
from search.schedule.model.layers import input_splits, layers_of


def with_measured_ranges(
    model: Model,
    schedule: Schedule,
    prompts: Sequence[str],
    seeds: Sequence[int],
    steps: Sequence[int] | None = None,
) -> Schedule:
    """The schedule with the ranges of its static layers, from a run of this schedule without its bits.

    Args:
        model: The model that runs.
        schedule: Its bits name the layers.
        prompts: B calibration prompts.
        seeds: Of their noise.
        steps: The steps whose inputs count for formats with one range; None for all.

    Raises:
        ValueError: None of these steps runs a layer.
    """
    forms = {name: form for name, form in schedule.bits.items() if form.static}
    splits = {name: form.split for name, form in forms.items()}
    parts = schedule.with_corrections({}).to_dict()
    plain = Schedule.from_dict({k: v for k, v in parts.items() if k not in ("digest", "scores", "certificate", "bits")})
    ranges = observe_inputs(model, plain, splits, prompts, seeds)
    spans = {
        name: list(chain(*ranges.per_step(name))) if form.per_step else ranges.over(name, steps)
        for name, form in forms.items()
    }
    return schedule.with_ranges(spans, ranges.at if any(form.per_step for form in forms.values()) else ())


def target_with_ranges(model: Model, prompts: Sequence[str], seeds: Sequence[int]) -> Target:
    """The model's target with the ranges of all layers in the teacher's run: what static formats are decoded with.

    Args:
        model: The model that runs.
        prompts: B calibration prompts.
        seeds: Of their noise.

    Returns:
        The target, with `ranges` for every linear layer and convolution.
    """
    layers = layers_of(model.denoiser)
    splits = dict.fromkeys(layers) | input_splits(layers)
    teacher = Schedule.from_dict(model.target.schedule({}))
    return replace(model.target, ranges=observe_inputs(model, teacher, splits, prompts, seeds))


def observe_inputs(
    model: Model,
    schedule: Schedule,
    splits: Mapping[str, int | None],
    prompts: Sequence[str],
    seeds: Sequence[int],
) -> InputRanges:
    """One run of a schedule, in which the inputs of some layers are observed.

    Args:
        model: The model that runs.
        schedule: What is run.
        splits: The layers, and how many channels lie before the split of each; None for a layer without a split.
        prompts: B calibration prompts.
        seeds: Of their noise.

    Returns:
        The range of each layer's input at every step, on both sides of its split.
    """
    observers = {name: RangeObserver(split) for name, split in splits.items()}
    removers: list[Any] = []
    with torch.no_grad(), model.apply(schedule) as handle:
        clock = handle.clock
        try:
            for name, observer in observers.items():

                def before(
                    _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], observer: RangeObserver = observer
                ) -> None:
                    observer(args[0] if args else kwargs["input"], clock.step)

                layers = [expert.get_submodule(name) for expert in model.experts]
                removers += [layer.register_forward_pre_hook(before, with_kwargs=True) for layer in layers]
            model.sample(prompts, seeds)
        finally:
            for remover in removers:
                remover.remove()
        timesteps = handle.run.scheduler.timesteps[clock.begin :].tolist()
    return InputRanges(
        tuple(map(float, timesteps)), {name: each.ranges(len(timesteps)) for name, each in observers.items()}
    )


class RangeObserver:
    """Least and greatest value of one input at each step, on both sides of a split."""

    def __init__(self, split: int | None) -> None:
        self.split = split
        self.seen: dict[int, Tensor] = {}  # by step [sides, 2]

    def __call__(self, value: Tensor, step: int) -> None:
        ends = torch.stack([torch.stack(side.float().aminmax()) for side in halves(value.detach(), self.split)])
        if (before := self.seen.get(step)) is not None:  # another call, of the other branch of guidance
            ends = torch.stack([torch.minimum(before, ends)[:, 0], torch.maximum(before, ends)[:, 1]], 1)
        self.seen[step] = ends

    def ranges(self, steps: int) -> np.ndarray:
        """[steps, sides, 2]; not a number where nothing was observed."""
        ranges = np.full((steps, 1 if self.split is None else 2, 2), np.nan)
        for step, ends in self.seen.items():
            ranges[step] = ends.cpu().numpy()
        return ranges
