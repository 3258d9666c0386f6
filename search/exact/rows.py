"""Lists of rows of genes: some of many, and each only once."""

from collections.abc import Iterable

import numpy as np

MOST_OF_A_FRONT = 24  # rows taken along a front that has thousands


def spread_indices(size: int, most: int) -> list[int]:
    """At most `most` indices of a list of `size` entries, evenly spread, with the first and the last.

    Example:
        >>> from search.exact.rows import spread_indices
        >>> spread_indices(9, 3), spread_indices(2, 5)
        ([0, 4, 8], [0, 1])
    """
    return [int(i) for i in np.unique(np.linspace(0, size - 1, min(most, size)).round().astype(int))]


def unique_rows(rows: Iterable[np.ndarray | None]) -> list[np.ndarray]:
    """Each row once, in order; None and rows of zeros are left out."""
    return list({row.tobytes(): row for row in rows if row is not None and row.any()}.values())
