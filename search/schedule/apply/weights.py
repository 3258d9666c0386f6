"""Rounded weights, computed once per layer and format and shared."""

import weakref
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from search.schedule.apply.rounding import round_weight
from search.schedule.parts.bits import FormatPart

CACHE_BYTES = 4 * 2**30
WeightState = tuple[Any, ...]  # of one weight: equal where its values are
_Key = tuple[int, FormatPart, str]


class RoundedWeights:
    """Rounded weights by parameter and format, for searches that apply thousands of schedules.

    An entry is dropped with its parameter, when the parameter's values have changed, or, where more than `limit` bytes
    are stored, when it was not used for the longest time.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.bytes = limit, 0
        self.entries: OrderedDict[_Key, tuple[Any, WeightState, Tensor]] = OrderedDict()

    def get(self, weight: nn.Parameter, form: FormatPart, backend: str, state: WeightState) -> Tensor:
        """The weight as this format stores it: rounded in its own type ("simulate"), or packed ("torchao").

        `state` is that of `weight_states`.
        """
        key = _key(weight, form, backend)
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

    def forget(self, weight: nn.Parameter, form: FormatPart, backend: str) -> None:
        """Free what was rounded for this format."""
        self._drop(_key(weight, form, backend))

    def _drop(self, key: _Key) -> None:
        if (entry := self.entries.pop(key, None)) is not None:
            self.bytes -= weight_bytes_of(entry[2])


def _key(weight: nn.Parameter, form: FormatPart, backend: str) -> _Key:
    if backend == "simulate":  # inputs are rounded elsewhere
        form = form.model_copy(update={"activation": None, "static": False, "per_step": False})
    return id(weight), form, backend


ROUNDED_WEIGHTS = RoundedWeights(CACHE_BYTES)


def weight_bytes_of(tensor: Tensor) -> int:
    """Bytes of a tensor's values."""
    return int(tensor.numel() * tensor.element_size())


def weight_states(weights: Sequence[Tensor]) -> list[WeightState]:
    """Of each tensor its device, type and two sums; on a GPU the host waits once for all of them.

    The sums are there because adapters are fused into `.data`, which does not change torch's version counter.
    """
    sums: dict[torch.device, list[Tensor]] = {}
    for weight in (w.detach() for w in weights):
        both = weight.sum(dtype=torch.float64), torch.linalg.vector_norm(weight, dtype=torch.float64)
        sums.setdefault(weight.device, []).append(torch.stack(both))
    values = {device: iter(torch.stack(tensors).tolist()) for device, tensors in sums.items()}
    return [(str(weight.device), weight.dtype, *next(values[weight.device])) for weight in weights]


def pack(weight: Tensor, form: FormatPart) -> Tensor:
    """An int8 weight of torchao, made on a temporary layer: `quantize_` leaves attributes behind."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_

    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight.detach(), requires_grad=False)
    config = Int8DynamicActivationInt8WeightConfig if form.activation else Int8WeightOnlyConfig
    quantize_(nn.Sequential(layer), config(set_inductor_config=False))
    return layer.weight.detach()
