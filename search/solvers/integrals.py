"""Integrals of exponentials times polynomials, which exponential integrators consist of."""

import math

import numpy as np


def integral_moments(span: float, count: int, form: str) -> np.ndarray:
    """Integrals of u^k exp(-(span - u)) over 0..span (data; noise: of the rising exponential), k < count."""
    phi = phi_function(count, -span if form == "data" else span)
    return np.array([span ** (k + 1) * math.factorial(k) * phi[k] for k in range(count)])


def phi_function(count: int, z: float) -> list[float]:
    """phi_1(z) .. phi_count(z), where phi_0 = exp and phi_{k+1} = (phi_k - 1/k!) / z."""
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
    """Weights of the values at `nodes` that give every polynomial through them its integral by `moments`."""
    scale = np.abs(nodes).max() or 1.0
    powers = np.arange(len(nodes))
    return np.linalg.solve((nodes / scale) ** powers[:, None], moments / scale**powers)
