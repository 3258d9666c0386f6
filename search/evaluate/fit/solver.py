"""Least squares of a solver's table against the teacher, under whatever plan and bits a schedule has.

OLSS (arXiv:2305.14677) fits x[i+1] on x[0] and the outputs e[0..i] of the *teacher*. Here the outputs are those that
the schedule itself produces: each row is fitted during the run, so the next output already follows from the fitted
state. One run on a few calibration prompts fits the whole table, and the solver compensates for the systematic part of
the errors of caching, skipping and rounding.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from search.evaluate.execute.prefix import SolverRow
from search.models.base import Model, rows_of
from search.models.watch import RunStep
from search.schedule import Schedule
from search.schedule.apply.linear_solver import LinearSolver
from search.schedule.noise import Noise
from search.schedule.schedulers import scheduler_of_part
from search.solvers.trace import trace_scheduler

RIDGE = 1e-3


@dataclass(frozen=True)
class Trajectory:
    """A recorded run.

    Attributes:
        noise: The noise schedule.
        sigmas: Sigmas as in files, [T+1].
        states: Latents before each step and at the end, [T+1, B, ...] in float64.
        outputs: What the denoiser gave at each step, guided, [T, B, ...] in float64.
    """

    noise: Noise
    sigmas: Sequence[float]
    states: Tensor
    outputs: Tensor

    def state(self, sigma: float) -> Tensor:
        """The state at a sigma [B, ...]: cubic Hermite interpolation, with the outputs as slopes.

        In x / alpha over sigma / alpha (flow: x over sigma) the slope of the probability-flow ODE is the predicted
        noise (flow: the velocity), which was recorded. Exact at recorded sigmas.
        """
        i = next((i for i, s in enumerate(self.sigmas) if s <= sigma), len(self.sigmas) - 1)
        if self.sigmas[i] == sigma or i == 0:
            return self.states[i]
        left, right = self.sigmas[i - 1], self.sigmas[i]
        a, b, width = self._straight(i - 1), self._straight(i), right - left
        u = (sigma - left) / width
        slope = self._slope(i - 1) * width
        if i < len(self.outputs):
            end = self._slope(i) * width
            value = a + u * slope + u * u * (3 * (b - a) - 2 * slope - end) + u**3 * (2 * (a - b) + slope + end)
        else:  # nothing was evaluated at the end: a parabola
            value = a + u * slope + u * u * (b - a - slope)
        return value * float(self._alpha(sigma))

    def _alpha(self, sigma: float) -> float:
        return 1.0 if self.noise.kind == "flow" else float(self.noise.scales(sigma)[0])

    def _straight(self, i: int) -> Tensor:
        return self.states[i] / self._alpha(self.sigmas[i])

    def _slope(self, i: int) -> Tensor:
        x, e = self.states[i], self.outputs[i]
        if self.noise.kind == "flow" or self.noise.prediction == "epsilon":
            return e
        alpha, sigma = (float(v) for v in self.noise.scales(self.sigmas[i]))
        if self.noise.prediction == "v_prediction":
            return alpha * e + sigma * x
        return (x - alpha * e) / sigma


def record_trajectory(model: Model, prompts: Sequence[str], seeds: Sequence[int]) -> Trajectory:
    """Run the model with the applied schedule and record all inputs and outputs of the solver.

    ValueError where the scheduler has no sigmas.
    """
    states, outputs = [], []
    scheduler, first = model.pipe.scheduler, 0

    def record(step: RunStep) -> None:
        nonlocal first
        first = step.first
        states.append(rows_of(step.sample, len(seeds)).double())
        outputs.append(rows_of(step.output, len(seeds)).double())
        if step.first + step.number + 1 == len(scheduler.timesteps):
            states.append(rows_of(step.latents, len(seeds)).double())

    model.sample(prompts, seeds, record)
    sampler = model.target.sampler
    sigmas = getattr(scheduler, "sigmas", None)
    if not sampler or sigmas is None or len(sigmas) != first + len(states):
        raise ValueError(f"{type(scheduler).__name__} has no sigmas to fit a solver on; use a scheduler that has them")
    sigmas = [float(s) for s in sigmas[first:]]
    return Trajectory(model.target.noise, sigmas, torch.stack(states), torch.stack(outputs))


class Fitter:
    """Fits solver tables on a few calibration prompts.

    A fit is a run of these prompts, and the fitted table gives exactly the final latents of that run.

    Args:
        model: The model that runs; the teacher's run is recorded now.
        prompts: B calibration prompts.
        seeds: Of their noise.
        ridge: Weight of the table before the fit, as a share of the energy of the combined vectors.

    Attributes:
        latents: Final latents of the last fit, by the digest of the fitted schedule.
        runs: How many runs were made, with the teacher's.
    """

    def __init__(self, model: Model, prompts: Sequence[str], seeds: Sequence[int], ridge: float = RIDGE) -> None:
        self.model, self.prompts, self.seeds, self.ridge = model, prompts, seeds, ridge
        self.teacher = record_trajectory(model, prompts, seeds)
        self._fitted: dict[str, Schedule] = {}
        self.latents: dict[str, Tensor] = {}
        self.runs = 1

    def fit(self, schedule: Schedule) -> Schedule:
        """The same schedule with its solver's table fitted; ValueError where it has no timesteps and sigmas.

        A schedule that injects noise is returned unchanged: a table determines the noise of each step.
        """
        if self.prior(schedule) is None:
            return schedule
        if schedule.digest not in self._fitted:
            self._fitted[schedule.digest] = self._run(schedule)
        return self._fitted[schedule.digest]

    @staticmethod
    def prior(schedule: Schedule) -> SolverRow | None:
        """The table that a schedule runs without a fit, which a fit begins with; None where no table is fitted."""
        if "start" in schedule.to_dict():
            return None
        sampler = schedule.sampler or {}
        if not sampler.get("sigmas"):
            raise ValueError("a fit needs sampler.timesteps and sampler.sigmas in the schedule")
        if "coefficients" in sampler:
            return sampler["coefficients"]["state"], sampler["coefficients"]["outputs"]
        return _traced(json.dumps(sampler, sort_keys=True))

    def solver(self, schedule: Schedule) -> "FittedSolver":
        """The solver that fits this schedule's table while it runs."""
        prior = self.prior(schedule)
        assert prior is not None
        targets = [self.teacher.state(sigma) for sigma in (schedule.sampler or {})["sigmas"][1:]]
        return FittedSolver(*prior, targets, self.ridge)

    @staticmethod
    def fitted(schedule: Schedule, solver: LinearSolver) -> Schedule:
        """The schedule with the table of a solver that has run."""
        part = {k: v for k, v in (schedule.sampler or {}).items() if k != "order"}
        table = {"state": list(solver.state), "outputs": [list(row) for row in solver.outputs]}
        return schedule.with_sampler(part | {"coefficients": table})

    def _run(self, schedule: Schedule) -> Schedule:
        """Fit while the schedule runs."""
        solver = self.solver(schedule)
        with self.model.apply(schedule, solver=solver):
            latents = self.model.sample(self.prompts, self.seeds).cpu()
        self.runs += 1
        fitted = self.fitted(schedule, solver)
        self.latents = {fitted.digest: latents}
        return fitted


