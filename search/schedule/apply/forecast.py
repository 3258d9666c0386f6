"""Forecasts: the polynomial through the last computed values, in Newton's form on their true places.

TaylorSeer (arXiv:2503.06923) scales every order by the latest gap, which is only right on even steps; the
divided differences here are right on any steps and equal it on even ones at order 1.
"""

from collections.abc import Sequence

from search.kernels.forecast import combine
from search.schedule.errors import ScheduleError

__all__ = ["check_distinct", "combine", "newton_weights"]


def newton_weights(places: Sequence[float], at: float) -> list[float]:
    """Weight of each value v(places[j]) in the forecast at `at`, in float64.

    Newton's form is sum_k v[x_0..x_k] prod_{m<k} (at - x_m) with divided differences v[..]. It is linear in
    the values, so the weights are the forecasts of unit vectors. ScheduleError on equal places.

    >>> newton_weights([0.0, 1.0], 2.0)  # a line through the last two values
    [-1.0, 2.0]
    """
    n = len(places)
    check_distinct(places)
    weights = [0.0] * n
    for j in range(n):
        table = [1.0 if i == j else 0.0 for i in range(n)]
        product = 1.0
        for k in range(n):
            weights[j] += table[0] * product
            product *= at - places[k]
            table = [(table[i + 1] - table[i]) / (places[i + k + 1] - places[i]) for i in range(len(table) - 1)]
    return weights


def check_distinct(places: Sequence[float]) -> None:
    """Raise ScheduleError on equal places: no polynomial goes through two values at one place."""
    if len(set(places)) < len(places):
        raise ScheduleError(f"plan.axis puts computed steps at equal places {list(places)}; use axis 'index'")
