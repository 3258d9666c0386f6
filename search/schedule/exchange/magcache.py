"""MagCache's magnitude ratios (arXiv:2506.09045), which decide beforehand which steps are reused."""

import math
from typing import Any

from search.schedule.exchange import masks
from search.schedule.exchange.check import count_of, list_of, number_of, object_of, steps_of
from search.schedule.exchange.masks import Parts
from search.schedule.model.nodes import ROOT, Tree
from search.schedule.plan.tokens import OFF


def from_magcache(data: Any, tree: Tree) -> Parts:
    """MagCache's magnitude ratios `mag_ratios` as a mask of whole steps, which they decide beforehand.

    A step is reused while the error accumulated since the last computed one, of |1 - product of ratios|, stays within
    `threshold` (0.06) and no more than `max_skip_steps` (3) follow; the first `retention_ratio` (0.2) of the
    `num_inference_steps` (as many as ratios) compute. MagCache adds the residual of all blocks where a plan reuses
    the denoiser's output.
    """
    config = object_of(data, "file")
    ratios = [number_of(ratio, "mag_ratios", 100) for ratio in list_of(config["mag_ratios"], "mag_ratios")]
    steps = steps_of(config.get("num_inference_steps", len(ratios)), "num_inference_steps")
    threshold = number_of(config.get("threshold", 0.06), "threshold", math.inf)
    longest = count_of(config.get("max_skip_steps", 3), "max_skip_steps")
    retained = int(number_of(config.get("retention_ratio", 0.2), "retention_ratio", 1) * steps + 0.5)
    scale = (len(ratios) - 1) / max(steps - 1, 1)
    step_ratios = [ratios[round(t * scale)] for t in range(steps)] if steps > 1 else ratios[-1:]
    actions: list[str] = []
    product, error, reused = 1.0, 0.0, 0
    for t, ratio in enumerate(step_ratios):
        if t >= max(retained, 1):
            product, reused = product * ratio, reused + 1
            error += abs(1 - product)
        skipped = t >= max(retained, 1) and error <= threshold and reused <= longest
        actions.append("R" if skipped else OFF)
        if not skipped:
            product, error, reused = 1.0, 0.0, 0
    return masks.parts({ROOT: actions}, tree, "1")
