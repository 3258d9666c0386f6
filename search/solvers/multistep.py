"""Compile multistep rules on a grid of noise levels to a table."""

import copy
import json
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from search.schedule.noise import Noise
from search.schedule.schedulers import scheduler_of_part
from search.solvers.integrals import integral_moments, interpolated
from search.solvers.table import EVEN, MAX_ORDER, SolverRule, SolverTable


def compile_rules(
    rules: Sequence[SolverRule], noise: Noise, sampler: Mapping[str, Any], largest: float = math.inf
) -> SolverTable:
    """The table of one rule per step on the sampler part's grid.

    Orders are lowered to the number of past outputs, and to 1 on a step to or from an infinite log-SNR. Where a
    row exceeds `largest`, its order is lowered too, and then that of all steps.

    Args:
        rules: One for each of the T steps.
        noise: The noise schedule of the sampler.
        sampler: The sampler part of a schedule file, with its timesteps.
        largest: The largest coefficient that is allowed.

    Returns:
        The coefficients of the state and of the denoiser's outputs at each step.

    Raises:
        ValueError: The number of rules is not T, or there is no table for this grid and kind of output.
    """
    places = _places(noise, sampler_text(sampler))
    if len(rules) != places.steps:
        raise ValueError(f"there are {len(rules)} rules; {places.steps} steps need {places.steps}")
    for cap in range(MAX_ORDER, 0, -1):
        table = places.table(rules, cap, largest)
        if table.size <= largest:
            break
    return table


def sampler_text(sampler: Mapping[str, Any]) -> str:
    """A sampler part without its table, as text that can be a key."""
    return json.dumps({k: v for k, v in sampler.items() if k != "coefficients"}, sort_keys=True)


@lru_cache(maxsize=256)
def _places(noise: Noise, text: str) -> "StepWeights":
    return StepWeights(noise, json.loads(text))


