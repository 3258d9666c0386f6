"""python -m benchmarks.coverage: how often reported intervals hold the mean, for few and many prompts.

The table of docs/objectives.md. 2000 samples for each cell; a minute of one CPU core.
"""

from collections.abc import Callable

import numpy as np

from search.pareto.intervals import bootstrap_interval

COUNTS = (8, 16, 32, 64)
SAMPLES = 2000
Draw = Callable[[int], np.ndarray]


def percentiles(values: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """Ordinary percentiles of resampled means, for comparison."""
    means = values[rng.integers(len(values), size=(1000, len(values)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def main() -> None:
    rng = np.random.default_rng(0)
    kinds: list[tuple[str, Draw, float]] = [("normal", lambda n: rng.normal(size=n), 0.0)]
    for spread in (0.5, 1.0):
        kinds.append((f"log-normal {spread}", lambda n, s=spread: rng.lognormal(0, s, n), np.exp(spread**2 / 2)))
    for name, draw, mean in kinds:
        for how in (bootstrap_interval, percentiles):
            shares = []
            for count in COUNTS:
                ends = (how(draw(count), rng) for _ in range(SAMPLES))
                shares.append(sum(low <= mean <= high for low, high in ends) / SAMPLES)
            print(
                f"{name:16} {how.__name__:18}", *(f"{n} prompts {s:.1%}" for n, s in zip(COUNTS, shares, strict=True))
            )


if __name__ == "__main__":
    main()
