"""Corrections: a factor and a summand for reused or forecast values, per node, step and channel.

The numbers are in a .safetensors file beside the schedule: for every corrected node `<node>.scale` and
`<node>.shift` [steps, C] in fp16. The schedule names the steps of their rows, and the file by its sha256. Like the
schedule the file is data: its size is bounded, and its path is that of the schedule with another ending.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from search.schedule.errors import ScheduleError
from search.schedule.parts.corrections import CorrectionsPart
from search.schedule.plan.plan import Plan
from search.schedule.plan.tokens import values_read
from search.schedule.reading import read_bounded

SUFFIX = ".safetensors"
MAX_TENSOR_BYTES = 256 * 2**20  # 28 blocks of three components, 20 steps, 1152 channels are 8 MB
SCALE, SHIFT = ".scale", ".shift"


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


@dataclass(frozen=True)
class Corrections:
    """A tensors file that was checked against its part of a schedule; `data` is its content."""

    part: CorrectionsPart
    tensors: Mapping[str, Tensor]
    data: bytes

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], steps: Mapping[str, Sequence[int]]) -> "Corrections":
        """Make the file's content from tensors, which are rounded to fp16.

        Args:
            tensors: `<node>.scale` and `<node>.shift` [steps, C] of every corrected node.
            steps: The steps of the rows, by node.

        Raises:
            ScheduleError: A tensor is missing, has another shape, or is not finite.
        """
        dense = torch.contiguous_format
        data = save(
            {name: t.detach().to("cpu", torch.float16).clone(memory_format=dense) for name, t in tensors.items()}
        )
        part = CorrectionsPart(digest=_digest(data), steps={name: list(rows) for name, rows in steps.items()})
        return cls.parse(data, part)

    @classmethod
    def parse(cls, data: bytes, part: CorrectionsPart) -> "Corrections":
        """From a file's content; ScheduleError where it is not the file that the part names, or is damaged."""
        if len(data) > MAX_TENSOR_BYTES:
            raise ScheduleError(f"the file has more than the {MAX_TENSOR_BYTES} bytes that corrections may have")
        if (digest := _digest(data)) != part.digest:
            raise ScheduleError(
                f"the file's digest is {digest!r}, but corrections.digest is {part.digest!r}: it was changed, or "
                f"belongs to another schedule; copy the {SUFFIX} file that was saved with this one"
            )
        try:
            tensors = load(data)
        except SafetensorError as error:
            raise ScheduleError(f"this is not a {SUFFIX} file: {error}") from None
        _check(tensors, part)
        return cls(part, tensors, data)

    @classmethod
    def read(cls, schedule: Path, part: CorrectionsPart) -> "Corrections":
        """Read the tensors file of a schedule file."""
        path = tensors_path(schedule)
        remedy = f"; the corrections of {schedule.name} are in it: copy both files, or export the schedule again"
        content = read_bounded(path, MAX_TENSOR_BYTES, remedy)
        try:
            return cls.parse(content, part)
        except ScheduleError as error:
            raise ScheduleError(f"{path}: {error}") from None

    def nodes(self) -> dict[str, Affine]:
        """The correction of each node."""
        return {
            name: Affine(name, steps, self.tensors[name + SCALE], self.tensors[name + SHIFT])
            for name, steps in self.part.steps.items()
        }


def tensors_path(schedule: str | Path) -> Path:
    """The path of the tensors file of a schedule file."""
    path = Path(schedule)
    if path.suffix == SUFFIX:
        raise ScheduleError(f"{path}: this is the name of the tensors file; the schedule's ends in .json")
    return path.with_suffix(SUFFIX)


def _digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def _check(tensors: Mapping[str, Tensor], part: CorrectionsPart) -> None:
    """Raise ScheduleError unless there are two tensors of equal shape for every node, and no others."""
    expected = {name + ending for name in part.steps for ending in (SCALE, SHIFT)}
    if wrong := sorted(expected ^ set(tensors)):
        problem = "lacks" if wrong[0] in expected else "has, besides those of the schedule's nodes,"
        raise ScheduleError(f"corrections: the file {problem} the tensor {wrong[0]!r:.200}")
    for name, steps in part.steps.items():
        scale, shift = tensors[name + SCALE], tensors[name + SHIFT]
        for ending, tensor in ((SCALE, scale), (SHIFT, shift)):
            kind = f"{list(tensor.shape)} in {tensor.dtype}"
            rows = tensor.dim() == 2 and len(tensor) == len(steps) and tensor.shape == scale.shape and tensor.numel()
            if not rows or tensor.dtype != torch.float16:
                raise ScheduleError(
                    f"corrections: {name}{ending} is {kind}; its {len(steps)} steps need [{len(steps)}, channels] in "
                    "torch.float16, as many channels in scale and shift"
                )
            if not torch.isfinite(tensor).all():
                raise ScheduleError(f"corrections: {name}{ending} has numbers that are not finite")
