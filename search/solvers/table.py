"""Multistep solver rules and the tables that schedules carry."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

STENCILS = ("exact", "midpoint", "bh2", "even")
MAX_ORDER = 4
# Adams-Bashforth weights of orders 1 to 4, the latest output first.
EVEN = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


@dataclass(frozen=True, eq=False)
class SolverTable:
    """A linear multistep solver: x[i+1] = state[i] x[0] + sum over j <= i of outputs[i, j] e[j].

    x[0] are the initial latents and e[j] is what the denoiser gave at step j, as the scheduler is given it.

    Attributes:
        state: Coefficients of x[0], [T].
        outputs: Coefficients of the outputs, [T, T], zero above the diagonal.
    """

    state: np.ndarray
    outputs: np.ndarray

    def part(self) -> dict[str, Any]:
        """The `coefficients` of a schedule file's sampler part."""
        return {"state": self.state.tolist(), "outputs": [row[: i + 1] for i, row in enumerate(self.outputs.tolist())]}

    def close(self, other: "SolverTable") -> bool:
        """Whether both are equal up to rounding."""
        return np.allclose(self.state, other.state, atol=1e-9) and np.allclose(self.outputs, other.outputs, atol=1e-9)

    @property
    def size(self) -> float:
        """The largest absolute value of a coefficient; infinite where one is not finite."""
        largest = max(np.abs(self.state).max(), np.abs(self.outputs).max())
        return float(largest) if np.isfinite(largest) else math.inf


@dataclass(frozen=True)
class SolverRule:
    """How one step is made from the current state and the last `order` denoiser outputs.

    The stencils:

    - exact: the integral of the polynomial through the past values. In noise form DEIS; of order 2 in data form
      DPM-Solver++ with solver_type heun; of order 3 and more UniPC's predictor.
    - midpoint: DPM-Solver++ 2M and 3M as diffusers computes them. Its 3M takes half of the quadratic term, which
      makes it an order lower than its name.
    - bh2, bh1: UniPC with that B(h), which matters at order 2, and in a corrector of order 1.
    - even: Adams-Bashforth weights of even steps on the raw outputs (PNDM); `form` has no effect then. DDIM is
      order 1 of it. The only stencil that may be of higher order on the way to sigma 0.

    Attributes:
        order: How many outputs are used, 1 to 4; lowered where there are fewer past outputs.
        form: What is extrapolated over log-SNR: x0 (`data`) or the noise (`noise`).
        stencil: The weights, see above.
        corrector: Whether the next output corrects the state that this step led to, before the next step is made:
            UniPC's corrector (arXiv:2302.04867), which costs no denoiser call.
        relaxation: The slope over log-SNR is taken times 1 + relaxation * step length, as USF does (arXiv:2312.07243);
            without effect on order 1 and on the stencil `even`.
        early: The noise that was predicted is moved away from the noise of the first step, to
            (1 + early) * noise[i] - early * noise[0], before it is used; the stencil `even` does so to outputs.
        back: Of how many steps before the state is that the step starts from, 0 to 2. The step is then made of the
            output there and of the latest ones: single-step solvers (DPM-Solver, arXiv:2206.00927), whose inner
            places are the steps between. Without effect on the stencil `even` and on the way to sigma 0.

    Raises:
        ValueError: The order, the form, the stencil or `back` is not one of those.
    """

    order: int = 1
    form: str = "data"
    stencil: str = "exact"
    corrector: bool = False
    relaxation: float = 0.0
    early: float = 0.0
    back: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.order <= MAX_ORDER:
            raise ValueError(f"order {self.order} is out of range; a rule is of order 1 to {MAX_ORDER}")
        if self.form not in ("data", "noise"):
            raise ValueError(f"form {self.form!r} is unknown; choose data or noise")
        if self.stencil not in (*STENCILS, "bh1"):
            raise ValueError(f"stencil {self.stencil!r} is unknown; choose from {', '.join((*STENCILS, 'bh1'))}")
        if not 0 <= self.back <= 2:
            raise ValueError(f"back {self.back} is out of range; a step starts from the state of 0 to 2 steps before")
