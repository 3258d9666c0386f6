"""Rounded weights, computed once per layer and format and shared."""

import weakref
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from search.schedule.apply.rounding import round_weight
from search.schedule.parts.bits import FormatPart

CACHE_BYTES = 4 * 2**30


class RoundedWeights:
    """Rounded weights by parameter and format, for searches that apply thousands of schedules.

    An entry is dropped with its parameter, when the parameter's values have changed, or, where more than `limit` bytes
    are stored, when it was not used for the longest time.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.bytes = limit, 0
        self.entries: OrderedDict[tuple[int, FormatPart, str], tuple[Any, tuple[Any, ...], Tensor]] = OrderedDict()

    def get(self, weight: nn.Parameter, form: FormatPart, backend: str) -> Tensor:
        """The weight as this format stores it: rounded in its own type ("simulate"), or packed ("torchao")."""
        form = form.model_copy(update={"activation": None, "static": False}) if backend == "simulate" else form
        key, state = (id(weight), form, backend), weight_state(weight)
        entry = self.entries.get(key)
        if entry is not None and entry[0]() is weight and entry[1] == state:
            self.entries.move_to_end(key)
            return entry[2]
        self._drop(key)
        rounded = round_weight(weight, form) if backend == "simulate" else pack(weight, form)
        self.entries[key] = weakref.ref(weight, lambda _: self._drop(key)), state, rounded
        self.bytes += weight_bytes_of(rounded)
        while self.bytes > self.limit and len(self.entries) > 1:
            self._drop(next(iter(self.entries)))
        return rounded

    def _drop(self, key: tuple[int, FormatPart, str]) -> None:
        if (entry := self.entries.pop(key, None)) is not None:
            self.bytes -= weight_bytes_of(entry[2])


ROUNDED_WEIGHTS = RoundedWeights(CACHE_BYTES)


def weight_bytes_of(tensor: Tensor) -> int:
    """Bytes of a tensor's values."""
    return int(tensor.numel() * tensor.element_size())


def weight_state(weight: Tensor) -> tuple[Any, ...]:
    """Device, type and two sums: adapters are fused into `.data`, which does not change torch's version counter."""
    weight = weight.detach()
    sums = torch.stack([weight.sum(dtype=torch.float64), torch.linalg.vector_norm(weight, dtype=torch.float64)])
    return str(weight.device), weight.dtype, *sums.tolist()


def pack(weight: Tensor, form: FormatPart) -> Tensor:
    """An int8 weight of torchao, made on a temporary layer: `quantize_` leaves attributes behind."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_

    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight.detach(), requires_grad=False)
    config = Int8DynamicActivationInt8WeightConfig if form.activation else Int8WeightOnlyConfig
    quantize_(nn.Sequential(layer), config(set_inductor_config=False))
    return layer.weight.detach()
