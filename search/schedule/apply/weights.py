"""Rounded weights, made once per layer and format and shared."""

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

    An entry goes with its parameter, when the parameter's values have changed, or when it is the one that was
    not used for longest and `limit` bytes are kept.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.bytes = limit, 0
        self.kept: OrderedDict[tuple[int, FormatPart, str], tuple[Any, tuple, Tensor]] = OrderedDict()

    def get(self, weight: nn.Parameter, form: FormatPart, backend: str) -> Tensor:
        form = form.model_copy(update={"activation": None, "static": False}) if backend == "simulate" else form
        key, state = (id(weight), form, backend), weight_state(weight)
        entry = self.kept.get(key)
        if entry is not None and entry[0]() is weight and entry[1] == state:
            self.kept.move_to_end(key)
            return entry[2]
        self._drop(key)
        rounded = round_weight(weight, form) if backend == "simulate" else pack(weight, form)
        self.kept[key] = weakref.ref(weight, lambda _: self._drop(key)), state, rounded
        self.bytes += weight_bytes_of(rounded)
        while self.bytes > self.limit and len(self.kept) > 1:
            self._drop(next(iter(self.kept)))
        return rounded

    def _drop(self, key: tuple[int, FormatPart, str]) -> None:
        if (entry := self.kept.pop(key, None)) is not None:
            self.bytes -= weight_bytes_of(entry[2])


ROUNDED_WEIGHTS = RoundedWeights(CACHE_BYTES)


def weight_bytes_of(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def weight_state(weight: Tensor) -> tuple:
    """Device, type and two sums: adapters are fused into `.data`, which torch's version counter does not see."""
    weight = weight.detach()
    sums = torch.stack([weight.sum(dtype=torch.float64), torch.linalg.vector_norm(weight, dtype=torch.float64)])
    return str(weight.device), weight.dtype, *sums.tolist()


def pack(weight: Tensor, form: FormatPart) -> Tensor:
    """An int8 weight of torchao, made on a layer of its own: `quantize_` leaves attributes behind."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_

    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight.detach(), requires_grad=False)
    config = Int8DynamicActivationInt8WeightConfig if form.activation else Int8WeightOnlyConfig
    quantize_(nn.Sequential(layer), config(set_inductor_config=False))
    return layer.weight.detach()
