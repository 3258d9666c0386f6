"""Merge LoRA weights (arXiv:2106.09685) into a pipeline's denoiser, before a schedule is applied to it."""

from pathlib import Path
from typing import Any

from search.models.base import Model

CONFIG = "adapter_config.json"  # next to the weights, as peft saves them


def merge(model: Model, path: str | Path, scale: float = 1.0) -> None:
    """Add a LoRA to the weights: the layers stay plain layers, without any cost per step.

    Args:
        model: The loaded model, which is changed.
        path: A folder that peft has saved, or a folder, file or hub id for the pipeline's `load_lora_weights`.
        scale: Factor on the LoRA.

    Raises:
        ValueError: It cannot be loaded, or is for other layers.
    """
    pipe = model.pipe
    if len(model.experts) > 1:
        raise ValueError(
            f"lora={str(path)!r}: this pipeline has two experts, with a LoRA for each; merge them yourself with "
            "pipe.load_lora_weights(…), pipe.load_lora_weights(…, load_into_transformer_2=True) and pipe.fuse_lora(), "
            "and give the pipeline to search.search(pipe, …)"
        )
    try:
        if (Path(path) / CONFIG).is_file() or not hasattr(pipe, "load_lora_weights"):
            _merge(model.denoiser, str(path), scale)
        else:
            pipe.load_lora_weights(str(path))
            pipe.fuse_lora(lora_scale=scale)
            pipe.unload_lora_weights()
    except ImportError:
        raise ValueError(f"lora={str(path)!r} needs one more package: pip install peft") from None
    except Exception as error:  # hub, file and shape errors are of many kinds
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"lora={str(path)!r} cannot be merged into this {type(model.denoiser).__name__}: {reason}. "
            f"Type lora=<folder with {CONFIG}>, as peft saves it"
            + (", or what pipe.load_lora_weights takes" if hasattr(pipe, "load_lora_weights") else "")
        ) from None


def _merge(denoiser: Any, path: str, scale: float) -> None:
    """Merge with peft, in place."""
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

    wrapped = PeftModel.from_pretrained(denoiser, path)
    for module in wrapped.modules():
        if isinstance(module, LoraLayer):
            module.scale_layer(scale)
    wrapped.merge_and_unload()
