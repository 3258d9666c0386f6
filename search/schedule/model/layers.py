"""Linear layers and convolutions of a denoiser."""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

PLAIN = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
Layer = nn.Linear | nn.Conv2d


def layers_of(denoiser: nn.Module) -> dict[str, tuple[int, int]]:
    """Linear layers and convolutions by full name: outputs, and inputs of one output (channels times the kernel)."""
    return {name: shape_of(module) for name, module in denoiser.named_modules() if is_layer(module)}


def is_layer(module: nn.Module | None) -> bool:
    """Whether a module is a plain linear layer or convolution: not an adapter, nor a class of another library."""
    return type(module) in (nn.Linear, nn.Conv2d)


def shape_of(layer: nn.Module) -> tuple[int, int]:
    """Outputs, and inputs of one output."""
    weight: Any = layer.weight
    return weight.shape[0], math.prod(weight.shape[1:])


def input_splits(layers: Mapping[str, Any]) -> dict[str, int]:
    """Of each convolution that reads a UNet's concatenation of deep and skip channels: how many are deep.

    A ResNet block of an up block reads the output of the module before it, then that of a skip. `conv_shortcut` reads
    both as they are, `conv1` after their norm, which equalises the two unless a group of channels contains both.
    `layers` are those of `layers_of`. Split shortcuts: Q-Diffusion (arXiv:2302.04304), section 4.3.
    """
    sources = [name for name in layers if re.fullmatch(r"mid_block\.resnets\.\d+\.conv2", name)]
    sources = sources or [name for name in layers if re.fullmatch(r"down_blocks\.\d+\.resnets\.\d+\.conv2", name)]
    splits: dict[str, int] = {}
    for name in layers:
        if match := re.fullmatch(r"(up_blocks\.\d+\.resnets\.\d+\.)conv2", name):
            for reader in ("conv1", "conv_shortcut"):
                if sources and match[1] + reader in layers:
                    splits[match[1] + reader] = layers[sources[-1]][0]
            sources = [name]
    return splits
