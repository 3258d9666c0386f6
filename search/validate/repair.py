"""Carry a schedule over to a loaded model, and find the steps that are worth computing again there."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from search.evaluate.evaluator import Evaluator
from search.evaluate.execute.jobs import Job
from search.evaluate.fit.corrections import Corrector
from search.evaluate.memo import Memo
from search.models.base import Model
from search.objectives.drift import Drift
from search.objectives.macs import Macs
from search.objectives.psnr import Psnr
from search.objectives.ssim import Ssim
from search.results.compare import mean_interval
from search.results.pick import Condition
from search.schedule import Schedule
from search.schedule.errors import ScheduleError
from search.schedule.noise import Noise
from search.schedule.schedulers import scheduler_class, scheduler_grid
from search.validate.criteria import decide
from search.validate.environment import current_environment
from search.validate.reindex import Reindexed, reindex, saving_steps, with_steps_computed
from search.validate.verdict import Verdict

MOST_REPAIRS = 4  # that are verified on held-out prompts
SEARCHING = 10  # runs to find out how many steps are enough, including the first
SIZE = ("height", "width", "num_frames")
OnMessage = Callable[[str], None]


def carry_over(schedule: Schedule, model: Model) -> Reindexed:
    """The schedule by the rule of `reindex` on a model as it is loaded; nothing is run.

    Raises:
        ScheduleError: The schedule cannot be carried over.
    """
    target, sampler = model.target, schedule.sampler
    old: Mapping[str, Any] = target.sampler
    new = old
    if schedule.steps is not None:
        share = target.steps / teacher_steps(schedule)
        count = 1 if schedule.steps == 1 else max(2, round(schedule.steps * share))
        old = sampler if sampler and sampler.get("timesteps") else model.shorter(schedule.steps)
        new = respaced_sampler(old, count, model, schedule)
    moved = reindex(schedule, old, new, target.guidance, target.model)
    made: dict[str, Any] = {"model": model.name, "call": dict(model.arguments)} | current_environment(model)
    if moved.schedule != schedule:
        made["transferred"] = {"from": schedule.digest, "steps": schedule.steps}
    return replace(moved, schedule=moved.schedule.with_made({**schedule.made, **made}))


def teacher_steps(schedule: Schedule) -> int:
    """Steps of the full run that a schedule replaces: those of its search, or else its own."""
    steps = schedule.call_of_search.get("num_inference_steps")
    return steps if type(steps) is int and steps > 0 else schedule.steps or 1


def respaced_sampler(old: Mapping[str, Any], count: int, model: Model, schedule: Schedule) -> Mapping[str, Any]:
    """A sampler part of `count` steps in place of `old`: the scheduler's spacing, or a searched one's shape."""
    steps, sampler = len(old["timesteps"]), model.target.sampler
    same = all(old.get(name) == sampler.get(name) for name in ("class", "config"))
    plain = _plain(old, steps, model, same)
    call = schedule.call_of_search
    resized = any(call.get(k, v) != v for k, v in model.arguments.items() if k in SIZE)
    if sampler["config"].get("use_dynamic_shifting") and resized:  # the scheduler's own spacing depends on the size
        if steps != teacher_steps(schedule):
            raise ScheduleError(
                f"this schedule's {steps} timesteps were made for {call}, and this pipeline's shift depends on the "
                "size: they cannot be carried over; search at this size"
            )
        plain = list(old["timesteps"])
    if plain is not None and np.allclose(plain, old["timesteps"], rtol=1e-5):
        return model.shorter(count)
    if same and count == steps:
        return old
    timesteps = np.interp(np.linspace(0, 1, count), np.linspace(0, 1, steps), old["timesteps"])
    part = {k: v for k, v in sampler.items() if k in ("class", "config")}
    if not sampler.get("sigmas"):
        return part | {"timesteps": [float(t) for t in np.round(timesteps)]}
    sigmas = [*(float(s) for s in Noise.of(sampler).sigma(timesteps)), sampler["sigmas"][-1]]
    return part | {"timesteps": timesteps.tolist(), "sigmas": sigmas}


def _plain(old: Mapping[str, Any], steps: int, model: Model, same: bool) -> list[float] | None:
    """The timesteps that a sampler part's class makes by itself; None if it makes none."""
    if same:
        timesteps: list[float] = model.shorter(steps)["timesteps"]
        return timesteps
    try:
        scheduler: Any = scheduler_class(old["class"])
        return scheduler_grid(scheduler.from_config(old["config"]), steps)[0]
    except (ScheduleError, ValueError, TypeError):
        return None


