"""Published rules of reuse on measured errors: SmoothCache, CacheQuant, LeMiCa, and reuse at regular intervals."""

from typing import Literal

import numpy as np

from search.calibrate.propose.rows import RowBuilder, Tokens
from search.exact.rows import unique_rows
from search.exact.segments import even_plans, reuse_front
from search.profile.plans import component_names, mask_to_tokens
from search.profile.tables import Tables
from search.schedule.model.nodes import ROOT
from search.schedule.plan.tokens import OFF

EVERY = (2, 3, 4, 5, 7, 10, 20)
SWEEP = tuple(0.01 * 1.2**i for i in range(24))  # thresholds 0.01 to 0.66


def interval_rows(rows: RowBuilder) -> list[np.ndarray]:
    """Recompute at every N-th step: all component kinds (FORA), all attentions, or one kind alone.

    ECAD (arXiv:2506.15682) begins with schedules like these, and with these N.
    """
    kinds, steps = list(rows.target.kinds), rows.target.steps
    groups = [kinds, [kind for kind in kinds if "attn" in kind], *([kind] for kind in kinds)]
    every = [[OFF if t % n == 0 else "R" for t in range(steps)] for n in EVERY if n <= steps]
    return rows.encode("intervals", [dict.fromkeys(group, tokens) for tokens in every for group in groups])


def smoothcache_rows(rows: RowBuilder, tables: Tables) -> list[np.ndarray]:
    """SmoothCache (arXiv:2411.10510): a component kind is reused while its measured error is below a threshold."""
    return rows.encode("smoothcache", [smoothcache_tokens(tables, threshold) for threshold in SWEEP])


def smoothcache_tokens(tables: Tables, threshold: float) -> Tokens:
    """SmoothCache's actions of each component kind."""
    names = component_names(tables.target)
    return {kind: threshold_mask(tables.reuse_errors(names[kind]), threshold) for kind in tables.target.kinds}


def threshold_mask(reuse: np.ndarray, threshold: float, longest: int = 4) -> list[str]:
    """SmoothCache's rule for one component kind: reuse the last value while its error is below a threshold.

    Args:
        reuse: Error [T, T] at a step (column) of the value of an earlier one (row).
        threshold: The error up to which a value is reused.
        longest: After so many steps the value is computed again in any case.

    Returns:
        Actions [T], C or R.

    Example:
        >>> import numpy as np
        >>> from search.calibrate.propose.cache import threshold_mask
        >>> distance = 0.1 * np.abs(np.arange(6)[:, None] - np.arange(6))
        >>> "".join(threshold_mask(distance, 0.25))
        'CRRCRR'
    """
    tokens, last = [OFF], 0
    for t in range(1, len(reuse)):
        if reuse[last, t] < threshold and t - last < longest:
            tokens.append("R")
        else:
            tokens.append(OFF)
            last = t
    return tokens


def cachequant_rows(rows: RowBuilder, tables: Tables) -> list[np.ndarray]:
    """CacheQuant (arXiv:2503.01323): all components reused by `even_plans`, with and without other presets."""
    plans = [dict.fromkeys(rows.target.kinds, mask_to_tokens(mask)) for mask in even_plans(tables.distances)]
    cached = rows.encode("cachequant", plans)
    presets = [
        rows.join({key: x})
        for key, space in rows.single_spaces.items()
        if not space.reuses_values(rows.target)
        for x in space.presets(rows.target).values()
    ]
    return [*cached, *presets, *(row + preset for row in cached for preset in presets)]


def minimax_rows(rows: RowBuilder, tables: Tables, aggregation: Literal["max", "lexicographic"]) -> list[np.ndarray]:
    """Whole-step reuse whose worst error is least: LeMiCa's criterion (NeurIPS 2025) on the measured table."""
    if not rows.reusing_spaces:
        raise ValueError(
            f"engine.of=dp_{aggregation} places reused steps, and {rows.space.key} reuses none; use engine.of=dp"
        )
    space = rows.reusing_spaces[0]
    front = reuse_front(tables.reuse_errors([ROOT]), tables.weights, aggregation)
    encoded = [space.encode({ROOT: mask_to_tokens(mask)}, rows.target) for _, mask in front]
    return rows.lift(space.key, unique_rows(encoded))
