"""Layers at few bits: their formats, and installing and removing them on a denoiser."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from search.schedule.apply.clock import Clock
from search.schedule.apply.hooks import PlannedHook
from search.schedule.apply.rounded_layer import RoundedLayer
from search.schedule.apply.rounding import halves
from search.schedule.apply.step_ranges import StepRanges
from search.schedule.apply.tables import TableHook, check_elided
from search.schedule.apply.weights import weight_states
from search.schedule.errors import ScheduleError
from search.schedule.model.layers import PLAIN, is_layer, layers_of
from search.schedule.parts.bits import BitsPart, FormatPart, correction_names
from search.schedule.parts.formats import FORMATS

BACKENDS = ("simulate", "torchao")
# What diffusers' fuse_qkv_projections puts in the place of which layers.
FUSED = {
    "to_qkv": ("to_q", "to_k", "to_v"),
    "to_kv": ("to_k", "to_v"),
    "to_added_qkv": ("add_q_proj", "add_k_proj", "add_v_proj"),
}


class LayerBits:
    """The `bits` part of a schedule on a denoiser: checked at once and when a run begins, and installed as hooks.

    The denoiser's parameters stay as they are. Rounded weights are taken when the denoiser is first called in a run,
    and again within it where a parameter was replaced or converted since.
    """

    def __init__(
        self, part: BitsPart | None, denoiser: nn.Module, backend: str, tensors: Mapping[str, Tensor] | None = None
    ) -> None:
        if backend not in BACKENDS:
            raise ScheduleError(f"bits={backend!r} is unknown; use schedule.apply(pipe, bits='simulate') or 'torchao'")
        self.part, self.denoiser, self.backend = part or BitsPart(formats={}, layers={}), denoiser, backend
        self.corrections = _corrections(self.part, denoiser, backend, tensors or {})
        self.layers: dict[str, tuple[Any, FormatPart]] = {}
        self.rounded: list[RoundedLayer] = []
        self.tables: list[TableHook] = []
        self.step_ranges: StepRanges | None = None  # of layers whose range changes from step to step
        self.fresh = False  # whether the running run has taken its weights
        modules = dict(denoiser.named_modules())
        for name, form in self.part.layers.items():
            module, wanted = modules.get(name), self.part.formats[form]
            if not is_layer(module):
                raise ScheduleError(_no_layer(name, module, denoiser))
            if wanted.elided:
                check_elided(name, denoiser)
            else:
                _check_static(name, wanted, self.part)
            self.layers[name] = module, wanted
        self.check()
        for name, (module, wanted) in self.layers.items():
            if not wanted.elided:
                _check_bare(name, module)

    @property
    def runs_hooks(self) -> bool:
        """Whether a layer has a hook that does more than to compute with another weight."""
        return any(form.elided or self.backend == "simulate" for _, form in self.layers.values())

    def check(self) -> None:
        """Raise ScheduleError where a layer cannot run at its bits as the denoiser is now."""
        for name, (module, form) in self.layers.items():
            if form.elided:
                continue
            _check_reached(name, self.denoiser)
            _check_weight(name, module, form)
            if self.backend == "torchao":
                _check_torchao(name, self.part.layers[name], form, module)
        if any(not form.elided for _, form in self.layers.values()):
            _check_offload(self.denoiser)

    def install(
        self,
        clock: Clock,
        add: Callable[[nn.Module, PlannedHook], None],
        timesteps: Callable[[], list[float]],
        scheduler: Callable[[], Any],
    ) -> None:
        """Hook the layers: `add` puts a hook on a module; the others give the run's timesteps and scheduler."""
        if self.part.per_step:
            self.step_ranges = StepRanges(self.part, clock, timesteps, scheduler)
        views = self.step_ranges.views if self.step_ranges else {}
        for name, (module, form) in self.layers.items():
            if form.elided:
                self.tables.append(TableHook(clock, name, timesteps))
                add(module, self.tables[-1])
            else:
                ranges = views[name] if form.per_step else self.part.ranges.get(name)
                self.rounded.append(RoundedLayer(clock, name, form, ranges, self.backend))
                self.rounded[-1].correction = self.corrections.get(name)
                add(module, self.rounded[-1])

    def begin_run(self) -> None:
        """Check the layers; their weights are taken when the denoiser is called, which may move it to its device."""
        self.check()
        self.fresh = False

    def end_run(self) -> None:
        """Free the rounded weights of a denoiser that leaves its device between runs, as they would stay there."""
        if getattr(self.denoiser, "_hf_hook", None) is not None:
            for layer in self.rounded:
                layer.drop_weight()

    def take_weights(self) -> None:
        """Before the denoiser runs: round the weights that have changed, and forget tables of other weights."""
        if self.fresh:
            changed = [layer for layer in self.rounded if not layer.is_current]
        else:
            changed = self.rounded
            states = iter(weight_states([p for table in self.tables for p in table.module.parameters(recurse=False)]))
            for table in self.tables:
                table.follow_weights([next(states) for _ in table.module.parameters(recurse=False)])
        states = iter(weight_states([layer.module.weight for layer in changed]))
        for layer, state in zip(changed, states, strict=True):
            layer.take_weight(state)
        if self.step_ranges:
            self._take_ranges(self.step_ranges)
        self.fresh = True

    def _take_ranges(self, step_ranges: StepRanges) -> None:
        """Put the ranges of the current step in effect, which at the first one are placed where the layers are."""
        if not self.fresh:
            step_ranges.begin_run(self.layers[step_ranges.layers[0]][0].weight.device)
            views = step_ranges.views
            for layer in self.rounded:
                if layer.form.per_step:
                    layer.ranges = views[layer.name]
        step_ranges.go()