class RepairSearch:
    """Work on the calibration prompts: fit again, and find the steps that are worth computing again."""

    def __init__(
        self,
        source: Schedule,
        moved: Reindexed,
        model: Model,
        prompts: Sequence[str],
        limits: Sequence[Condition],
        refit: bool,
        seed: int,
    ) -> None:
        kinds = {quality.key: quality for quality in (Drift(), Psnr(), Ssim())}
        limited = {limit.name: kinds[limit.name] for limit in limits if limit.name in kinds}
        objectives = {"drift": kinds["drift"], **limited, "macs": Macs()}
        seeds = [seed + i for i in range(len(prompts))]
        self.evaluator = Evaluator(model, prompts, seeds, objectives, model.costs(), Memo(Path(":memory:")))
        self.source, self.model, self.plain = source, model, moved.schedule
        self.limits = [limit for limit in limits if limit.name in kinds]
        self.refit, self.runs = refit, 0
        part = source.sampler or {}
        why = self.evaluator.why_no_solver_fit() if "coefficients" in part else ""
        self.refits_solver = refit and "coefficients" in part and not why
        self.refits_corrections = refit and "corrections" in source.to_dict()
        self.notes = [_note(text, self.refits_solver, self.refits_corrections, why) for text in moved.lost]

    @property
    def before(self) -> float:
        """Share of a full run's MACs that the old schedule executes, from its file or from the cost tables."""
        if "macs" in self.source.scores:
            return float(self.source.scores["macs"]["value"])
        costs = self.evaluator.costs
        return costs.macs(self.source) / (costs.call_macs * teacher_steps(self.source))

    def share(self, schedule: Schedule) -> float:
        """Share of a full run's MACs that a schedule executes here."""
        return self.evaluator.costs_of(schedule).macs(schedule) / self.evaluator.costs.teacher_macs

    def fitted(self, steps: Collection[int] | None = None) -> Schedule:
        """The carried schedule with these steps computed, fitted again.

        Without steps a solver that could be carried over, because the grid is the same, stays as it is.
        """
        if steps is None and "coefficients" in (self.plain.sampler or {}):
            return self.plain
        schedule = with_steps_computed(self._bare, steps) if steps else self._bare
        if self.refits_corrections and (steps or not schedule.corrections):
            schedule = Corrector(self.model, *self.evaluator.inputs[0]).fit(schedule)
        fitted = self.evaluator.fit(schedule) if self.refits_solver else schedule
        return fitted.with_made(self.plain.made)

    def repairs(self, most: int, on_message: OnMessage) -> Iterator[list[int]]:
        """Sets of steps to compute again, the smallest that should be enough first; runs at most `most` schedules."""
        if self.refits_solver and "coefficients" in (self.plain.sampler or {}):
            yield []  # no step computed again, but the solver fitted here
        units = self._units((most - 2 * SEARCHING) // 2)
        order, count = self._shortest(self._by_gain(units, on_message), on_message)
        if 2 * count > len(order):  # gains of single steps say little if most are needed: use their errors
            by_error, fewer = self._shortest(self._by_error(units, on_message), on_message)
            order, count = (by_error, fewer) if fewer < count else (order, count)
        for _ in range(MOST_REPAIRS if units else 0):
            steps = [step for unit in order[:count] for step in unit]
            if self.share(with_steps_computed(self._bare, steps)) >= 1:
                return  # that is the full run
            yield steps
            count = min(count + max(1, count // 2), len(order))

    def scores(self, schedule: Schedule, verdict: Verdict) -> dict[str, Any]:
        """The scores of a verdict in the form of a schedule's file."""
        scores: dict[str, Any] = {"macs": {"value": self.share(schedule), "split": "held_out"}}
        for name, score in verdict.scores.items():
            split = "device" if name == "speedup" else "held_out"
            scores[name] = {"value": score.value, "ci": [score.low, score.high], "split": split}
        return scores

    @property
    def _bare(self) -> Schedule:
        """The carried schedule, without the solver's table if it is fitted again."""
        part = self.plain.sampler or {}
        if not self.refits_solver or "coefficients" not in part:
            return self.plain
        return self.plain.with_sampler({k: v for k, v in part.items() if k != "coefficients"})

    def _units(self, most: int) -> list[list[int]]:
        """The steps that leave something out; neighbours form one unit if there are more than `most` steps."""
        steps = saving_steps(self._bare)
        parts = np.array_split(steps, max(1, min(len(steps), most)))
        return [part.tolist() for part in parts if len(part)]

    def _by_gain(self, units: Sequence[list[int]], on_message: OnMessage) -> list[list[int]]:
        """The units by the drift that each removes per MAC if it alone is computed again, the best first."""
        on_message(f"each of {len(units)} steps computed alone")
        base, *alone = self._run([[], *units])
        return _sorted(units, [_drift_per_mac(scores, base) for scores in alone])

    def _by_error(self, units: Sequence[list[int]], on_message: OnMessage) -> list[list[int]]:
        """The units by the drift that each adds per saved MAC if it alone is left out, the worst first."""
        on_message(f"each of {len(units)} steps left out alone")
        sets = [[step for other in units if other is not unit for step in other] for unit in units]
        full, *alone = self._run([[step for unit in units for step in unit], *sets])
        return _sorted(units, [_drift_per_mac(full, scores) for scores in alone])

    def _shortest(self, order: list[list[int]], on_message: OnMessage) -> tuple[list[list[int]], int]:
        """The order, and how many of its units are enough on the calibration prompts; all, if no fewer are."""
        low, high = 0, 1
        while high < len(order) and not self._enough(order, high, on_message):
            low, high = high, 2 * high
        high = min(high, len(order))
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._enough(order, middle, on_message) else (middle, high)
        return order, high

    def _enough(self, order: Sequence[Sequence[int]], count: int, on_message: OnMessage) -> bool:
        on_message(f"{count} of {len(order)} steps computed")
        (values,) = self._run([[step for unit in order[:count] for step in unit]])
        return all(decide(limit, mean_interval(values[limit.name])) for limit in self.limits)

    def _run(self, sets: Sequence[Sequence[int]]) -> list[Mapping[str, list[float]]]:
        jobs = [
            Job(with_steps_computed(self._bare, steps) if steps else self._bare, self.refits_solver) for steps in sets
        ]
        self.runs += len(jobs)
        return [scored.values for scored in self.evaluator.evaluate(jobs)]


def _drift_per_mac(more: Mapping[str, list[float]], less: Mapping[str, list[float]]) -> float:
    """Drift that is removed per MAC by computing more."""
    gain = np.mean(less["drift"]) - np.mean(more["drift"])
    return float(gain / max(more["macs"][0] - less["macs"][0], 1e-9))


def _sorted(units: Sequence[list[int]], slopes: Sequence[float]) -> list[list[int]]:
    return [units[i] for i in np.argsort(-np.array(slopes), kind="stable")]


def _note(text: str, refits_solver: bool, refits_corrections: bool, why: str) -> str:
    """What was lost, or was fitted again."""
    solver = refits_solver and text.startswith("the fitted solver")
    corrections = refits_corrections and text.startswith("corrections")
    return f"fitted again: {text}" if solver or corrections else f"lost: {text}" + (f" ({why})" if why else "")
