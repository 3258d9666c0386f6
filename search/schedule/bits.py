"""Layers at few bits: the formats, their simulation, and how they get on a live denoiser and off again."""

import re
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers.hooks import ModelHook
from torch import Tensor, nn

from search.schedule.actions import PlannedHook
from search.schedule.errors import ScheduleError
from search.schedule.format import BitsPart, FormatPart
from search.schedule.sampler import Clock

# w: weight bits, g: inputs per scale (without: a whole row), a..d: activation bits, dynamic per token.
FORMATS: Mapping[str, FormatPart] = {
    "w8": FormatPart(weight=8),
    "w8a8d": FormatPart(weight=8, activation=8),
    "w6": FormatPart(weight=6),
    "w5": FormatPart(weight=5),
    "w4g128": FormatPart(weight=4, group=128),
    "w4a8d": FormatPart(weight=4, group=128, activation=8),
    "w3g128": FormatPart(weight=3, group=128),
    "w3a8d": FormatPart(weight=3, group=128, activation=8),
    "w2g64": FormatPart(weight=2, group=64),
    "elided": FormatPart(elided=True),
}
BACKENDS = ("simulate", "torchao")
SHRINK = (1.0, 0.9, 0.8, 0.7, 0.6)  # of the range, tried for weights below 8 bits
MIN_GROUP = 16  # smaller groups would be mostly scales
CACHE_BYTES = 4 * 2**30
PLAIN = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

# To add a model class: layers whose outputs depend on the timestep alone, as patterns of their full names. What
# a run holds constant beside it (PixArt-alpha's resolution) may enter too: a table is dropped when it changes.
ELIDABLE: Mapping[str, tuple[str, ...]] = {
    "PixArtTransformer2DModel": (
        r"adaln_single\.emb\.timestep_embedder\.linear_[12]",
        r"adaln_single\.linear",
    ),
    "DiTTransformer2DModel": (r"transformer_blocks\.\d+\.norm1\.emb\.timestep_embedder\.linear_[12]",),
}


def elidable(model_class: str, layer: str) -> bool:
    """Whether a layer's outputs can be tabulated per step."""
    return any(re.fullmatch(pattern, layer) for pattern in ELIDABLE.get(model_class, ()))


def fit(name: str, inputs: int) -> tuple[str, FormatPart]:
    """A format of the table for a layer with so many inputs: its id and itself, the group a divisor of the inputs."""
    form = FORMATS[name]
    if form.group is None or inputs % form.group == 0:
        return name, form
    best = max(g for g in range(1, min(form.group, inputs) + 1) if inputs % g == 0)
    form = form.model_copy(update={"group": best if best >= min(MIN_GROUP, inputs) else None})
    return format_id(form), form


def format_id(form: FormatPart) -> str:
    """The id of the table, or one made like it: `w4g64a8d`."""
    for name, known in FORMATS.items():
        if known == form:
            return name
    group = f"g{form.group}" if form.group else ""
    return f"w{form.weight}{group}" + (f"a{form.activation}d" if form.activation else "")


