"""The part of the file about number formats of layers."""

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from search.schedule.errors import ScheduleError
from search.schedule.parts.part import MAX_ENTRIES, Finite, Name, Part
from search.schedule.plan.tokens import MAX_STEPS
from search.schedule.tensors import TensorGroup

MAX_RANGE = 1e9  # of an activation


class FormatPart(Part):
    """How a layer's weight, and if given its input, are rounded.

    Attributes:
        weight: Bits of the weight, 2 to 8; null only where the layer is elided.
        group: Inputs per scale of the weight; null is one scale for a whole row.
        activation: Bits of the input, 4 to 8; null leaves it at full precision.
        static: Whether the input's range is in the file; otherwise it is that of each token, of a convolution that of
            each picture.
        per_step: Whether that range is another one at every timestep of `at`; with `static` only.
        split: So many input channels of a convolution are rounded apart from those after them, Q-Diffusion
            (arXiv:2302.04304); null rounds all together.
        elided: The layer's outputs depend on the timestep alone, and are tabulated per step.
    """

    weight: int | None = Field(default=None, ge=2, le=8)
    group: int | None = Field(default=None, ge=1, le=1_000_000)
    activation: int | None = Field(default=None, ge=4, le=8)
    static: bool = False
    per_step: bool = False
    split: int | None = Field(default=None, ge=1, le=1_000_000)
    elided: bool = False


class CorrectedLayersPart(Part):
    """Layers whose outputs are corrected for what rounding does to them: gain * output + offset, per channel.

    The second correction of CacheQuant (arXiv:2503.01323). The numbers are in the tensors file beside the schedule:
    `bits/<layer>.gain` and `bits/<layer>.offset` [outputs] in fp16 of every corrected layer.

    Attributes:
        digest: `sha256:…` of these tensors as a file of their own.
        layers: The corrected layers.
    """

    digest: str = Field(pattern="^sha256:[0-9a-f]{64}$")
    layers: list[Name] = Field(min_length=1, max_length=MAX_ENTRIES)

    @property
    def tensors(self) -> TensorGroup:
        """What the part has in the tensors file."""
        names = frozenset(name for layer in self.layers for name in correction_names(layer))
        return TensorGroup("bits.corrected.digest", self.digest, names, self._check)

    def _check(self, tensors: Mapping[str, Tensor]) -> None:
        for layer in self.layers:
            gain, offset = (tensors[name] for name in correction_names(layer))
            for name, tensor in zip(correction_names(layer), (gain, offset), strict=True):
                if tensor.dim() != 1 or tensor.shape != gain.shape or tensor.dtype != torch.float16:
                    raise ScheduleError(
                        f"{name} is {list(tensor.shape)} in {tensor.dtype}; a corrected layer needs [outputs] in "
                        "torch.float16, as many in gain and offset"
                    )


def correction_names(layer: str) -> tuple[str, str]:
    """The names of a layer's gain and offset in the tensors file."""
    return f"bits/{layer}.gain", f"bits/{layer}.offset"


class BitsPart(Part):
    """Formats of linear layers and convolutions; a layer that is not named stays at full precision.

    Attributes:
        formats: Formats by id.
        layers: The id of each layer's format, by full layer name (`transformer_blocks.0.attn1.to_q`).
        ranges: Least and greatest value of each static layer's input, or those of both sides of its split; of a layer
            with `per_step` those at the first timestep of `at`, at the second, and so on.
        at: The falling timesteps that ranges per step are of; between them they are interpolated in log-SNR.
        corrected: Layers whose outputs are corrected for their rounding; null for none.
    """

    formats: dict[Name, FormatPart] = Field(max_length=100)
    layers: dict[Name, Name] = Field(max_length=MAX_ENTRIES)
    ranges: dict[Name, Annotated[list[tuple[Finite, Finite]], Field(min_length=1, max_length=2 * MAX_STEPS)]] = Field(
        default={}, max_length=MAX_ENTRIES
    )
    at: list[Finite] = Field(default=[], max_length=MAX_STEPS)
    corrected: CorrectedLayersPart | None = None

    @property
    def per_step(self) -> bool:
        """Whether a layer has a range for every timestep."""
        return any(self.formats[name].per_step for name in self.layers.values())

    def normal(self) -> dict[str, Any]:
        """The normal form: without formats that no layer uses."""
        used = sorted(set(self.layers.values()))
        formats = {name: self.formats[name].model_dump(exclude_defaults=True) for name in used}
        body = {"formats": formats, "layers": dict(self.layers)}
        if self.ranges:
            body["ranges"] = self.model_dump(mode="json")["ranges"]
        if self.corrected:
            body["corrected"] = {"digest": self.corrected.digest, "layers": sorted(self.corrected.layers)}
        return body | ({"at": list(self.at)} if self.per_step else {})


def check_bits(bits: BitsPart) -> None:
    """Raise ScheduleError where a format contradicts itself, or a layer lacks its format or its range."""
    for name, form in bits.formats.items():
        if form.elided and (form.weight or form.activation or form.split):
            raise ScheduleError(f"bits.formats.{name} is elided and has bits; an elided layer has none")
        if not form.elided and not form.weight:
            raise ScheduleError(f"bits.formats.{name} has no weight bits; give weight 2 to 8, or elided true")
        if form.static and not form.activation:
            raise ScheduleError(f"bits.formats.{name} is static, but only activations are; give activation 4 to 8")
        if form.per_step and not form.static:
            raise ScheduleError(f"bits.formats.{name} is per_step, but only static ranges are; give static true")
    for layer, name in bits.layers.items():
        if name not in bits.formats:
            raise ScheduleError(
                f"bits.layers.{layer} is {name!r}, which bits.formats lacks; it has {', '.join(bits.formats) or 'none'}"
            )
    for timestep, later in zip(bits.at, bits.at[1:], strict=False):
        if not timestep > later:
            raise ScheduleError(f"bits.at must fall strictly, but {timestep} is followed by {later}")
    for layer in bits.corrected.layers if bits.corrected else ():
        if layer not in bits.layers or bits.formats[bits.layers[layer]].elided:
            raise ScheduleError(f"bits.corrected names {layer!r:.80}, which bits.layers does not round")
    for layer, ranges in bits.ranges.items():
        wanted = bits.formats[bits.layers[layer]] if layer in bits.layers else None
        if wanted is None or not wanted.static:
            raise ScheduleError(f"bits.ranges.{layer} is given, but bits.layers has no static format for it")
        sides, timesteps = 2 if wanted.split else 1, len(bits.at) if wanted.per_step else 1
        if len(ranges) != sides * timesteps:
            each = f": {sides} at each of {timesteps} timesteps in bits.at" if wanted.per_step else ""
            raise ScheduleError(
                f"bits.ranges.{layer} has {len(ranges)} ranges; its format needs {sides * timesteps}{each}"
            )
        for low, high in ranges:
            if max(abs(low), abs(high)) > MAX_RANGE:
                raise ScheduleError(
                    f"bits.ranges.{layer} is {low} to {high}; admissible is {-MAX_RANGE:g} to {MAX_RANGE:g}"
                )
            if not low <= 0 <= high:
                raise ScheduleError(f"bits.ranges.{layer} is {low} to {high}; a range holds 0, which pads pictures")
