"""How the values of all prompts become the one number that an engine is given.

Errors of schedules have heavy tails: of eight prompts one or two unstable ones decide a mean, and they are others on
the next eight. A geometric mean asks by which factor all prompts change; a quantile asks about the worst of them.
"""

from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np

Over = Literal["mean", "median", "q90", "log"]
FLOOR = 1e-12  # in place of an error of 0, whose logarithm is not finite


def geometric_mean(values: np.ndarray) -> np.ndarray:
    """Along the last axis; 0 where all values are 0."""
    result: np.ndarray = np.exp(np.log(np.maximum(values, FLOOR)).mean(axis=-1)) * (values > 0).any(axis=-1)
    return result


# Of errors [..., P], the lower the better.
AGGREGATES: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean": lambda values: values.mean(axis=-1),
    "median": lambda values: np.median(values, axis=-1),
    "q90": lambda values: np.quantile(values, 0.9, axis=-1),
    "log": geometric_mean,
}
