"""Corrections: a factor and a summand for reused or forecast values, per node, step and channel."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from search.schedule.apply.stores import Correction
from search.schedule.errors import ScheduleError
from search.schedule.parts.corrections import SCALE, SHIFT, CorrectionsPart
from search.schedule.plan.plan import Plan
from search.schedule.plan.tokens import values_read


class Affine:
    """The correction of one node: value * scale + shift over the channels, in fp32.

    Channels are the last dimension of token sequences [B, N, C], and dimension 1 of images [B, C, h, w].
    """

    def __init__(self, name: str, steps: Sequence[int], scale: Tensor, shift: Tensor) -> None:
        """`scale` and `shift` [steps, C]."""
        self.name = name
        self.rows = dict(zip(steps, zip(scale, shift, strict=True), strict=True))

    def __call__(self, step: int, value: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        """The corrected value in its own type; the value itself at a step without correction."""
        if step not in self.rows:
            return value
        scale, shift = (row.to(value.device, torch.float32) for row in self.rows[step])
        self.rows[step] = scale, shift  # on this device for later runs
        if value.shape[channel_dim(value)] != len(scale):
            raise ScheduleError(
                f"corrections of {self.name} have {len(scale)} channels, but its value has "
                f"{value.shape[channel_dim(value)]}: they are for another model"
            )
        shape = [-1, *[1] * (value.dim() - 2)] if channel_dim(value) == 1 else [-1]
        return (value * scale.view(shape) + shift.view(shape)).to(value.dtype)


def channel_dim(value: Tensor) -> int:
    """The dimension of a value's channels."""
    return -1 if value.dim() <= 3 else 1


def reused_steps(plan: Plan) -> dict[str, list[int]]:
    """The steps at which each node is reused or forecast; nodes without any are left out."""
    steps = {name: [t for t, token in enumerate(tokens) if values_read(token)] for name, tokens in plan.tokens.items()}
    return {name: reused for name, reused in steps.items() if reused}


def affine_corrections(part: CorrectionsPart | None, tensors: Mapping[str, Tensor]) -> dict[str, Affine]:
    """The correction of each node; {} without the part, or where its tensors were not read."""
    if part is None or not part.tensors.names <= set(tensors):
        return {}
    return {
        name: Affine(name, steps, tensors[name + SCALE], tensors[name + SHIFT]) for name, steps in part.steps.items()
    }


def corrections_to_run(
    part: CorrectionsPart | None, tensors: Mapping[str, Tensor], given: Mapping[str, Correction] | None
) -> dict[str, Correction]:
    """What corrects each node: what is given, or what the part names; ScheduleError where that was not read."""
    found = given or affine_corrections(part, tensors)
    if part and not found:
        raise ScheduleError(
            "this schedule's corrections were not read; load it from its file with Schedule.load(path), the "
            ".safetensors beside it, or give them by schedule.with_corrections(tensors)"
        )
    return dict(found)