def packed_bytes(form: FormatPart, outputs: int, inputs: int) -> int:
    """Nominal bytes of a weight: its bits, and per group a 16-bit scale and, below 8 bits, a 16-bit zero point."""
    assert form.weight is not None
    groups = outputs * (inputs // (form.group or inputs))
    return -(-outputs * inputs * form.weight // 8) + groups * (2 if form.weight == 8 else 4)


def round_weight(weight: Tensor, form: FormatPart) -> Tensor:
    """A weight [outputs, inputs] as its format can say it, in its own type.

    8 bits are symmetric, as torchao has them. Below, the range from least to greatest is shrunk by the factor
    that gives the least squared error, per group.
    """
    assert form.weight is not None
    groups = weight.detach().float().reshape(weight.shape[0], -1, form.group or weight.shape[1])
    if form.weight == 8:
        return _symmetric(groups, 8).reshape(weight.shape).to(weight.dtype)
    top = 2**form.weight - 1
    low = groups.amin(-1, keepdim=True).clamp(max=0)
    high = groups.amax(-1, keepdim=True).clamp(min=0)
    best, least = groups, torch.full_like(low, torch.inf)
    for factor in SHRINK:
        scale = ((high - low) * (factor / top)).clamp(min=torch.finfo(torch.float32).tiny)
        zero = (-low * factor / scale).round()
        tried = ((groups / scale).round() + zero).clamp(0, top).sub(zero).mul(scale)
        error = (tried - groups).square().sum(-1, keepdim=True)
        best, least = torch.where(error < least, tried, best), torch.minimum(error, least)
    return best.reshape(weight.shape).to(weight.dtype)


def round_activation(value: Tensor, bits: int) -> Tensor:
    """Values [..., inputs] with `bits` bits and one scale per token, in their own type."""
    return _symmetric(value.float(), bits).to(value.dtype)


def _symmetric(value: Tensor, bits: int) -> Tensor:
    """Rounded with one scale for each last axis: the grid of torchao's int8."""
    scale = value.abs().amax(-1, keepdim=True) / (2**bits / 2 - 0.5)
    scale = scale.clamp(min=torch.finfo(torch.float32).eps)
    return (value * (1 / scale)).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * scale


class LayerBits:
    """The `bits` part of a schedule at work on a denoiser; checked at once, installed later, removed exactly."""

    def __init__(self, part: BitsPart | None, denoiser: nn.Module, backend: str) -> None:
        if backend not in BACKENDS:
            raise ScheduleError(f"bits={backend!r} is unknown; use schedule.apply(pipe, bits='simulate') or 'torchao'")
        self.backend = backend
        self.layers: dict[str, tuple[nn.Linear, FormatPart]] = {}
        self._originals: list[tuple[nn.Linear, nn.Parameter]] = []
        self._removers: list[Any] = []
        if part is None or not part.layers:
            return
        modules = dict(denoiser.named_modules())
        for name, form in part.layers.items():
            module, wanted = modules.get(name), part.formats[form]
            if type(module) is not nn.Linear:
                raise ScheduleError(_no_layer(name, module, denoiser))
            if wanted.elided:
                _check_elided(name, denoiser)
            else:
                _check_weight(name, module, wanted)
            if backend == "torchao" and not wanted.elided:
                _check_torchao(form, wanted, module)
            self.layers[name] = module, wanted
        if any(not form.elided for _, form in self.layers.values()):
            _check_offload(denoiser)

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
                rounding = _Rounding(form.activation)
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
    """Rounds the input of a linear layer before it runs."""

    def __init__(self, bits: int) -> None:
        self.bits = bits

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        value = args[0] if args else kwargs["input"]
        return (round_activation(value, self.bits),), {}


class TableHook(PlannedHook):
    """An elided layer: its output for one row per step, kept over the runs of one grid, handed to every row."""

    def __init__(self, clock: Clock, name: str, timesteps: Callable[[], list[float]]) -> None:
        super().__init__(clock)
        self.name, self.timesteps = name, timesteps
        self.grid: list[float] = []
        self.rows: dict[int, Tensor] = {}
        self.first: tuple[int, Tensor] | None = None  # step and input of the first row
        self.fresh = True
        clock.on_reset.append(self._reset)

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        given, step = args[0] if args else kwargs["input"], self.clock.step
        if self.fresh:
            self._check_first(given, step)
            self.fresh = False
        if step not in self.rows:
            self._check_rows(given)
            self.rows[step] = self.fn_ref.original_forward(given[:1]).detach()
            self.first = self.first or (step, given[:1].detach().clone())
        return self.rows[step].expand(*given.shape[:-1], -1)

    def _reset(self) -> None:
        self.fresh = True
        if self.clock.step >= 0 and (grid := self.timesteps()) != self.grid:
            self.grid = grid
            self._clear()

    def _clear(self) -> None:
        self.rows.clear()
        self.first = None

    def _check_first(self, given: Tensor, step: int) -> None:
        """Once a run: forget the rows of another input (a resolution), type or device."""
        if self.first is None:
            return
        at, row = self.first
        same = at == step and (row.dtype, row.device) == (given.dtype, given.device)
        if not (same and torch.equal(row, given[:1])):
            self._clear()

    def _check_rows(self, given: Tensor) -> None:
        spread = (given - given[:1]).abs().max()
        if spread > 0.01 * given.abs().max():
            raise ScheduleError(
                f"bits.layers.{self.name} is elided, but its input differs between pictures by {float(spread):.3g}; "
                "give all pictures of a call the same timestep and resolution, or leave this layer out"
            )


class RoundedWeights:
    """Rounded weights by parameter and format, for searches that apply thousands of schedules.

    An entry goes with its parameter, when the parameter's values have changed, or when it is the one that was
    not used for longest and `limit` bytes are kept.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.bytes = limit, 0
        self.kept: OrderedDict[tuple[int, FormatPart, str], tuple[Any, tuple, Tensor]] = OrderedDict()

    def get(self, weight: nn.Parameter, form: FormatPart, backend: str) -> Tensor:
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


def _check_torchao(name: str, form: FormatPart, module: nn.Linear) -> None:
    try:
        import torchao  # noqa: F401
    except ImportError:
        raise ScheduleError(
            "bits='torchao' needs torchao; type: pip install \"diffusion-schedule-search[quant]\""
        ) from None
    device = module.weight.device.type
    if device not in ("cpu", "cuda") or form not in (FORMATS["w8"], FORMATS["w8a8d"]):
        raise ScheduleError(
            f"bits.formats.{name} cannot run by torchao on {device}; w8 and w8a8d can, on cpu and cuda. For the rest "
            "use schedule.apply(pipe, bits='simulate')"
        )


def _check_weight(name: str, module: nn.Linear, form: FormatPart) -> None:
    if form.group and module.in_features % form.group:
        raise ScheduleError(
            f"bits.layers.{name}: a group of {form.group} does not divide its {module.in_features} inputs"
        )
    weight = module.weight
    if weight.dtype not in PLAIN or weight.is_meta or type(weight.data) is not Tensor:
        kind = "absent (offloaded)" if weight.is_meta else f"{weight.dtype} in a {type(weight.data).__name__}"
        raise ScheduleError(
            f"bits.layers.{name}: its weight is {kind}, and only plain floating point can be rounded; load the "
            "pipeline without quantization, layerwise casting and sequential offload"
        )


def _check_offload(denoiser: nn.Module) -> None:
    for name, module in denoiser.named_modules():
        if "group_offloading" in getattr(getattr(module, "_diffusers_hook", None), "hooks", {}):
            raise ScheduleError(
                f"bits: {name or 'the denoiser'} is offloaded in groups, which would not move rounded weights; use "
                "pipe.enable_model_cpu_offload() instead"
            )


def _check_elided(name: str, denoiser: nn.Module) -> None:
    model_class = type(denoiser).__name__
    if not elidable(model_class, name):
        allowed = [n for n, _ in denoiser.named_modules() if elidable(model_class, n)]
        raise ScheduleError(
            f"bits.layers.{name} is elided, but its outputs do not depend on the timestep alone; of a {model_class} "
            f"these may be: {', '.join(allowed[:4]) or 'none'}"
        )


def _no_layer(name: str, module: nn.Module | None, denoiser: nn.Module) -> str:
    if module is not None:
        return (
            f"bits.layers.{name} is a {type(module).__module__}.{type(module).__name__}, not a plain torch.nn.Linear; "
            "fuse and unload adapters, or leave it out"
        )
    linear = [n for n, m in denoiser.named_modules() if type(m) is nn.Linear]
    some = f"{linear[0]!r} to {linear[-1]!r}" if linear else "none"
    return (
        f"bits.layers names {name!r}, which {type(denoiser).__name__} lacks; it has {len(linear)} linear layers, {some}"
    )
