"""Integrals of exponentials times polynomials, which exponential integrators consist of."""

import math

import numpy as np


def integral_moments(span: float, count: int, form: str) -> np.ndarray:
    """Moments of the exponential weight of a step: integrals of u^k w(u) over u from 0 to the span, for k < count.

    Args:
        span: The length of the step in log-SNR.
        count: How many moments.
        form: `data` for w(u) = exp(u - span), `noise` for w(u) = exp(span - u).

    Returns:
        The moments [count].

    Example:
        >>> from search.solvers.integrals import integral_moments
        >>> integral_moments(1.0, 2, "data").round(4).tolist()  # 1 - 1/e and 1/e
        [0.6321, 0.3679]
    """
    phi = phi_function(count, -span if form == "data" else span)
    return np.array([span ** (k + 1) * math.factorial(k) * phi[k] for k in range(count)])


def phi_function(count: int, z: float) -> list[float]:
    """phi_1(z) .. phi_count(z), where phi_0 = exp and phi_{k+1} = (phi_k - 1/k!) / z.

    Near 0 the last one is summed as a series and the others follow from it, because the recursion would cancel.
    """
    if abs(z) > 1.5:
        values = [math.exp(z)]
        for k in range(count):
            values.append((values[-1] - 1 / math.factorial(k)) / z)
        return values[1:]
    term = total = 1 / math.factorial(count)  # the series of the last, and from there back: no cancelling
    for n in range(1, 22):
        term *= z / (count + n)
        total += term
    values = [total]
    for k in range(count - 1, 0, -1):
        values.append(z * values[-1] + 1 / math.factorial(k))
    return values[::-1]


def interpolated(nodes: np.ndarray, moments: np.ndarray) -> np.ndarray:
    """Weights [K] of values at `nodes` [K] for the integral of the polynomial through them.

    Args:
        nodes: Where the values are, in log-SNR from the start of the step.
        moments: Integrals [K] of the powers 0 .. K-1, see `integral_moments`.
    """
    scale = np.abs(nodes).max() or 1.0
    powers = np.arange(len(nodes))
    return np.linalg.solve((nodes / scale) ** powers[:, None], moments / scale**powers)
