"""The part of the file that names a file of corrections."""

from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from search.schedule.errors import ScheduleError
from search.schedule.parts.part import MAX_ENTRIES, Name, Part
from search.schedule.plan.plan import Plan
from search.schedule.plan.tokens import MAX_STEPS, values_read
from search.schedule.tensors import TensorGroup

SCALE, SHIFT = ".scale", ".shift"


class CorrectionsPart(Part):
    """Channel-wise affine corrections of reused values: a * value + b, CacheQuant (arXiv:2503.01323).

    The numbers are in the tensors file beside the schedule: `<node>.scale` and `<node>.shift` [steps, C] in fp16 of
    every corrected node. Without this part nothing is corrected.

    Attributes:
        digest: `sha256:…` of these tensors as a file of their own.
        steps: The corrected steps of every corrected node, rising; the plan reuses or forecasts it at each of them.
    """

    digest: str = Field(pattern="^sha256:[0-9a-f]{64}$")
    steps: dict[Name, Annotated[list[int], Field(min_length=1, max_length=MAX_STEPS)]] = Field(
        min_length=1, max_length=MAX_ENTRIES
    )

    @property
    def tensors(self) -> TensorGroup:
        """What the part has in the tensors file."""
        names = frozenset(name + ending for name in self.steps for ending in (SCALE, SHIFT))
        return TensorGroup("corrections.digest", self.digest, names, self._check)

    def _check(self, tensors: Mapping[str, Tensor]) -> None:
        for name, steps in self.steps.items():
            scale, shift = tensors[name + SCALE], tensors[name + SHIFT]
            for ending, tensor in ((SCALE, scale), (SHIFT, shift)):
                kind = f"{list(tensor.shape)} in {tensor.dtype}"
                rows = tensor.dim() == 2 and len(tensor) == len(steps) and tensor.shape == scale.shape
                if not rows or not tensor.numel() or tensor.dtype != torch.float16:
                    raise ScheduleError(
                        f"corrections: {name}{ending} is {kind}; its {len(steps)} steps need [{len(steps)}, channels] "
                        "in torch.float16, as many channels in scale and shift"
                    )


def check_corrections(corrections: CorrectionsPart, plan: Plan | None) -> None:
    """Raise ScheduleError where a corrected step of a node is not reused or forecast."""
    tokens = plan.tokens if plan else {}
    for name, steps in corrections.steps.items():
        if name not in tokens:
            raise ScheduleError(f"corrections.steps names {name!r:.80}, which is not a node of the plan")
        if any(a >= b for a, b in zip(steps, steps[1:], strict=False)):
            raise ScheduleError(f"corrections.steps.{name} must rise strictly")
        for step in steps:
            if not 0 <= step < len(tokens[name]) or not values_read(tokens[name][step]):
                action = tokens[name][step] if 0 <= step < len(tokens[name]) else "no step"
                raise ScheduleError(
                    f"corrections.steps.{name} has step {step}, which is {action}; only what is reused (R) or forecast "
                    "(F) is corrected"
                )