class StepWeights:
    """The log-SNR at which each step begins and ends, and the weights of every rule there, computed once.

    `place` is log-SNR, x0 = p x + q e and noise = r x + s e are the conversions of a denoiser's output.

    Raises:
        ValueError: The grid has no timesteps or sigmas, or the denoiser's output says nothing at its first step.
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
            scheduler = scheduler_of_part(sampler)
            if getattr(scheduler, "final_alpha_cumprod", None) is None:
                raise ValueError(
                    f"the sampler part has no sigmas; {sampler['class']} needs {self.steps + 1} for {self.steps} steps"
                )
            last_alpha = float(scheduler.final_alpha_cumprod)
            starts = noise.sigma(timesteps)
            ends = np.append(starts[1:], math.sqrt((1 - last_alpha) / last_alpha))
            even = self._even(scheduler, [int(t) for t in timesteps])
        if noise.kind == "flow" and not (starts <= 1).all():
            raise ValueError(
                f"sampler.sigmas reach {starts.max():g}; those of a flow lie in 0..1: use_flow_sigmas true"
            )
        alpha, sigma = noise.scales(starts)
        self.scales_start = np.stack([alpha, sigma])  # [2, T]
        self.alpha_end, self.sigma_end = noise.scales(ends)
        self.place, self.place_end = noise.logsnr(starts), noise.logsnr(ends)
        self.conversions = self._conversions(starts)
        if not np.isfinite(self.conversions[:, :2]).all():
            raise ValueError(
                f"{sampler['class']} starts with pure noise, where a denoiser of prediction_type "
                f"{noise.prediction} gives no information; use v_prediction, or a grid that starts later"
            )
        with np.errstate(divide="ignore", invalid="ignore"):
            keep, keep_noise = self.sigma_end / sigma, self.alpha_end / alpha
        # Steps of order 1 as (state, value). Both forms agree where the value belongs to the same state.
        self.first = {
            "data": np.stack([keep, self.alpha_end - alpha * keep], 1),
            "noise": np.stack([keep_noise, self.sigma_end - sigma * keep_noise], 1),
        }
        # DDIM and PNDM step by an even gap, which can end elsewhere than at the next timestep.
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
        alphas = scheduler.alphas_cumprod.double().numpy()
        last = float(scheduler.final_alpha_cumprod)

        def sigmas(where: np.ndarray) -> np.ndarray:
            levels = np.where(where >= 0, alphas[where], last)
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
        """At every step, the steps whose outputs can be used, the latest first; one of each log-SNR."""
        past: list[list[int]] = []
        usable_steps: list[int] = []
        for i, place in enumerate(self.place):
            if usable_steps and self.place[usable_steps[0]] == place:
                usable_steps = usable_steps[1:]
            if usable[i]:
                usable_steps = [i, *usable_steps][:MAX_ORDER]
            past.append(usable_steps)
        return past

    # The weights of one rule at one step

    def predictor(self, i: int, steps: list[int], rule: SolverRule) -> np.ndarray:
        """Weights of m[j] - m[steps[0]] for the other steps j, on the way from the place of steps[0]."""
        order, form, stencil = len(steps), rule.form, rule.stencil
        if (key := (i, steps[0], order, form, stencil, rule.relaxation)) not in self.weights:
            nodes = self.place[steps] - self.place[steps[0]]
            span = self.place_end[i] - self.place[steps[0]]
            moments = integral_moments(span, order, form)
            if order == 2 and stencil != "exact":
                moments[1] = (span if stencil == "bh1" else moments[0]) * span / 2
            elif order == 3 and stencil == "midpoint":
                moments[2] /= 2
            moments[1:2] *= 1 + rule.relaxation * span
            self.weights[key] = self._scaled(i, form, interpolated(nodes, moments)[1:])
        return self.weights[key]

    def corrector(self, i: int, order: int, form: str, stencil: str) -> np.ndarray:
        """Weights of m[i + 1] - m[i], then as `predictor`: what the next evaluation adds to step i."""
        key = (i, order, form, stencil, "corrector")
        if key not in self.weights:
            span = self.place_end[i] - self.place[i]
            new = self.place[i + 1] - self.place[i]
            moments = integral_moments(span, order + 1, form)
            if order == 1 and stencil in ("midpoint", "bh1", "bh2"):  # diffusers: half of B(h)
                moments[1] = (span if stencil == "bh1" else moments[0]) * span / 2
            nodes = np.append(self.place[self.past[i][:order]] - self.place[i], new)
            weights = interpolated(nodes, moments)
            self.weights[key] = self._scaled(i, form, np.append(weights[-1:], weights[1:-1]))
        return self.weights[key]

    def _scaled(self, i: int, form: str, weights: np.ndarray) -> np.ndarray:
        factor = float(self.alpha_end[i] if form == "data" else -self.sigma_end[i])
        return weights * factor

    def highest(self, i: int, stencil: str) -> int:
        """The highest order of step i."""
        if stencil == "even":
            return len(self.past_even[i])
        if not (np.isfinite(self.place[i]) and np.isfinite(self.place_end[i])):
            return 1
        return max(1, len(self.past[i]))

    # The table

    def table(self, rules: Sequence[SolverRule], cap: int, largest: float) -> SolverTable:
        """Vector algebra on rows over x[0], e[0], e[1], ..."""
        size = self.steps + 1
        units = np.eye(size)
        rows = np.zeros((self.steps, size))
        data, noises = np.zeros((self.steps, size)), np.zeros((self.steps, size))
        outputs = np.zeros((self.steps, size))  # e[0] .. as they are used
        values = {"data": data, "noise": noises, "output": outputs}
        at = units[0]  # the state that step i starts from, corrected or not
        seen = units[0]  # the state that the denoiser saw at step i
        starts: list[np.ndarray] = []  # the states that steps started from
        plain, last = at, None  # of the step before: its transfer, and (order, rule)
        for i, rule in enumerate(rules):
            p, q, r, s = self.conversions[i]
            data[i], noises[i], outputs[i] = p * seen + q * units[i + 1], r * seen + s * units[i + 1], units[i + 1]
            if i and rule.early and np.isfinite(self.place[[0, i]]).all():
                self._move_from_first(i, rule.early, seen, values)
            if last is not None and last[1].corrector and self._moves(i - 1):
                at = self._corrected(i - 1, last[0], last[1], plain, values[last[1].form], largest, at)
            starts.append(at)
            order = min(rule.order, cap, self.highest(i, rule.stencil))
            while True:
                plain, row = self._step(i, order, rule, starts, values)
                if order == 1 or np.abs(row).max() <= largest:
                    break
                order -= 1
            last = (order, rule)
            at = seen = rows[i] = row
        return SolverTable(rows[:, 0].copy(), rows[:, 1:].copy())

    def _move_from_first(self, i: int, early: float, seen: np.ndarray, values: Mapping[str, np.ndarray]) -> None:
        """Replace what the denoiser gave at step i by what `SolverRule.early` makes of it."""
        for name in ("noise", "output"):
            values[name][i] = (1 + early) * values[name][i] - early * values[name][0]
        values["data"][i] = (seen - self.scales_start[1, i] * values["noise"][i]) / self.scales_start[0, i]

    def _moves(self, i: int) -> bool:
        """Whether step i and the next evaluation are apart, and at finite places."""
        return bool(np.isfinite(self.place[i : i + 2]).all() and self.place[i] != self.place[i + 1])

    def _step(
        self,
        i: int,
        order: int,
        rule: SolverRule,
        starts: Sequence[np.ndarray],
        values: Mapping[str, np.ndarray],
    ) -> tuple[np.ndarray, np.ndarray]:
        """The transfer of order 1, and what the rule makes of it."""
        form = rule.form if np.isfinite(self.place[i]) else "data"
        keep, take = self.first[form][i]
        plain = keep * starts[-1] + take * values[form][i]
        if rule.stencil == "even":
            (state, output), outputs = self.even[i], values["output"]
            if self.again[i]:  # the step before once more, with the mean of both outputs
                return plain, state * starts[-2] + output * (outputs[i - 1] + outputs[i]) / 2
            return plain, state * starts[-1] + np.multiply(EVEN[order - 1], output) @ outputs[self.past_even[i][:order]]
        m, steps, row = values[rule.form], self.past[i][:order], plain
        back = min(rule.back, i)
        if back and np.isfinite(self.place[i - back]) and np.isfinite(self.place_end[i]):
            steps = [i - back, *range(i, i - back, -1)][:order]
            row = self._from_earlier(i, i - back, rule.form, starts, m)
        return plain, row + self.predictor(i, steps, rule) @ (m[steps[1:]] - m[steps[0]]) if order > 1 else row

    def _from_earlier(self, i: int, start: int, form: str, starts: Sequence[np.ndarray], m: np.ndarray) -> np.ndarray:
        """From the state of an earlier step to where step i ends, by the output at that step."""
        scales, ends, kept = self.scales_start[:, start], (self.alpha_end[i], self.sigma_end[i]), int(form == "data")
        keep = ends[kept] / scales[kept]
        row: np.ndarray = keep * starts[start] + (ends[1 - kept] - scales[1 - kept] * keep) * m[start]
        return row

    def _corrected(
        self, i: int, order: int, rule: SolverRule, plain: np.ndarray, m: np.ndarray, largest: float, at: np.ndarray
    ) -> np.ndarray:
        order = min(order, len(self.past[i]))
        steps = [i + 1, *self.past[i][1:order]]
        row = plain + self.corrector(i, order, rule.form, rule.stencil) @ (m[steps] - m[i])
        return row if np.abs(row).max() <= largest else at
