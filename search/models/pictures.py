"""Pictures of whatever a pipeline returns: pictures, film strips of videos."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

SHOWN = 4  # frames of a video that objectives see


def pictures_of(output: Any) -> Tensor:
    """Pictures [B, 3, H, W] in [0, 1], float32, of the first thing that a pipeline returns.

    A video becomes one film strip [3, H, 4 W]: frames from the first to the last, evenly spaced, from left to right.
    One picture for a video keeps scores one for a prompt; each frame weighs the same.

    Args:
        output: Pictures or videos as tensors [B, 3, H, W] and [B, F, 3, H, W], as arrays [B, H, W, 3] and
            [B, F, H, W, 3], or lists of them.

    Raises:
        ValueError: It is something else.
    """
    if isinstance(output, list) and output and isinstance(output[0], np.ndarray | Tensor):
        output = np.stack(output) if isinstance(output[0], np.ndarray) else torch.stack(output)
    if isinstance(output, np.ndarray):
        output = torch.from_numpy(output)
        output = output.movedim(-1, -3) if output.dim() in (4, 5) else output
    if isinstance(output, Tensor) and output.dim() == 5:
        last = output.shape[1] - 1
        output = torch.cat([output[:, round(i * last / (SHOWN - 1))] for i in range(SHOWN)], dim=-1)
    if not isinstance(output, Tensor) or output.dim() != 4 or output.shape[1] not in (1, 3, 4):
        shape = f" of shape {list(output.shape)}" if isinstance(output, Tensor) else ""
        raise ValueError(
            f"the pipeline returns a {type(output).__name__}{shape}, which is no picture; search without objectives on "
            "pictures: objective=[drift,macs]"
        )
    return output[:, :3].float().clamp(0, 1)
