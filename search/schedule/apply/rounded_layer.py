"""A layer at few bits: it computes with a rounded weight, while its own parameter stays as it is."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from search.schedule.apply.admission import LAYER_HOOK
from search.schedule.apply.clock import Clock
from search.schedule.apply.hooks import PlannedHook
from search.schedule.apply.rounding import Range, halves, round_activation, round_picture, round_static
from search.schedule.apply.weights import ROUNDED_WEIGHTS, WeightState, weight_states
from search.schedule.parts.bits import FormatPart


class RoundedLayer(PlannedHook):
    """A linear layer or convolution that computes with rounded weights and, by its format, rounded inputs.

    What reads or writes the layer's parameters (saving, adapters, conversion) sees the original ones.
    """

    registered_name = LAYER_HOOK

    def __init__(
        self, clock: Clock, name: str, form: FormatPart, ranges: Sequence[Range] | Tensor | None, backend: str
    ) -> None:
        super().__init__(clock)
        self.name, self.form, self.backend = name, form, backend
        self.ranges = ranges if form.static else None
        self.rounds_inputs = form.activation is not None and backend == "simulate"
        self.correction: tuple[Tensor, Tensor] | None = None  # gain and offset [outputs]
        self.fit: Callable[[Tensor, Tensor], Tensor] | None = None  # corrects the rounded output
        self.offset: Tensor | None = None
        self.rounded: Tensor | None = None
        self.weight: nn.Parameter | None = None  # `rounded` as a parameter: torch.compile takes its memory as constant
        self.source: tuple[Any, ...] | None = None  # what it was rounded from

    def take_weight(self, state: WeightState) -> None:
        """Round the layer's weight, whose values have this state, unless that was done before."""
        original = self.module.weight
        rounded = ROUNDED_WEIGHTS.get(original, self.form, self.backend, state)
        if self.rounded is not rounded:
            self.rounded, weight = rounded, rounded
            if self.correction is not None:  # a factor for each row, which stays on its grid
                gain, self.offset = (each.to(rounded.device, rounded.dtype) for each in self.correction)
                weight = rounded * gain.reshape(-1, *[1] * (rounded.ndim - 1))
            self.weight = nn.Parameter(weight, requires_grad=False)
        self.source = _identity(original)

    def drop_weight(self) -> None:
        """Free the rounded weight, here and where rounded weights are stored."""
        if self.rounded is not None:
            ROUNDED_WEIGHTS.forget(self.module.weight, self.form, self.backend)
        self.rounded = self.weight = self.source = None

    @property
    def is_current(self) -> bool:
        """Whether the parameter is the one that was rounded; changes through `.data` do not show here."""
        return self.source is not None and self.source == _identity(self.module.weight)

    def initialize_hook(self, module: nn.Module) -> nn.Module:
        self.module: Any = module
        self.picture = type(module) is nn.Conv2d
        return module

    def new_forward(self, module: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The layer on rounded values; the name is that of `ModelHook`."""
        if self.clock.full:
            full: Tensor = self.fn_ref.original_forward(*args, **kwargs)
            return full
        value = args[0] if args else kwargs["input"]
        if self.weight is None:  # called alone, before the first run
            self.take_weight(*weight_states([module.weight]))
        given = self._round_input(value) if self.rounds_inputs else value
        if self.fit is not None:
            exact, rounded = (self._compute(*pair, None) for pair in ((value, module.weight), (given, self.weight)))
            corrected = self.fit(rounded, exact)
            bias = 0 if module.bias is None else module.bias[:, None, None] if self.picture else module.bias
            return corrected + bias
        bias = module.bias
        if self.offset is not None:
            bias = self.offset if bias is None else bias + self.offset
        return self._compute(given, self.weight, bias)

    def _compute(self, value: Tensor, weight: Any, bias: Tensor | None) -> Tensor:
        if self.picture:
            picture: Tensor = self.module._conv_forward(value, weight, bias)
            return picture
        return linear(value, weight, bias)

    def _round_input(self, value: Tensor) -> Tensor:
        """Round the input; the channels before and after a split each on a grid of their own.

        A layer is linear in its input: run on both halves at once it gives the sum of the two rounded layers.
        """
        bits = self.form.activation
        assert bits is not None
        parts = halves(value, self.form.split)
        if self.ranges is None:
            dynamic: Callable[[Tensor, int], Tensor] = round_picture if self.picture else round_activation
            rounded = [dynamic(part, bits) for part in parts]
        else:
            rounded = [round_static(part, bits, span) for part, span in zip(parts, self.ranges, strict=True)]
        return rounded[0] if len(rounded) == 1 else torch.cat(rounded, 1)


def _identity(weight: Tensor) -> tuple[Any, ...]:
    return id(weight), weight.data_ptr(), weight._version, weight.dtype
