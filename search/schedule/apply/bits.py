"""Layers at few bits: their formats, and installing and removing them on a denoiser."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from diffusers.hooks import ModelHook
from torch import Tensor, nn

from search.schedule.apply.clock import Clock
from search.schedule.apply.rounding import Range, halves, round_activation, round_picture, round_static
from search.schedule.apply.tables import TableHook, check_elided
from search.schedule.apply.weights import ROUNDED_WEIGHTS
from search.schedule.errors import ScheduleError
from search.schedule.model.layers import PLAIN, is_layer, layers_of
from search.schedule.parts.bits import BitsPart, FormatPart
from search.schedule.parts.formats import FORMATS

BACKENDS = ("simulate", "torchao")


class LayerBits:
    """The `bits` part of a schedule on a denoiser: checked at once, installed later, removed without a trace."""

    def __init__(self, part: BitsPart | None, denoiser: nn.Module, backend: str) -> None:
        if backend not in BACKENDS:
            raise ScheduleError(f"bits={backend!r} is unknown; use schedule.apply(pipe, bits='simulate') or 'torchao'")
        self.backend = backend
        self.layers: dict[str, tuple[Any, FormatPart]] = {}
        self.ranges: Mapping[str, Sequence[Range]] = part.ranges if part else {}
        self._originals: list[tuple[Any, nn.Parameter]] = []
        self._removers: list[Any] = []
        if part is None or not part.layers:
            return
        modules = dict(denoiser.named_modules())
        for name, form in part.layers.items():
            module, wanted = modules.get(name), part.formats[form]
            if not is_layer(module):
                raise ScheduleError(_no_layer(name, module, denoiser))
            if wanted.elided:
                check_elided(name, denoiser)
            else:
                _check_weight(name, module, wanted)
                _check_static(name, wanted, part)
            if backend == "torchao" and not wanted.elided:
                _check_torchao(name, form, wanted, module)
            self.layers[name] = module, wanted
        if any(not form.elided for _, form in self.layers.values()):
            _check_offload(denoiser)

    @property
    def runs_hooks(self) -> bool:
        """Whether any layer has a hook of ours: rounding of activations, tables by step."""
        return any(form.elided or self.backend == "simulate" for _, form in self.layers.values())

    def install(
        self, clock: Clock, add: Callable[[nn.Module, ModelHook], None], timesteps: Callable[[], list[float]]
    ) -> None:
        """Replace the weights and add the hooks.

        `add` puts a hook on a module and removes it later; `timesteps` gives those of the current run.
        """
        for name, (module, form) in self.layers.items():
            if form.elided:
                add(module, TableHook(clock, name, timesteps))
                continue
            original = module.weight
            rounded = ROUNDED_WEIGHTS.get(original, form, self.backend)
            self._originals.append((module, original))
            module.weight = nn.Parameter(rounded, requires_grad=False)
            if form.activation and self.backend == "simulate":
                rounding = _Rounding(form, self.ranges.get(name), type(module) is nn.Conv2d)
                self._removers.append(module.register_forward_pre_hook(rounding, with_kwargs=True))

    def remove(self) -> None:
        """Give every layer its own parameter back, on the device and in the type that the pipeline has by now."""
        while self._removers:
            self._removers.pop().remove()
        while self._originals:
            module, original = self._originals.pop()
            device, dtype = module.weight.device, module.weight.dtype
            if (original.device, original.dtype) != (device, dtype):
                original.data = original.data.to(device, dtype)
            module.weight = original


class _Rounding:
    """Rounds the input of a layer before it runs; the channels before and after a split each on a grid of their own.

    A layer is linear in its input: run on both halves at once it gives the sum of the two rounded layers.
    """

    def __init__(self, form: FormatPart, ranges: Sequence[Range] | None, picture: bool) -> None:
        self.form, self.ranges = form, ranges if form.static else None
        self.dynamic = round_picture if picture else round_activation

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        value, bits = args[0] if args else kwargs["input"], self.form.activation
        assert bits is not None
        parts = halves(value, self.form.split)
        if self.ranges is None:
            rounded = [self.dynamic(part, bits) for part in parts]
        else:
            rounded = [round_static(part, bits, span) for part, span in zip(parts, self.ranges, strict=True)]
        return (rounded[0] if len(rounded) == 1 else torch.cat(rounded, 1),), {}


def _check_torchao(layer: str, name: str, form: FormatPart, module: Any) -> None:
    try:
        import torchao  # noqa: F401
    except ImportError:
        raise ScheduleError(
            "bits='torchao' needs torchao; type: pip install \"diffusion-schedule-search[quant]\""
        ) from None
    if type(module) is nn.Conv2d:
        raise ScheduleError(
            f"bits.layers.{layer} is a convolution, and torchao runs linear layers only; use "
            "schedule.apply(pipe, bits='simulate')"
        )
    device = module.weight.device.type
    if device not in ("cpu", "cuda") or form not in (FORMATS["w8"], FORMATS["w8a8d"]):
        raise ScheduleError(
            f"bits.formats.{name} cannot run by torchao on {device}; w8 and w8a8d can, on cpu and cuda. For the rest "
            "use schedule.apply(pipe, bits='simulate')"
        )


def _check_weight(name: str, module: Any, form: FormatPart) -> None:
    weight = module.weight
    if form.split and not (type(module) is nn.Conv2d and module.groups == 1 and form.split < weight.shape[1]):
        what = "a linear layer" if type(module) is nn.Linear else f"a convolution of {weight.shape[1]} channels"
        raise ScheduleError(
            f"bits.layers.{name} is split after {form.split} channels, but is {what}; split convolutions that read "
            "a concatenation, between its two parts"
        )
    for part in (weight.flatten(1),) if form.split is None else halves(weight, form.split):
        if form.group and (inputs := math.prod(part.shape[1:])) % form.group:
            raise ScheduleError(f"bits.layers.{name}: a group of {form.group} does not divide its {inputs} inputs")
    if weight.dtype not in PLAIN or weight.is_meta or type(weight.data) is not Tensor:
        kind = "absent (offloaded)" if weight.is_meta else f"{weight.dtype} in a {type(weight.data).__name__}"
        raise ScheduleError(
            f"bits.layers.{name}: its weight is {kind}, and only plain floating point can be rounded; load the "
            "pipeline without quantization, layerwise casting and sequential offload"
        )


def _check_static(name: str, form: FormatPart, part: BitsPart) -> None:
    if form.static and name not in part.ranges:
        raise ScheduleError(
            f"bits.layers.{name} is static, and bits.ranges does not say the range of its input; calibrate it with "
            "search.calibrate.ranges, or use a dynamic format"
        )


def _check_offload(denoiser: nn.Module) -> None:
    for name, module in denoiser.named_modules():
        if "group_offloading" in getattr(getattr(module, "_diffusers_hook", None), "hooks", {}):
            raise ScheduleError(
                f"bits: {name or 'the denoiser'} is offloaded in groups, which would not move rounded weights; use "
                "pipe.enable_model_cpu_offload() instead"
            )


def _no_layer(name: str, module: nn.Module | None, denoiser: nn.Module) -> str:
    if module is not None:
        return (
            f"bits.layers.{name} is a {type(module).__module__}.{type(module).__name__}, not a plain torch.nn.Linear "
            "or Conv2d; fuse and unload adapters, or leave it out"
        )
    layers = [*layers_of(denoiser)]
    some = f"{layers[0]!r} to {layers[-1]!r}" if layers else "none"
    return (
        f"bits.layers names {name!r}, which {type(denoiser).__name__} lacks; it has {len(layers)} linear layers and "
        f"convolutions, {some}"
    )
