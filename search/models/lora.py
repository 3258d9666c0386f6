"""LoRA weights (arXiv:2106.09685) merged into a pipeline's denoiser before anything is applied to it."""

from pathlib import Path
from typing import Any

from search.models.base import Model

CONFIG = "adapter_config.json"  # beside the weights, where peft has saved them


def merge(model: Model, path: str | Path, scale: float = 1.0) -> None:
    """Add `scale` times a LoRA to the weights: what runs are plain layers again, at no cost per step.

    `path` is a folder that peft has saved, or a folder, file or hub id that the pipeline's own `load_lora_weights`
    takes. ValueError says what to type where it cannot be had, or is for other layers.
    """
    pipe = model.pipe
    try:
        if (Path(path) / CONFIG).is_file() or not hasattr(pipe, "load_lora_weights"):
            _merge(model.denoiser, str(path), scale)
        else:
            pipe.load_lora_weights(str(path))
            pipe.fuse_lora(lora_scale=scale)
            pipe.unload_lora_weights()
    except ImportError:
        raise ValueError(f"lora={str(path)!r} needs one more package: pip install peft") from None
    except Exception as error:  # hub, file and shape errors of many kinds; all mean: not these weights
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"lora={str(path)!r} does not go onto this {type(model.denoiser).__name__}: {reason}. Type lora=<folder "
            f"with {CONFIG}>, as peft saves it"
            + (", or what pipe.load_lora_weights takes" if hasattr(pipe, "load_lora_weights") else "")
        ) from None


def _merge(denoiser: Any, path: str, scale: float) -> None:
    """By peft, in place."""
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

    wrapped = PeftModel.from_pretrained(denoiser, path)
    for module in wrapped.modules():
        if isinstance(module, LoraLayer):
            module.scale_layer(scale)
    wrapped.merge_and_unload()
