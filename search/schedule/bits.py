"""Layers at few bits: the formats, and how they get on a live denoiser and off again."""

import math
import re
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from diffusers.hooks import ModelHook
from torch import Tensor, nn

from search.schedule.errors import ScheduleError
from search.schedule.format import BitsPart, FormatPart
from search.schedule.rounding import Range, halves, round_activation, round_picture, round_static, round_weight
from search.schedule.sampler import Clock
from search.schedule.tables import TableHook, check_elided

# w: weight bits, g: inputs per scale (without: a whole row), a: activation bits, d: dynamic, its range that of each
# token (of a convolution: of each picture), s: static, its range calibrated.
FORMATS: Mapping[str, FormatPart] = {
    "w8": FormatPart(weight=8),
    "w8a8d": FormatPart(weight=8, activation=8),
    "w8a8s": FormatPart(weight=8, activation=8, static=True),
    "w6": FormatPart(weight=6),
    "w5": FormatPart(weight=5),
    "w4": FormatPart(weight=4),
    "w4g128": FormatPart(weight=4, group=128),
    "w4a8d": FormatPart(weight=4, group=128, activation=8),
    "w4a8s": FormatPart(weight=4, activation=8, static=True),
    "w3g128": FormatPart(weight=3, group=128),
    "w3a8d": FormatPart(weight=3, group=128, activation=8),
    "w2g64": FormatPart(weight=2, group=64),
    "elided": FormatPart(elided=True),
}
BACKENDS = ("simulate", "torchao")
MIN_GROUP = 16  # smaller groups would be mostly scales
CACHE_BYTES = 4 * 2**30
PLAIN = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

Layer = nn.Linear | nn.Conv2d


def layers_of(denoiser: nn.Module) -> dict[str, tuple[int, int]]:
    """Linear layers and convolutions by full name: outputs, and inputs of one output (channels times the kernel)."""
    return {name: shape_of(module) for name, module in denoiser.named_modules() if is_layer(module)}


def is_layer(module: nn.Module | None) -> bool:
    """Whether bits can be said of a module: no adapter around it, no class of another library."""
    return type(module) in (nn.Linear, nn.Conv2d)


def shape_of(layer: nn.Module) -> tuple[int, int]:
    """Outputs, and inputs of one output."""
    weight: Any = layer.weight
    return weight.shape[0], math.prod(weight.shape[1:])


def seams(layers: Mapping[str, Any]) -> dict[str, int]:
    """Of each convolution that reads a UNet's concatenation of deep and skip channels: how many are deep.

    A ResNet block of an up block gets what the module before it gave, then what a skip brings. `conv_shortcut`
    reads both as they are, `conv1` after their norm, which levels the two only where no group spans the seam.
    `layers` are those of `layers_of`. Split shortcuts: Q-Diffusion (arXiv:2302.04304), section 4.3.
    """
    given = [name for name in layers if re.fullmatch(r"mid_block\.resnets\.\d+\.conv2", name)]
    given = given or [name for name in layers if re.fullmatch(r"down_blocks\.\d+\.resnets\.\d+\.conv2", name)]
    found: dict[str, int] = {}
    for name in layers:
        if match := re.fullmatch(r"(up_blocks\.\d+\.resnets\.\d+\.)conv2", name):
            for reader in ("conv1", "conv_shortcut"):
                if given and match[1] + reader in layers:
                    found[match[1] + reader] = layers[given[-1]][0]
            given = [name]
    return found


def fit(name: str, inputs: int, split: int | None = None) -> tuple[str, FormatPart]:
    """A format of the table for a layer with so many inputs, or channels before a split: its id and itself.

    Its group divides the inputs.
    """
    form = FORMATS[name]
    if split and not form.elided:
        form = form.model_copy(update={"split": split})
    common = math.gcd(inputs, split or 0)
    if form.group and common % form.group:
        best = max(g for g in range(1, min(form.group, common) + 1) if common % g == 0)
        form = form.model_copy(update={"group": best if best >= min(MIN_GROUP, inputs) else None})
    return format_id(form), form


