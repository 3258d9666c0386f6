"""Linear multistep solvers as tables: diffusers' schedulers traced, and per-step rules compiled.

A table says x[i+1] = state[i] * x[0] + sum over j <= i of outputs[i, j] * e[j], e[j] what the denoiser gave at
step j. The exponential integrators are those of DPM-Solver++ (arXiv:2211.01095), DEIS (arXiv:2204.13902) and UniPC
(arXiv:2302.04867); Adams-Bashforth weights with DDIM's transfer are PNDM's (arXiv:2202.09778).
"""

import copy
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from search.noise import Noise
from search.schedule.sampler import ORDERED, Clock, plan_scheduler, scheduler_class

STENCILS = ("exact", "midpoint", "bh2", "even")
MAX_ORDER = 4
# Adams-Bashforth weights of orders 1 to 4, the latest output first.
EVEN = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


@dataclass(frozen=True, eq=False)
class Table:
    """A solver of T steps: `state` [T], and `outputs` [T, T], zero above the diagonal."""

    state: np.ndarray
    outputs: np.ndarray

    def part(self) -> dict[str, Any]:
        """The `coefficients` of a schedule file's sampler part."""
        return {"state": self.state.tolist(), "outputs": [row[: i + 1] for i, row in enumerate(self.outputs.tolist())]}

    def close(self, other: "Table") -> bool:
        """Whether both say the same but for rounding."""
        return np.allclose(self.state, other.state, atol=1e-9) and np.allclose(self.outputs, other.outputs, atol=1e-9)

    @property
    def size(self) -> float:
        """The largest coefficient; infinite where one is not finite."""
        largest = max(np.abs(self.state).max(), np.abs(self.outputs).max())
        return float(largest) if np.isfinite(largest) else math.inf


@dataclass(frozen=True)
class Rule:
    """How one step is made from the current state and the last `order` denoiser outputs.

    `form` is what is extrapolated over log-SNR, x0 (data) or the noise. `stencil` says with which weights:

    - exact: the integral of the polynomial through the past values. In noise form DEIS; of order 2 in data form
      DPM-Solver++ with solver_type heun; of order 3 and more UniPC's predictor.
    - midpoint: DPM-Solver++ 2M and 3M as diffusers computes them. Its 3M takes half of the quadratic term, which
      makes it an order lower than its name.
    - bh2, bh1: UniPC with that B(h), which tells at order 2, and in a corrector of order 1.
    - even: Adams-Bashforth weights of even steps on the raw outputs (PNDM); `form` says nothing then. DDIM is
      order 1 of it. The only stencil that may be of higher order on the way to sigma 0.

    With `corrector` the next evaluation corrects the state that this step has led to, before the next step is
    made: UniPC's corrector, which costs no denoiser call.
    """

    order: int = 1
    form: str = "data"
    stencil: str = "exact"
    corrector: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.order <= MAX_ORDER:
            raise ValueError(f"order {self.order} is out of range; a rule is of order 1 to {MAX_ORDER}")
        if self.form not in ("data", "noise"):
            raise ValueError(f"form {self.form!r} is unknown; choose data or noise")
        if self.stencil not in (*STENCILS, "bh1"):
            raise ValueError(f"stencil {self.stencil!r} is unknown; choose from {', '.join((*STENCILS, 'bh1'))}")


# Tracing


class Exact(torch.Tensor):
    """A float64 tensor that stays one: schedulers round their sample to float32 on the way."""

    def to(self, *args: Any, **kwargs: Any) -> "Exact":
        return self


