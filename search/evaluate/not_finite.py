"""At which step the latents of a candidate stop being finite."""

import logging
from collections.abc import Sequence

import numpy as np

from search.models.base import Model
from search.schedule import Schedule

log = logging.getLogger("search")


def step_not_finite(
    model: Model, prompts: Sequence[str], seeds: Sequence[int], schedule: Schedule, drift: Sequence[float]
) -> float:
    """Run the first picture that failed again; runs of a search share their steps, and are not checked within.

    Args:
        model: The model that runs.
        prompts: The texts [P].
        seeds: Seeds of the noise [P].
        schedule: What gave latents that are not finite.
        drift: The drift of the first p prompts; at least one is not finite.

    Returns:
        The step, from 1, after which the latents are not finite; 0 where they are finite this time.
    """
    first = int(np.flatnonzero(~np.isfinite(drift))[0])
    with model.apply(schedule) as handle:
        model.sample([prompts[first]], [seeds[first]])
    check = handle.clock.finite_check
    step = (check.step if check else None) or 0
    log.info("schedule %s: its latents are not finite after step %d of %d", schedule.digest, step, schedule.steps)
    return step
