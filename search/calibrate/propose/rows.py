"""Small helpers on rows of genes."""

from collections.abc import Iterable

import numpy as np

MOST_MERGED = 24  # rows taken along a front that has thousands
Tokens = dict[str, list[str]]


def spread_indices(size: int, most: int) -> list[int]:
    return np.unique(np.linspace(0, size - 1, min(most, size)).round().astype(int)).tolist()


def unique_rows(rows: Iterable[np.ndarray | None]) -> list[np.ndarray]:
    """Each row once and none that is all off."""
    return list({row.tobytes(): row for row in rows if row is not None and row.any()}.values())
