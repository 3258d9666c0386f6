"""OLSS (arXiv:2305.14677): paths of timesteps through a recorded dense run, with a fitted solver."""

import numpy as np

from search.calibrate.propose.rows import RowBuilder
from search.exact.paths import reach_paths
from search.exact.rows import unique_rows
from search.profile.tables import Tables


def olss_rows(rows: RowBuilder, tables: Tables) -> list[np.ndarray]:
    """OLSS's paths of every length, with a fitted solver where a space has one to fit.

    Raises:
        ValueError: No space chooses timesteps or fits the solver.
    """
    target = rows.target
    fitted = {
        key: row for key, space in rows.single_spaces.items() if (row := space.encode_solver_fit(target)) is not None
    }
    choosing = [
        space
        for space in rows.single_spaces.values()
        if space.encode_timesteps(target.sampler.get("timesteps") or [], target) is not None
    ]
    if not choosing and not fitted:
        raise ValueError(
            f"olss chooses timesteps and fits the solver, and {rows.space.key} does neither; "
            "use +space=[timesteps,solver], or engine=nsga2"
        )
    proposed: list[np.ndarray] = []
    for space in choosing[:1]:
        paths = tables.dense_run.paths(reach_paths, range(2, target.steps))
        encoded = unique_rows([space.encode_timesteps(timesteps, target) for timesteps in paths])
        proposed += [rows.join({space.key: row} | fitted) for row in encoded]
    return [*proposed, rows.join(fitted)] if fitted else proposed