def _corrections(
    part: BitsPart, denoiser: nn.Module, backend: str, tensors: Mapping[str, Tensor]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Gain and offset of each corrected layer."""
    if part.corrected is None:
        return {}
    if not part.corrected.tensors.names <= set(tensors):
        raise ScheduleError(
            "the corrections of this schedule's rounded layers were not read; load it from its file with "
            "Schedule.load(path), the .safetensors beside it"
        )
    if backend != "simulate":
        raise ScheduleError(
            "bits.corrected scales the rows of rounded weights, which torchao's do not; use "
            "schedule.apply(pipe, bits='simulate')"
        )
    found: dict[str, tuple[Tensor, Tensor]] = {}
    modules = dict(denoiser.named_modules())
    for layer in part.corrected.layers:
        gain, offset = (tensors[name] for name in correction_names(layer))
        outputs = len(modules[layer].weight) if is_layer(modules.get(layer)) else len(gain)
        if len(gain) != outputs:
            raise ScheduleError(f"bits/{layer}.gain has {len(gain)} numbers, and the layer has {outputs} outputs")
        found[layer] = gain, offset
    return found


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


def _check_bare(name: str, module: Any) -> None:
    if hooks := getattr(module.__dict__.get("_diffusers_hook"), "hooks", None):
        raise ScheduleError(
            f"bits.layers.{name} carries the hook {next(iter(hooks))!r} of diffusers, which would not run; remove it "
            "first, or leave this layer out"
        )


def _check_reached(name: str, denoiser: nn.Module) -> None:
    path, _, child = name.rpartition(".")
    attention: Any = denoiser.get_submodule(path)
    processor = type(getattr(attention, "processor", None)).__name__
    if not getattr(attention, "fused_projections", False) or (
        isinstance(attention, Attention) and "Fused" not in processor  # which keeps its mark when it is unfused
    ):
        return
    for fused, parts in FUSED.items():
        if child in parts and hasattr(attention, fused):
            raise ScheduleError(
                f"bits.layers.{name} does not run, as {path}.{fused} computes in its place; call "
                "unfuse_qkv_projections() first"
            )


def _check_static(name: str, form: FormatPart, part: BitsPart) -> None:
    if form.static and name not in part.ranges:
        raise ScheduleError(
            f"bits.layers.{name} is static, and bits.ranges does not say the range of its input; calibrate it with "
            "search.calibrate.ranges.with_measured_ranges, or use a dynamic format"
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
