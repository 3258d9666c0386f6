"""Bits as torchao runs them: the configuration that diffusers' `TorchAoConfig` reads."""

from typing import Any

from search.schedule.errors import ScheduleError
from search.schedule.exchange.loss import first_lines, refuse_losses, unsupported_parts
from search.schedule.parts.bits import FormatPart
from search.schedule.schedule import Schedule

REASON = "a quantization config holds formats of layers, nothing else"
# torchao's configuration classes by format: those that schedule.apply(pipe, bits="torchao") runs as well.
CLASSES = {
    FormatPart(weight=8): "Int8WeightOnlyConfig",
    FormatPart(weight=8, activation=8): "Int8DynamicActivationInt8WeightConfig",
}


def to_torchao(schedule: Schedule, lossy: bool = False) -> dict[str, Any]:
    """The data that `TorchAoConfig.from_dict` reads; ScheduleError where it would lose something, or without torchao.

    A format per layer by its full name (`FqnToConfig`); the other layers stay as they are.
    """
    refuse_losses("torchao", losses(schedule), lossy)
    try:
        from diffusers import TorchAoConfig
        from torchao import quantization
    except (ImportError, RuntimeError) as error:
        raise ScheduleError(
            f'dialect=torchao needs torchao ({error}); type: pip install "diffusion-schedule-search[quant]"'
        ) from None
    configs = {form: getattr(quantization, name)(set_inductor_config=False) for form, name in CLASSES.items()}
    layers = {layer: configs[form] for layer, form in schedule.bits.items() if form in configs}
    if not layers:
        raise ScheduleError("no layer of this schedule has a format that torchao runs: w8 or w8a8d")
    settings: dict[str, Any] = TorchAoConfig(quantization.FqnToConfig(layers)).to_dict()
    return settings


def losses(schedule: Schedule) -> list[str]:
    """The bits that torchao cannot run, and all other parts, in words."""
    lines = [
        f"bits: {layer} stays at full precision ({_words(form)}; torchao runs w8 and w8a8d of linear layers here)"
        for layer, form in schedule.bits.items()
        if form not in CLASSES
    ]
    if schedule.corrected_layers:
        lines.append(f"bits: {len(schedule.corrected_layers)} layers lose the correction of their outputs")
    return first_lines(lines) + unsupported_parts(schedule, ("bits",), REASON)


def _words(form: FormatPart) -> str:
    return ", ".join(f"{name} {value}" for name, value in form.model_dump(exclude_defaults=True).items())