@lru_cache(maxsize=256)
def _traced(sampler: str) -> SolverRow:
    part = json.loads(sampler)
    table = trace_scheduler(scheduler_of_part(part), timesteps=part["timesteps"], sigmas=part["sigmas"]).part()
    return table["state"], table["outputs"]


class FittedSolver(LinearSolver):
    """Runs a table and fits its rows meanwhile: ridge regression around the row of the prior.

    The combined vectors are scaled to unit norm, so `ridge` is a share of their energy.
    """

    state: list[float]
    outputs: list[list[float]]

    def __init__(
        self, state: Sequence[float], outputs: Sequence[Sequence[float]], targets: Sequence[Tensor], ridge: float
    ) -> None:
        super().__init__(list(state), [list(row) for row in outputs])
        self.targets, self.ridge = targets, ridge
        self.known = 0  # how many rows were fitted before

    def resume(self, rows: Sequence[Sequence[float]]) -> None:
        """Take over rows that were fitted before, each the weights of x[0] and of the outputs."""
        for i, (state, *outputs) in enumerate(rows):
            self.state[i], self.outputs[i] = state, outputs
        self.known = len(rows)

    def step(self, i: int, output: Tensor, sample: Tensor) -> Tensor:
        """x[i+1] by the fitted row, in the same arithmetic as `LinearSolver`."""
        if i < self.known:
            return super().step(i, output, sample)
        vectors = [sample, output] if i == 0 else [*self.values, output]
        count = len(self.targets[i])  # a pipeline may step both halves of guidance, which are alike
        rows = torch.stack([value[:count].double().flatten() for value in vectors])  # [K, N]
        prior = torch.tensor([self.state[i], *self.outputs[i]], dtype=rows.dtype, device=rows.device)
        products = rows @ rows.T
        norms = products.diagonal().sqrt().clamp(min=1e-30)
        left = (rows @ self.targets[i].to(rows).flatten() - products @ prior) / norms
        gram = products / norms / norms[:, None] + self.ridge * torch.eye(
            len(norms), dtype=rows.dtype, device=rows.device
        )
        row = (prior + torch.linalg.solve(gram, left) / norms).tolist()
        self.state[i], self.outputs[i] = row[0], row[1:]
        return super().step(i, output, sample)