def traced(
    scheduler: Any,
    steps: int | None = None,
    *,
    timesteps: Sequence[float] | None = None,
    sigmas: Sequence[float] | None = None,
) -> Table:
    """What `scheduler.step` computes, from runs on unit vectors in float64: its own grid of `steps`, or a given one.

    ValueError where the scheduler draws noise, clips, or is otherwise no linear function of state and outputs.
    """
    check_linear(scheduler)
    name = type(scheduler).__name__
    if (steps is None) == (timesteps is None):
        raise ValueError("give either steps or timesteps (with sigmas, where the class has them)")

    def fresh() -> Any:
        planned = plan_scheduler(scheduler, Clock(), steps=None, timesteps=timesteps, sigmas=sigmas)
        planned.set_timesteps(steps if timesteps is None else len(timesteps))
        for key, value in list(vars(planned).items()):  # constants of float32 keep their values
            if key != "timesteps" and isinstance(value, torch.Tensor) and value.is_floating_point():
                setattr(planned, key, value.double())
        return planned

    def run(x: torch.Tensor, e: torch.Tensor) -> np.ndarray:
        """States [T, B] after x [B, 1], where the denoiser gives e [B, T]."""
        planned, states = fresh(), []
        for j, t in enumerate(planned.timesteps):
            if hasattr(planned, "scale_model_input"):
                planned.scale_model_input(x, t)  # some insist that it was called
            x = planned.step(e[:, [j]].as_subclass(Exact), t, x.as_subclass(Exact), return_dict=False)[0]
            states.append(x.as_subclass(torch.Tensor)[:, 0])
        return torch.stack(states).numpy()

    try:
        with torch.random.fork_rng(devices=[]):
            units = torch.eye(1 + len(fresh().timesteps), dtype=torch.float64)
            rows = run(units[:, :1], units[:, 1:])
            drawn = 3 * torch.randn(4, len(units), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
            found, again = (run(drawn[:, :1], drawn[:, 1:]) for _ in range(2))
    except (TypeError, RuntimeError, IndexError, AttributeError, NotImplementedError, ImportError) as error:
        raise ValueError(f"{name} cannot be traced: its step fails on plain tensors ({error})") from error
    table = Table(rows[:, 0].copy(), rows[:, 1:].copy())
    if not math.isfinite(table.size):
        raise ValueError(f"{name} gives no finite numbers on this grid; use another solver or grid")
    if not np.array_equal(found, again, equal_nan=True):
        raise ValueError(f"{name} draws noise at every step; a table takes a deterministic scheduler such as DDIM")
    if not np.allclose(found, rows @ drawn.numpy().T, rtol=1e-6, atol=1e-6 * np.abs(found).max()):
        raise ValueError(f"{name} is not linear in the state and the outputs (it clips or rescales); use another")
    return table


def check_linear(scheduler: Any) -> None:
    """ValueError naming what makes the scheduler's steps other than linear, deterministic, and one call each."""
    name, config = type(scheduler).__name__, scheduler.config
    if scheduler.order != 1:
        raise ValueError(
            f"{name} calls the denoiser {scheduler.order} times a step; a table takes one call a step, as "
            "DPMSolverMultistepScheduler does"
        )
    if getattr(config, "thresholding", False):
        raise ValueError(f"{name} thresholds x0, which is not linear; set its thresholding false")
    if getattr(config, "clip_sample", False):
        raise ValueError(f"{name} clips x0, which is not linear; set its clip_sample false")
    if str(getattr(config, "algorithm_type", "")).startswith("sde"):
        raise ValueError(f"{name} draws noise; set its algorithm_type dpmsolver++")
    if getattr(config, "stochastic_sampling", False):
        raise ValueError(f"{name} draws noise; set its stochastic_sampling false")


# Compiling


def program(rules: Sequence[Rule], noise: Noise, sampler: Mapping[str, Any], largest: float = math.inf) -> Table:
    """The table of one rule a step on the sampler part's grid.

    Orders are lowered to the number of past outputs, and to 1 on a step to or from an infinite log-SNR. Where a
    row exceeds `largest`, its order is lowered too, and then that of all steps.
    """
    places = _places(noise, _text(sampler))
    if len(rules) != places.steps:
        raise ValueError(f"there are {len(rules)} rules; {places.steps} steps need {places.steps}")
    for cap in range(MAX_ORDER, 0, -1):
        table = places.table(rules, cap, largest)
        if table.size <= largest:
            break
    return table


def _text(sampler: Mapping[str, Any]) -> str:
    return json.dumps({k: v for k, v in sampler.items() if k != "coefficients"}, sort_keys=True)


@lru_cache(maxsize=64)
def _scheduler(class_name: str, config_json: str) -> Any:
    cls: Any = scheduler_class(class_name)
    return cls.from_config(json.loads(config_json))


def built(sampler: Mapping[str, Any]) -> Any:
    """The scheduler of a sampler part, to read from and never to run."""
    return _scheduler(sampler["class"], json.dumps(sampler.get("config", {}), sort_keys=True))


@lru_cache(maxsize=256)
def _places(noise: Noise, text: str) -> "_Places":
    return _Places(noise, json.loads(text))


class _Places:
    """Where each step begins and ends, and the weights of every rule there, computed once.

    `place` is log-SNR, x0 = p x + q e and noise = r x + s e are the conversions of a denoiser's output.
    """

    def __init__(self, noise: Noise, sampler: Mapping[str, Any]) -> None:
        timesteps, sigmas = sampler.get("timesteps"), sampler.get("sigmas")
        if timesteps is None:
            raise ValueError("the sampler part has no timesteps; a table belongs to its grid")
        self.noise, self.steps = noise, len(timesteps)
        even = None
        if sigmas is not None:
            starts, ends = np.array(sigmas[:-1], dtype=float), np.array(sigmas[1:], dtype=float)
        else:
            scheduler = built(sampler)
            if getattr(scheduler, "final_alpha_cumprod", None) is None:
                raise ValueError(
                    f"the sampler part has no sigmas; {sampler['class']} needs {self.steps + 1} for {self.steps} steps"
                )
            kept = float(scheduler.final_alpha_cumprod)
            starts = noise.sigma(timesteps)
            ends = np.append(starts[1:], math.sqrt((1 - kept) / kept))
            even = self._even(scheduler, [int(t) for t in timesteps])
        if noise.kind == "flow" and not (starts <= 1).all():
            raise ValueError(
                f"sampler.sigmas reach {starts.max():g}; those of a flow lie in 0..1: use_flow_sigmas true"
            )
        alpha, sigma = noise.scales(starts)
        self.alpha_end, self.sigma_end = noise.scales(ends)
        self.place, self.place_end = noise.logsnr(starts), noise.logsnr(ends)
        self.conversions = self._conversions(starts)
        if not np.isfinite(self.conversions[:, :2]).all():
            raise ValueError(
                f"{sampler['class']} starts with nothing but noise, where a denoiser of prediction_type "
                f"{noise.prediction} says nothing; use v_prediction, or a grid that starts later"
            )
        with np.errstate(divide="ignore", invalid="ignore"):
            keep, keep_noise = self.sigma_end / sigma, self.alpha_end / alpha
        # Steps of order 1 as (state, value). Both forms say the same where the value came of the same state.
        self.first = {
            "data": np.stack([keep, self.alpha_end - alpha * keep], 1),
            "noise": np.stack([keep_noise, self.sigma_end - sigma * keep_noise], 1),
        }
        # DDIM and PNDM go from where they are to an even gap on, which need not be the next step.
        self.even = self._transfers(*(even or (starts, ends)))
        self.again = [0 < i < self.steps - 1 and t == timesteps[i + 1] for i, t in enumerate(timesteps)]  # PNDM's
        self.past, self.past_even = self._past(np.isfinite(self.place)), self._past(np.full(self.steps, True))
        self.weights: dict[tuple[Any, ...], np.ndarray] = {}

    @staticmethod
    def _even(scheduler: Any, timesteps: list[int]) -> tuple[np.ndarray, np.ndarray] | None:
        """Starts and ends on a class's own grid, as DDIM and PNDM compute them; None on another grid."""
        probe = copy.deepcopy(scheduler)
        repeats = type(scheduler).__name__ == "PNDMScheduler" and len(timesteps) > 1
        probe.set_timesteps(len(timesteps) - repeats)
        if probe.timesteps.tolist() != timesteps:
            return None
        gap = probe.config.num_train_timesteps // probe.num_inference_steps
        begin, end = np.array(timesteps), np.array(timesteps) - gap
        if repeats:  # the second call at a timestep makes the first step again
            begin[1], end[1] = timesteps[1] + gap, timesteps[1]
        kept = scheduler.alphas_cumprod.double().numpy()
        last = float(scheduler.final_alpha_cumprod)

        def sigmas(where: np.ndarray) -> np.ndarray:
            levels = np.where(where >= 0, kept[where], last)
            with np.errstate(divide="ignore"):
                return np.sqrt((1 - levels) / levels)

        return sigmas(begin), sigmas(end)

    def _conversions(self, stored: np.ndarray) -> np.ndarray:
        """[T, 4]: p, q, r, s at sigmas as files store them."""
        (alpha, sigma), kind, prediction = self.noise.scales(stored), self.noise.kind, self.noise.prediction
        one, zero = np.ones_like(alpha), np.zeros_like(alpha)
        with np.errstate(divide="ignore", invalid="ignore"):
            if prediction == "epsilon":
                columns = (1 / alpha, -sigma / alpha, zero, one)
            elif prediction in ("sample", "original_sample"):
                columns = (zero, one, 1 / sigma, -alpha / sigma)
            elif prediction == "v_prediction" and kind == "vp":
                columns = (alpha, -sigma, sigma, alpha)
            elif prediction == "v_prediction" and kind == "ve":
                p, q = 1 / (1 + sigma**2), -sigma / np.sqrt(1 + sigma**2)
                columns = (p, q, (1 - p) / sigma, -q / sigma)
            elif prediction == "flow" and kind == "flow":
                columns = (one, -sigma, one, alpha)
            else:
                raise ValueError(
                    f"prediction {prediction!r} on {kind} scales is unknown; a table takes epsilon, sample, "
                    "v_prediction, and flow_prediction on flow sigmas"
                )
        return np.stack(columns, axis=1)

    def _transfers(self, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """[T, 2]: DDIM's step as (state, output)."""
        (alpha, sigma), (alpha_end, sigma_end) = self.noise.scales(starts), self.noise.scales(ends)
        p, q, _, _ = self._conversions(starts).T
        with np.errstate(divide="ignore", invalid="ignore"):
            keep = sigma_end / sigma
        take = alpha_end - alpha * keep
        return np.stack([keep + take * p, take * q], axis=1)

    def _past(self, usable: np.ndarray) -> list[list[int]]:
        """At every step, the steps whose outputs may be used, the latest first; one of each place."""
        past: list[list[int]] = []
        kept: list[int] = []
        for i, place in enumerate(self.place):
            if kept and self.place[kept[0]] == place:
                kept = kept[1:]
            if usable[i]:
                kept = [i, *kept][:MAX_ORDER]
            past.append(kept)
        return past

    # The weights of one rule at one step

    def predictor(self, i: int, order: int, form: str, stencil: str) -> np.ndarray:
        """Weights of m[j] - m[i] for the past steps j after i."""
        key = (i, order, form, stencil)
        if key not in self.weights:
            nodes = self.place[self.past[i][:order]] - self.place[i]
            span = self.place_end[i] - self.place[i]
            moments = _moments(span, order, form)
            if order == 2 and stencil != "exact":
                moments[1] = (span if stencil == "bh1" else moments[0]) * span / 2
            elif order == 3 and stencil == "midpoint":
                moments[2] /= 2
            self.weights[key] = self._scaled(i, form, _interpolated(nodes, moments)[1:])
        return self.weights[key]

    def corrector(self, i: int, order: int, form: str, stencil: str) -> np.ndarray:
        """Weights of m[i + 1] - m[i], then as `predictor`: what the next evaluation adds to step i."""
        key = (i, order, form, stencil, "corrector")
        if key not in self.weights:
            span = self.place_end[i] - self.place[i]
            new = self.place[i + 1] - self.place[i]
            moments = _moments(span, order + 1, form)
            if order == 1 and stencil in ("midpoint", "bh1", "bh2"):  # diffusers: half of B(h)
                moments[1] = (span if stencil == "bh1" else moments[0]) * span / 2
            nodes = np.append(self.place[self.past[i][:order]] - self.place[i], new)
            found = _interpolated(nodes, moments)
            self.weights[key] = self._scaled(i, form, np.append(found[-1:], found[1:-1]))
        return self.weights[key]

    def _scaled(self, i: int, form: str, weights: np.ndarray) -> np.ndarray:
        return weights * (self.alpha_end[i] if form == "data" else -self.sigma_end[i])

    def highest(self, i: int, stencil: str) -> int:
        if stencil == "even":
            return len(self.past_even[i])
        if not (np.isfinite(self.place[i]) and np.isfinite(self.place_end[i])):
            return 1
        return max(1, len(self.past[i]))

    # The table

    def table(self, rules: Sequence[Rule], cap: int, largest: float) -> Table:
        """Vector algebra on rows over x[0], e[0], e[1], ..."""
        size = self.steps + 1
        units = np.eye(size)
        rows = np.zeros((self.steps, size))
        data, noises = np.zeros((self.steps, size)), np.zeros((self.steps, size))
        values = {"data": data, "noise": noises}
        at = units[0]  # the state that step i starts from, corrected or not
        seen = units[0]  # the state that the denoiser saw at step i
        before, plain, last = at, at, None  # of the step before: its start, its transfer, and (order, rule)
        for i, rule in enumerate(rules):
            p, q, r, s = self.conversions[i]
            data[i], noises[i] = p * seen + q * units[i + 1], r * seen + s * units[i + 1]
            if last is not None and last[1].corrector and self._moves(i - 1):
                at = self._corrected(i - 1, last[0], last[1], plain, values[last[1].form], largest, at)
            order = min(rule.order, cap, self.highest(i, rule.stencil))
            while True:
                plain, row = self._step(i, order, rule, at, before, values, units)
                if order == 1 or np.abs(row).max() <= largest:
                    break
                order -= 1
            before, last = at, (order, rule)
            at = seen = rows[i] = row
        return Table(rows[:, 0].copy(), rows[:, 1:].copy())

    def _moves(self, i: int) -> bool:
        """Whether step i and the next evaluation are apart, and at finite places."""
        return bool(np.isfinite(self.place[i : i + 2]).all() and self.place[i] != self.place[i + 1])

    def _step(
        self,
        i: int,
        order: int,
        rule: Rule,
        at: np.ndarray,
        before: np.ndarray,
        values: Mapping[str, np.ndarray],
        units: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The transfer of order 1, and what the rule makes of it."""
        form = rule.form if np.isfinite(self.place[i]) else "data"
        keep, take = self.first[form][i]
        plain = keep * at + take * values[form][i]
        if rule.stencil == "even":
            state, output = self.even[i]
            if self.again[i]:  # the step before once more, with the mean of both outputs
                return plain, state * before + output * (units[i] + units[i + 1]) / 2
            row = state * at
            row[[j + 1 for j in self.past_even[i][:order]]] += np.multiply(EVEN[order - 1], output)
            return plain, row
        if order == 1:
            return plain, plain
        m = values[rule.form]
        return plain, plain + self.predictor(i, order, rule.form, rule.stencil) @ (m[self.past[i][1:order]] - m[i])

    def _corrected(
        self, i: int, order: int, rule: Rule, plain: np.ndarray, m: np.ndarray, largest: float, at: np.ndarray
    ) -> np.ndarray:
        order = min(order, len(self.past[i]))
        steps = [i + 1, *self.past[i][1:order]]
        row = plain + self.corrector(i, order, rule.form, rule.stencil) @ (m[steps] - m[i])
        return row if np.abs(row).max() <= largest else at


def _moments(span: float, count: int, form: str) -> np.ndarray:
    """Integrals of u^k exp(-(span - u)) over 0..span (data; noise: of the rising exponential), k < count."""
    phi = _phi(count, -span if form == "data" else span)
    return np.array([span ** (k + 1) * math.factorial(k) * phi[k] for k in range(count)])


def _phi(count: int, z: float) -> list[float]:
    """phi_1(z) .. phi_count(z), where phi_0 = exp and phi_{k+1} = (phi_k - 1/k!) / z."""
    if abs(z) > 1.5:
        found = [math.exp(z)]
        for k in range(count):
            found.append((found[-1] - 1 / math.factorial(k)) / z)
        return found[1:]
    term = total = 1 / math.factorial(count)  # the series of the last, and from there back: no cancelling
    for n in range(1, 22):
        term *= z / (count + n)
        total += term
    found = [total]
    for k in range(count - 1, 0, -1):
        found.append(z * found[-1] + 1 / math.factorial(k))
    return found[::-1]


def _interpolated(nodes: np.ndarray, moments: np.ndarray) -> np.ndarray:
    """Weights of the values at `nodes` that integrate every polynomial through them as `moments` says."""
    scale = np.abs(nodes).max() or 1.0
    powers = np.arange(len(nodes))
    return np.linalg.solve((nodes / scale) ** powers[:, None], moments / scale**powers)


# diffusers' own solvers as rules


def own_rules(sampler: Mapping[str, Any]) -> tuple[Rule, ...]:
    """The rules of the sampler part's own class and config; ValueError where rules cannot say them."""
    return _own_rules(_text(sampler), sampler.get("coefficients") is not None)


@lru_cache(maxsize=256)
def _own_rules(text: str, table: bool) -> tuple[Rule, ...]:
    sampler = json.loads(text)
    scheduler, name = built(sampler), sampler["class"]
    check_linear(scheduler)
    if table:
        raise ValueError("the sampler part is a table already; leave out its coefficients")
    if sampler.get("timesteps") is None:
        raise ValueError("the sampler part has no timesteps; rules are one for each step")
    config, count = scheduler.config, len(sampler["timesteps"])
    if config.get("prediction_type") == "flow_prediction" and not config.get("use_flow_sigmas", True):
        raise ValueError(f"{name} predicts a flow on other than flow sigmas; set its use_flow_sigmas true")
    if name == "PNDMScheduler" and not config.skip_prk_steps:
        raise ValueError("PNDMScheduler begins with Runge-Kutta steps, which are no rules; set its skip_prk_steps true")
    if name in ("DDIMScheduler", "PNDMScheduler"):
        return (Rule(1 if name == "DDIMScheduler" else 4, "noise", "even"),) * count
    if name in ("EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler"):
        return (Rule(),) * count
    if name not in ORDERED:
        raise ValueError(f"{name} has no rules; trace it, or use DPMSolverMultistepScheduler")
    if config.get("solver_p") is not None:
        raise ValueError(f"{name} takes its predictor from solver_p, which is no rule; set its solver_p null")
    orders = [int(k) for k in sampler["order"]] if sampler.get("order") else _orders(name, config, count)
    if name == "DEISMultistepScheduler":
        return tuple(Rule(k, "noise", "exact") for k in orders)
    if name == "UniPCMultistepScheduler":
        form = "data" if config.predict_x0 else "noise"
        return tuple(Rule(k, form, config.solver_type, i not in config.disable_corrector) for i, k in enumerate(orders))
    form = "data" if config.algorithm_type == "dpmsolver++" else "noise"
    second = "exact" if config.solver_type == "heun" else "midpoint"
    return tuple(Rule(k, form, second if k == 2 else "midpoint") for k in orders)


def _orders(name: str, config: Any, count: int) -> list[int]:
    """Order of every step as diffusers lowers them at both ends."""
    highest = min(config.solver_order, MAX_ORDER if name == "UniPCMultistepScheduler" else 3)
    orders = [min(highest, i + 1) for i in range(count)]
    if name == "UniPCMultistepScheduler":
        return [min(k, count - i) if config.lower_order_final else k for i, k in enumerate(orders)]
    short = config.lower_order_final and count < 15
    to_zero = name == "DPMSolverMultistepScheduler" and (config.euler_at_final or config.final_sigmas_type == "zero")
    if short and count > 1:
        orders[-2] = min(orders[-2], 2)
    if short or to_zero:
        orders[-1] = 1
    return orders