def format_id(form: FormatPart) -> str:
    """The id of the table, or one made like it: `w4g64a8d`; with its split, `w4a8s/640`."""
    whole, seam = form.model_copy(update={"split": None}), f"/{form.split}" if form.split else ""
    for name, known in FORMATS.items():
        if known == whole:
            return name + seam
    group = f"g{form.group}" if form.group else ""
    activation = f"a{form.activation}{'s' if form.static else 'd'}" if form.activation else ""
    return f"w{form.weight}{group}{activation}{seam}"


def packed_bytes(form: FormatPart, outputs: int, inputs: int) -> int:
    """Nominal bytes of a weight: its bits, and per group a 16-bit scale and, below 8 bits, a 16-bit zero point."""
    assert form.weight is not None
    groups = outputs * (inputs // form.group if form.group else 2 if form.split else 1)
    return -(-outputs * inputs * form.weight // 8) + groups * (2 if form.weight == 8 else 4)


class LayerBits:
    """The `bits` part of a schedule at work on a denoiser; checked at once, installed later, removed exactly."""

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
    def watches(self) -> bool:
        """Whether anything of it runs in Python while the denoiser does: rounding of activations, tables by step."""
        return any(form.elided or self.backend == "simulate" for _, form in self.layers.values())

    def install(
        self, clock: Clock, add: Callable[[nn.Module, ModelHook], None], timesteps: Callable[[], list[float]]
    ) -> None:
        """`add` puts a hook on a module and sees to its removal; `timesteps` are those of the run at hand."""
        for name, (module, form) in self.layers.items():
            if form.elided:
                add(module, TableHook(clock, name, timesteps))
                continue
            original = module.weight
            rounded = _CACHE.get(original, form, self.backend)
            self._originals.append((module, original))
            module.weight = nn.Parameter(rounded, requires_grad=False)
            if form.activation and self.backend == "simulate":
                rounding = _Rounding(form, self.ranges.get(name), type(module) is nn.Conv2d)
                self._removers.append(module.register_forward_pre_hook(rounding, with_kwargs=True))

    def remove(self) -> None:
        """Give every layer its own parameter back, wherever the pipeline was moved in the meantime."""
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

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        value, bits = args[0] if args else kwargs["input"], self.form.activation
        assert bits is not None
        parts = halves(value, self.form.split)
        if self.ranges is None:
            rounded = [self.dynamic(part, bits) for part in parts]
        else:
            rounded = [round_static(part, bits, span) for part, span in zip(parts, self.ranges, strict=True)]
        return (rounded[0] if len(rounded) == 1 else torch.cat(rounded, 1),), {}


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
        key, state = (id(weight), form, backend), _state(weight)
        entry = self.kept.get(key)
        if entry is not None and entry[0]() is weight and entry[1] == state:
            self.kept.move_to_end(key)
            return entry[2]
        self._drop(key)
        rounded = round_weight(weight, form) if backend == "simulate" else _pack(weight, form)
        self.kept[key] = weakref.ref(weight, lambda _: self._drop(key)), state, rounded
        self.bytes += _bytes(rounded)
        while self.bytes > self.limit and len(self.kept) > 1:
            self._drop(next(iter(self.kept)))
        return rounded

    def _drop(self, key: tuple[int, FormatPart, str]) -> None:
        if (entry := self.kept.pop(key, None)) is not None:
            self.bytes -= _bytes(entry[2])


_CACHE = RoundedWeights(CACHE_BYTES)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _state(weight: Tensor) -> tuple:
    """Device, type and two sums: adapters are fused into `.data`, which torch's version counter does not see."""
    weight = weight.detach()
    sums = torch.stack([weight.sum(dtype=torch.float64), torch.linalg.vector_norm(weight, dtype=torch.float64)])
    return str(weight.device), weight.dtype, *sums.tolist()


def _pack(weight: Tensor, form: FormatPart) -> Tensor:
    """An int8 weight of torchao, made on a layer of its own: `quantize_` leaves attributes behind."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_

    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight.detach(), requires_grad=False)
    config = Int8DynamicActivationInt8WeightConfig if form.activation else Int8WeightOnlyConfig
    quantize_(nn.Sequential(layer), config(set_inductor_config=False))
    return layer.weight.detach()


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
            "search.evaluate.ranges, or use a dynamic format"
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
