"""Forecasts: the polynomial through the last computed values, in Newton's form on their true places.

TaylorSeer (arXiv:2503.06923) scales every order by the latest gap, which is only right on even steps; the
divided differences here are right on any steps and equal it on even ones at order 1.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from search.schedule.errors import ScheduleError


def newton_weights(places: Sequence[float], at: float) -> list[float]:
    """Weight of each value v(places[j]) in the forecast at `at`; computed once per step in float64.

    Newton's form is sum_k v[x_0..x_k] prod_{m<k} (at - x_m) with divided differences v[..]. It is linear in
    the values, so the weights follow by running the recursion on unit vectors. ScheduleError on equal places.
    """
    n = len(places)
    if len(set(places)) < n:
        raise ScheduleError(f"plan.axis puts computed steps at equal places {list(places)}; use axis 'index'")
    weights = [0.0] * n
    for j in range(n):
        table = [1.0 if i == j else 0.0 for i in range(n)]
        product = 1.0
        for k in range(n):
            weights[j] += table[0] * product
            product *= at - places[k]
            table = [(table[i + 1] - table[i]) / (places[i + k + 1] - places[i]) for i in range(len(table) - 1)]
    return weights


def combine(values: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Weighted sum, accumulated in fp32 and returned in the dtype of the values."""
    total = values[0].float() * weights[0]
    for value, weight in zip(values[1:], weights[1:], strict=True):
        total = torch.add(total, value.float(), alpha=weight)
    return total.to(values[0].dtype)
