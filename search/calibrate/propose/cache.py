"""Cache plans that follow from measured errors."""

import numpy as np

from search.schedule.plan.tokens import OFF


def threshold_mask(reuse: np.ndarray, threshold: float, longest: int = 4) -> list[str]:
    """SmoothCache (arXiv:2411.10510): reuse the last value while its error stays below a threshold."""
    tokens, last = [OFF], 0
    for t in range(1, len(reuse)):
        if reuse[last, t] < threshold and t - last < longest:
            tokens.append("R")
        else:
            tokens.append(OFF)
            last = t
    return tokens
