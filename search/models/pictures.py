"""Pictures of whatever a pipeline returns: pictures, film strips of videos, spectrograms of sounds."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

SHOWN = 4  # frames of a video that objectives see
WINDOW = 256  # samples of a sound in one column of its spectrogram


def pictures_of(output: Any, other_tensors: bool = False) -> Tensor:
    """Pictures [B, 3, H, W] in [0, 1], float32, of the first thing that a pipeline returns.

    A video becomes one film strip [3, H, 4 W]: frames from the first to the last, evenly spaced, from left to right.
    One picture for a video keeps scores one for a prompt; each frame weighs the same. A sound becomes its
    spectrogram: the logarithm of magnitudes, 60 dB below the loudest is black.

    Args:
        output: Pictures or videos as tensors [B, 3, H, W] and [B, F, 3, H, W], as arrays [B, H, W, 3] and
            [B, F, H, W, 3], sounds [B, N] and [B, C, N], or lists of them.
        other_tensors: Draw any other tensor [B, ...] like latents.

    Raises:
        ValueError: It is something else.
    """
    if isinstance(output, list) and output and isinstance(output[0], np.ndarray | Tensor):
        output = np.stack(output) if isinstance(output[0], np.ndarray) else torch.stack(output)
    if isinstance(output, np.ndarray):
        output = torch.from_numpy(output)
        output = output.movedim(-1, -3) if output.dim() in (4, 5) else output
    if isinstance(output, Tensor) and output.dim() == 5 and output.shape[2] in (1, 3, 4):
        last = output.shape[1] - 1
        output = torch.cat([output[:, round(i * last / (SHOWN - 1))] for i in range(SHOWN)], dim=-1)
    if isinstance(output, Tensor) and output.dim() in (2, 3) and output.shape[-1] >= WINDOW:
        return _spectrograms(output.float().reshape(len(output), -1, output.shape[-1]).mean(1))
    if not isinstance(output, Tensor) or output.dim() != 4 or output.shape[1] not in (1, 3, 4):
        if other_tensors and isinstance(output, Tensor) and output.dim() > 1:
            return drawn_latents(output)
        shape = f" of shape {list(output.shape)}" if isinstance(output, Tensor) else ""
        raise ValueError(f"the pipeline returns a {type(output).__name__}{shape}, which is no picture, video or sound")
    output = output.expand(-1, 3, -1, -1) if output.shape[1] == 1 else output[:, :3]
    return output.float().clamp(0, 1)


def output_at(output: Any, path: str = "") -> Any:
    """A part of what a pipeline returns.

    Args:
        output: An output class, a tuple, or anything else.
        path: Attributes, keys and indices with dots between them, such as `frames` or `samples.0.depth`; "" is the
            first thing of an output class or a tuple, and anything else itself.

    Raises:
        ValueError: There is no such part.

    Example:
        >>> output_at({"images": 1, "audio": [2, 3]}), output_at({"images": 1, "audio": [2, 3]}, "audio.1")
        (1, 3)
    """
    if not path:
        if isinstance(output, Mapping):
            return next(iter(output.values()))
        return output[0] if isinstance(output, tuple) else output
    for name in path.split("."):
        parts = _parts_of(output)
        if name not in parts:
            listed = f"it has {', '.join(parts)}; type model.output=<one of them>" if parts else "it has no parts"
            raise ValueError(f"model.output={path!r}: a {type(output).__name__} has no part {name}; {listed}")
        output = parts[name]
    return output


def _parts_of(output: Any) -> Mapping[str, Any]:
    """Values by name, and of a list by index; the state that a modular pipeline returns has a table of them."""
    if isinstance(output, list | tuple):
        return {str(i): value for i, value in enumerate(output)}
    if isinstance(output, Mapping):
        return output
    values = getattr(output, "values", None)
    named: Mapping[str, Any] = values if isinstance(values, Mapping) else getattr(output, "__dict__", {})
    return named


def drawn_latents(latents: Tensor) -> Tensor:
    """Drawings [B, 3, H, W] in [0, 1] of latents [B, ...] that nothing is decoded from: their values as grey tones."""
    flat = latents.float().flatten(1)
    side = max(16, 8 * round(flat.shape[1] ** 0.5 / 8))
    grey = torch.nn.functional.interpolate(flat[:, None], side * side, mode="linear").sigmoid()
    return grey.reshape(-1, 1, side, side).expand(-1, 3, -1, -1)


def _spectrograms(sounds: Tensor) -> Tensor:
    """Pictures [B, 3, F, T] of sounds [B, N]."""
    window = torch.hann_window(WINDOW, device=sounds.device)
    spectrum = torch.stft(sounds, WINDOW, WINDOW // 2, window=window, return_complex=True).abs()
    loudest = spectrum.amax((1, 2), keepdim=True).clamp(min=1e-8)
    grey = (1 + (spectrum / loudest).clamp(min=1e-3).log10() / 3).clamp(0, 1)
    return grey.flip(1)[:, None].expand(-1, 3, -1, -1)
