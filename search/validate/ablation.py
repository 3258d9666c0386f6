"""The effect of each decision of a schedule on drift and cost: without it, and with it alone."""

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from search.validate.decisions import Decision, list_decisions

if TYPE_CHECKING:
    from rich.table import Table

    from search.config.settings import Config
    from search.evaluate.evaluator import Evaluator
    from search.models.base import Model
    from search.schedule import Schedule


GROUPS = ("part", "mechanism", "nodes", "step")


@dataclass(frozen=True)
class Effect:
    """The effect of one decision; numbers that are not defined are NaN.

    Attributes:
        group: part, mechanism, nodes or step.
        name: The decision in words.
        saved: MACs that it saves, as a share of the teacher's.
        added: Drift that it adds to that of the other decisions.
        low: Lower end of the paired 95 % interval of `added`.
        high: Upper end of it.
        alone: Drift of a schedule with this decision only.
    """

    group: str
    name: str
    saved: float
    added: float
    low: float
    high: float
    alone: float

    @property
    def sure(self) -> bool:
        """Whether the interval of `added` excludes 0."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Explanation:
    """The effects of all decisions of a schedule; solvers are fitted again for each of them.

    Attributes:
        name: Title of tables and figures.
        drift: Mean drift of the schedule.
        macs: Its MACs as a share of the teacher's.
        prompts: How many held-out prompts it was measured on.
        effects: One for each decision.
        plan: The plan in the plan notation.
    """

    name: str
    drift: float
    macs: float
    prompts: int
    effects: Sequence[Effect]
    plan: str = ""

    def of(self, group: str) -> list[Effect]:
        """The effects of a group: part, mechanism, nodes or step."""
        return [effect for effect in self.effects if effect.group == group]

    @cached_property
    def most_expensive_step(self) -> Effect | None:
        """The step that adds most drift per saved MAC, which is the first one to compute again."""
        steps = [e for e in self.of("step") if e.saved > 0 and e.sure and e.added > 0]
        return max(steps, key=lambda e: e.added / e.saved, default=None)

    def table(self) -> "Table":
        """A table for a terminal or a notebook."""
        from rich.markup import escape
        from rich.table import Table

        title = f"{self.name}: drift {self.drift:.4f} at {self.macs:.1%} of the MACs, {self.prompts} held-out prompts"
        table = Table(
            "", "decision", "saves", "adds drift", "95 %", "alone", title=escape(title), title_justify="left",
            caption=escape(f"plan  {self.plan}"), caption_justify="left",
        )  # fmt: skip
        for group in GROUPS:
            for i, e in enumerate(self.of(group)):
                style = "" if e.sure else "dim"
                interval = "" if np.isnan(e.low) else f"[{e.low:+.4f}, {e.high:+.4f}]"
                values = f"{e.saved:.1%}", number_text(e.added, "+.4f"), interval, number_text(e.alone, ".4f")
                table.add_row("" if i else group, escape(e.name), *(v.replace("nan%", "") for v in values), style=style)
            table.add_section()
        return table

    def png(self) -> bytes:
        """A figure: the drift that each decision adds and the MACs that it saves, one panel per group."""
        from search.figures.effects import bars_png

        panels = {g: [(e.name, e.added, e.low, e.high, e.saved) for e in self.of(g)] for g in GROUPS if self.of(g)}
        title = f"{self.name}: what its decisions do, {self.prompts} held-out prompts"
        plan = textwrap.shorten(self.plan, 90, placeholder=" …")
        return bars_png(panels, title, f"drift {self.drift:.4f} at {self.macs:.0%} of the MACs · {plan}")

    _repr_png_ = png  # for notebooks


def explain(
    schedule: "Schedule | str | Path",
    model: "Model | str | None" = None,
    samples: int = 8,
    by: Sequence[str] = GROUPS,
    name: str = "",
    on_done: Callable[[int, int], None] = lambda count, total: None,
) -> Explanation:
    """Measure what the decisions of a schedule do on held-out prompts.

    Args:
        schedule: A schedule or its file.
        model: A loaded model, the name of its option, or None for the one that the schedule was searched on.
        samples: Number of prompts.
        by: Groups of decisions: part, mechanism, nodes, step.
        name: Title of tables and figures; by default the name of the file.
        on_done: Called with the number of finished runs, and of all.

    Returns:
        The effects of the groups `by`.

    Raises:
        ValueError: The schedule does not say which model it is for.
    """
    from search.config.load import open_schedule_and_model, title_of_schedule

    name = name or title_of_schedule(schedule)
    schedule, model, config = open_schedule_and_model(schedule, model)
    return measure_effects(schedule, evaluator_for(config, model, samples), by, name, on_done)


def measure_effects(
    schedule: "Schedule",
    evaluator: "Evaluator",
    by: Sequence[str] = GROUPS,
    name: str = "schedule",
    on_done: Callable[[int, int], None] = lambda count, total: None,
    fit: "Callable[[Schedule], Schedule] | None" = None,
    alone: bool = True,
) -> Explanation:
    """Run the schedule without each of its decisions and with each alone, on an evaluator of drift and MACs.

    A decision is undone by computing what it reuses, forecasts or skips. If the schedule has a fitted solver, the
    solvers of all these runs are fitted too, so that every decision is shown at its best: by `fit`, or by default on
    the first batch of the evaluator's prompts. Without `alone` no decision is run alone. A schedule that has no scores,
    because its latents are not finite, has effects that are NaN.
    """
    from search.evaluate.execute.jobs import Job

    decisions = [d for d in list_decisions(schedule, evaluator) if d.group in by]
    is_fitted = bool((schedule.sampler or {}).get("coefficients")) and not evaluator.why_no_solver_fit()
    jobs = [Job(schedule)]
    numbers: list[tuple[int | None, int | None]] = []
    for decision in decisions:
        pair = []
        for variant in (decision.without, decision.alone if alone else None):
            pair.append(None if variant is None else len(jobs))
            if variant is not None:
                fitted = is_fitted and decision.name != "fitted solver"
                jobs.append(Job(fit(variant)) if fit and fitted else Job(variant, fitted))
        numbers.append((pair[0], pair[1]))
    scored = evaluator.evaluate(jobs, on_done=lambda count: on_done(count, len(jobs)))
    unknown = np.full(len(evaluator.prompts), np.nan)
    drifts = [np.array(s.values.get("drift", unknown)) for s in scored]
    macs = [s.values.get("macs", unknown)[0] for s in scored]
    effects = [
        _effect(d, drifts, macs, without, single) for d, (without, single) in zip(decisions, numbers, strict=True)
    ]
    return Explanation(name, float(drifts[0].mean()), macs[0], len(drifts[0]), effects, schedule.plan_text)


def _effect(
    decision: Decision, drifts: Sequence[np.ndarray], macs: Sequence[float], without: int | None, alone: int | None
) -> Effect:
    """The effect of a decision from drifts [P] and MACs of all runs, the schedule's first."""
    from search.pareto.intervals import paired_difference_interval

    saved = added = low = high = float("nan")
    if without is not None:
        saved, added = macs[without] - macs[0], float((drifts[0] - drifts[without]).mean())
        low, high = paired_difference_interval(drifts[0], drifts[without], np.random.default_rng(0))
    drift_alone = float("nan") if alone is None else float(drifts[alone].mean())
    return Effect(decision.group, decision.name, saved, added, low, high, drift_alone)


def evaluator_for(config: "Config", model: "Model", samples: int | None = None) -> "Evaluator":
    """An evaluator of drift and MACs on the first `samples` held-out prompts, with a memo in memory only."""
    from search.config.load import HELD_OUT_SEED, prompts_from_config
    from search.evaluate.evaluator import Evaluator
    from search.evaluate.memo import Memo
    from search.objectives.drift import Drift
    from search.objectives.macs import Macs

    held_out = prompts_from_config(config.prompts)[1][:samples]
    seeds = [HELD_OUT_SEED + config.prompts.seed + i for i in range(len(held_out))]
    objectives = {"drift": Drift(), "macs": Macs()}
    return Evaluator(model, held_out, seeds, objectives, model.costs(), Memo(Path(":memory:")), config.prompts.batch)


def number_text(value: float, form: str) -> str:
    """A number in a format, or nothing for NaN."""
    return "" if np.isnan(value) else format(value, form)
