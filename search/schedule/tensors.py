"""The tensors file beside a schedule: the numbers of its parts that are too many for JSON.

`schedule.safetensors` beside `schedule.json`. Each part that has numbers there names them and their digest; a file has
all of these tensors and no others. Like the schedule the file is data: its size is bounded, it has finite numbers only,
and its path is that of the schedule with another ending.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from search.schedule.bounded_file import read_bounded
from search.schedule.errors import ScheduleError

SUFFIX = ".safetensors"
MAX_TENSOR_BYTES = 256 * 2**20  # 28 blocks of three components, 20 steps, 1152 channels are 8 MB


@dataclass(frozen=True)
class TensorGroup:
    """The tensors of one part.

    Attributes:
        field: Where the schedule has their digest, `corrections.digest`.
        digest: `sha256:…` of their serialisation as a file of their own.
        names: Of the tensors in the file.
        check: Raises ScheduleError where tensors of these names do not fit the part.
    """

    field: str
    digest: str
    names: frozenset[str]
    check: Callable[[Mapping[str, Tensor]], None]

    def of(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Those of the tensors that are this part's."""
        return {name: tensors[name] for name in sorted(self.names) if name in tensors}


def serialise(tensors: Mapping[str, Tensor]) -> bytes:
    """The content of a tensors file."""
    dense = torch.contiguous_format
    return save({name: t.detach().cpu().clone(memory_format=dense) for name, t in tensors.items()})


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """`sha256:…` of tensors as a file of their own."""
    return _digest(serialise(tensors))


def tensors_path(schedule: str | Path) -> Path:
    """The path of the tensors file of a schedule file."""
    path = Path(schedule)
    if path.suffix == SUFFIX:
        raise ScheduleError(f"{path}: this is the name of the tensors file; the schedule's ends in .json")
    return path.with_suffix(SUFFIX)


def read_tensors(schedule: Path, groups: Sequence[TensorGroup]) -> dict[str, Tensor]:
    """Read and check the tensors file of a schedule file; ScheduleError names the file and what is wrong."""
    path = tensors_path(schedule)
    parts = ", ".join(group.field.partition(".")[0] for group in groups)
    remedy = f"; numbers of {schedule.name} are in it ({parts}): copy both files, or export the schedule again"
    content = read_bounded(path, MAX_TENSOR_BYTES, remedy)
    try:
        return parse_tensors(content, groups)
    except ScheduleError as error:
        raise ScheduleError(f"{path}: {error}") from None


def parse_tensors(data: bytes, groups: Sequence[TensorGroup]) -> dict[str, Tensor]:
    """The tensors of a file's content; ScheduleError where it is not the file of these parts, or is damaged."""
    if len(data) > MAX_TENSOR_BYTES:
        raise ScheduleError(f"the file has more than the {MAX_TENSOR_BYTES} bytes that a tensors file may have")
    if len(groups) == 1:  # before anything in it is read
        _check_digest(groups[0], _digest(data))
    try:
        tensors = load(data)
    except SafetensorError as error:
        raise ScheduleError(f"this is not a {SUFFIX} file: {error}") from None
    check_tensors(tensors, groups)
    return tensors


def check_tensors(tensors: Mapping[str, Tensor], groups: Sequence[TensorGroup]) -> None:
    """Raise ScheduleError unless these are the tensors that the parts name, all of them and no others."""
    expected = frozenset[str]().union(*(group.names for group in groups))
    if wrong := sorted(expected ^ set(tensors)):
        problem = "lacks" if wrong[0] in expected else "has, besides those that the schedule names,"
        raise ScheduleError(f"the file {problem} the tensor {wrong[0]!r:.200}")
    for group in groups:
        group.check(group.of(tensors))
        if len(groups) > 1:
            _check_digest(group, digest_of(group.of(tensors)))
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ScheduleError(f"{name:.200} has numbers that are not finite")


def _check_digest(group: TensorGroup, digest: str) -> None:
    if digest != group.digest:
        raise ScheduleError(
            f"the file's digest is {digest!r}, but {group.field} is {group.digest!r}: it was changed, or belongs to "
            f"another schedule; copy the {SUFFIX} file that was saved with this one"
        )


def _digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()
