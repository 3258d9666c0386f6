"""python -m search.explain: what every decision of a schedule saves and costs, left out and taken alone.

    python -m search.explain schedule.json

schedule=   the schedule file
by=         what is explained: mechanism, nodes, step (all by default, joined by commas)
samples=8   held-out prompts that it is measured on
out=explain.png
model=      the pipeline, by default the one that the schedule was searched on; also model.path=, compute.device=,
            prompts.held_out=
"""

import sys
import textwrap
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from search import command

if TYPE_CHECKING:
    from rich.table import Table

    from search.config import Config
    from search.evaluate.evaluator import Evaluator
    from search.models.base import Model
    from search.schedule import Schedule

GROUPS = ("mechanism", "nodes", "step")
DEFAULTS = {"schedule": "", "by": ",".join(GROUPS), "samples": "8", "out": "explain.png"}
WORDS = {"R": "reuse", "F": "forecast", "S": "skip"}
PARTS = {
    "gates": "gates", "guidance": "guidance", "models": "smaller denoiser", "start": "start of the run",
}  # fmt: skip
Parts = dict[str, Any]


@dataclass(frozen=True)
class Decision:
    """A part of a schedule by a name, what is left when it is undone, and what it is without all others.

    Either is None where there is no such schedule: of another number of steps for example.
    """

    group: str
    name: str
    without: "Schedule | None"
    alone: "Schedule | None"


@dataclass(frozen=True)
class Effect:
    """What a decision does. `saved` is its share of the teacher's MACs; `added` the drift that it adds to the others.

    `low` and `high` are the paired 95 % interval of `added`. `alone` is the drift of this decision without others.
    Quantities that are not defined are NaN.
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
        """Whether the interval separates what it adds from nothing."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Explanation:
    """The effects of all decisions of a schedule, on so many prompts; solvers are fitted anew for each of them."""

    name: str
    drift: float
    macs: float
    prompts: int
    effects: Sequence[Effect]
    plan: str = ""  # in the plan notation

    def of(self, group: str) -> list[Effect]:
        return [effect for effect in self.effects if effect.group == group]

    @cached_property
    def dearest(self) -> Effect | None:
        """The step that adds most drift for what it saves: the first one to compute again."""
        steps = [e for e in self.of("step") if e.saved > 0 and e.sure and e.added > 0]
        return max(steps, key=lambda e: e.added / e.saved, default=None)

    def table(self) -> "Table":
        """For a terminal, or as the last expression of a notebook's cell."""
        from rich.table import Table

        title = f"{self.name}: drift {self.drift:.4f} at {self.macs:.1%} of the MACs, {self.prompts} held-out prompts"
        table = Table(
            "", "decision", "saves", "adds drift", "95 %", "alone", title=title, title_justify="left",
            caption=f"plan  {self.plan}", caption_justify="left",
        )  # fmt: skip
        for group in GROUPS:
            for i, e in enumerate(self.of(group)):
                style = "" if e.sure else "dim"
                interval = "" if np.isnan(e.low) else f"[{e.low:+.4f}, {e.high:+.4f}]"
                values = f"{e.saved:.1%}", _number(e.added, "+.4f"), interval, _number(e.alone, ".4f")
                table.add_row("" if i else group, e.name, *(v.replace("nan%", "") for v in values), style=style)
            table.add_section()
        return table

    def png(self) -> bytes:
        """Bars: drift that each decision adds, over what it saves, one panel a group."""
        from search.figures.effects import bars_png

        panels = {g: [(e.name, e.added, e.low, e.high, e.saved) for e in self.of(g)] for g in GROUPS if self.of(g)}
        title = f"{self.name}: what its decisions do, {self.prompts} held-out prompts"
        plan = textwrap.shorten(self.plan, 90, placeholder=" …")
        return bars_png(panels, title, f"drift {self.drift:.4f} at {self.macs:.0%} of the MACs · {plan}")

    _repr_png_ = png  # a notebook shows it


def explain(
    schedule: "Schedule | str | Path",
    model: "Model | str | None" = None,
    samples: int = 8,
    by: Sequence[str] = GROUPS,
    name: str = "",
    done: Callable[[int, int], None] = lambda count, total: None,
) -> Explanation:
    """What the decisions of a schedule do on the first held-out prompts.

    `model` is a loaded one, the name of its option, or None for the one that the schedule was searched on. `done` is
    told how many runs of how many are over.
    """
    from search.loaded import opened, title

    name = name or title(schedule)
    schedule, model, config = opened(schedule, model)
    return effects(schedule, evaluator_of(config, model, samples), by, name, done)


def effects(
    schedule: "Schedule",
    evaluator: "Evaluator",
    by: Sequence[str] = GROUPS,
    name: str = "schedule",
    done: Callable[[int, int], None] = lambda count, total: None,
) -> Explanation:
    """Run the schedule without each of its decisions and with each alone, on an evaluator of drift and MACs.

    Undoing means computing what was reused, forecast or skipped. Where the schedule has a fitted solver, that of every
    other one is fitted as well: what is shown is what a decision does at its best.
    """
    from search.evaluate.runner import Job
    from search.front import paired_difference_interval

    found = [d for d in decisions(schedule, evaluator) if d.group in by]
    fit = bool((schedule.sampler or {}).get("coefficients")) and not evaluator.fits()
    jobs = [Job(schedule)]
    numbers: list[tuple[int | None, int | None]] = []
    for decision in found:
        pair = []
        for other in (decision.without, decision.alone):
            pair.append(None if other is None else len(jobs))
            if other is not None:
                jobs.append(Job(other, fit and decision.name != "fitted solver"))
        numbers.append((pair[0], pair[1]))
    scored = evaluator.evaluate(jobs, done=lambda count: done(count, len(jobs)))
    drifts = [np.array(s.values["drift"]) for s in scored]
    macs = [s.values["macs"][0] for s in scored]
    rows, rng = [], np.random.default_rng(0)
    for decision, (without, alone) in zip(found, numbers, strict=True):
        saved = added = low = high = float("nan")
        if without is not None:
            saved, added = macs[without] - macs[0], float((drifts[0] - drifts[without]).mean())
            low, high = paired_difference_interval(drifts[0], drifts[without], rng)
        rows.append(
            Effect(
                decision.group, decision.name, saved, added, low, high,
                float("nan") if alone is None else float(drifts[alone].mean()),
            )
        )  # fmt: skip
    return Explanation(name, float(drifts[0].mean()), macs[0], len(drifts[0]), rows, schedule.plan_text)


def evaluator_of(config: "Config", model: "Model", samples: int | None = None) -> "Evaluator":
    """An evaluator of drift and MACs on the first held-out prompts; nothing is remembered beyond it."""
    from search.evaluate.evaluator import Evaluator
    from search.evaluate.memo import Memo
    from search.loaded import HELD_OUT_SEED, prompts_of
    from search.objectives.drift import Drift
    from search.objectives.macs import Macs

    held_out = prompts_of(config.prompts)[1][:samples]
    seeds = [HELD_OUT_SEED + config.prompts.seed + i for i in range(len(held_out))]
    objectives = {"drift": Drift(), "macs": Macs()}
    return Evaluator(model, held_out, seeds, objectives, model.costs(), Memo(Path(":memory:")), config.prompts.batch)


def decisions(schedule: "Schedule", evaluator: "Evaluator") -> Iterator[Decision]:
    """The parts of a schedule; its mechanisms, the kinds of nodes that it plans, and its steps."""
    from search.evaluate.evaluator import to_schedule
    from search.schedule import Schedule
    from search.schedule.plan import MAX_STEPS, OFF

    whole = {k: v for k, v in schedule.to_dict().items() if k not in ("digest", "scores", "made")}
    plain = {k: v for k, v in whole.items() if k != "corrections"}
    if "corrections" in whole:
        yield Decision("mechanism", "corrections", Schedule.from_dict(plain), None)
    own = plain.get("sampler", {})
    if "coefficients" in own:
        table = {k: v for k, v in own.items() if k != "coefficients"}
        yield Decision("mechanism", "fitted solver", Schedule.from_dict(plain | {"sampler": table}), None)
        plain = plain | {"sampler": table}  # fitted anew for the others
    bare = {k: v for k, v in plain.items() if k in ("format", "model", "steps", "sampler")}
    teacher = to_schedule(evaluator.model, {}).to_dict()
    if (mine := bare.get("sampler", {})).get("timesteps", []) != (grid := teacher.get("sampler", {})).get("timesteps"):
        same = len(mine.get("timesteps", ())) == len(grid.get("timesteps", ()))
        back = Schedule.from_dict(plain | {"sampler": grid}) if same and grid else None
        yield Decision("mechanism", "timesteps", back, Schedule.from_dict(bare))
    for part, words in PARTS.items():
        if part in plain:
            yield Decision("mechanism", words, _try(_less(plain, part)), _try(bare | {part: plain[part]}))
    for form in sorted(set(plain.get("bits", {}).get("layers", {}).values())):
        left = _less(plain, "bits") | _bits(plain["bits"], form, keep=False)
        only = bare | _bits(plain["bits"], form, keep=True)
        yield Decision("mechanism", f"bits {form}", _try(left), _try(only))
    if "plan" not in plain:
        return
    tokens = {name: schedule.plan.tokens[name] for name in schedule.plan.planned()}

    def split(
        group: str,
        name: str,
        letters: str = "".join(WORDS),
        nodes: Container[str] = tokens,
        steps: Container[int] = range(MAX_STEPS),
    ) -> Decision:
        """The decision to do these actions at these nodes and steps."""

        def planned(keep: bool) -> "Schedule | None":
            kept = {
                node: [
                    t if t[0] in WORDS and (t[0] in letters and node in nodes and step in steps) == keep else OFF
                    for step, t in enumerate(actions)
                ]
                for node, actions in tokens.items()
            }
            return _try(_with_plan(bare if keep else plain, schedule, kept))

        return Decision(group, name, planned(False), planned(True))

    for letter in sorted({t[0] for actions in tokens.values() for t in actions} & set(WORDS)):
        yield split("mechanism", WORDS[letter], letters=letter)
    kinds: dict[str, set[str]] = {}
    for node in tokens:
        kinds.setdefault(_kind(schedule, node), set()).add(node)
    for kind, nodes in kinds.items():
        yield split("nodes", kind, nodes=nodes)
    for number in range(schedule.plan.steps):
        if any(actions[number][0] in WORDS for actions in tokens.values()):
            yield split("step", f"step {number}", steps=(number,))


def _with_plan(parts: Parts, schedule: "Schedule", tokens: Mapping[str, Sequence[str]]) -> Parts:
    from search.schedule.plan import OFF, Plan

    off = (OFF,) * schedule.plan.steps
    full = {node.name: tuple(tokens.get(node.name, off)) for node in schedule.tree}
    rules = [list(rule) for rule in Plan(schedule.tree, schedule.plan.steps, full).rules()]
    return _less(parts, "plan") | {"plan": {**schedule.to_dict()["plan"], "rules": rules}}


def _bits(bits: Parts, form: str, keep: bool) -> Parts:
    """The part with the layers of this format, or with all others; nothing where there are none."""
    layers = {name: own for name, own in bits["layers"].items() if (own == form) == keep}
    ranges = {name: spans for name, spans in bits.get("ranges", {}).items() if name in layers}
    kept = {"layers": layers, "ranges": ranges} if ranges else {"layers": layers}
    return {"bits": _less(bits, "ranges") | kept} if layers else {}


def _less(parts: Parts, name: str) -> Parts:
    return {k: v for k, v in parts.items() if k != name}


def _try(parts: Parts) -> "Schedule | None":
    """A schedule, or nothing where its parts need what was left out."""
    from search.schedule import Schedule
    from search.schedule.errors import ScheduleError

    try:
        return Schedule.from_dict(parts)
    except ScheduleError:
        return None


def _kind(schedule: "Schedule", name: str) -> str:
    node = schedule.tree.nodes[name]
    return node.component or (f"{node.stack}, whole blocks" if node.kind == "block" else name)


def _number(value: float, form: str) -> str:
    return "" if np.isnan(value) else format(value, form)


def main(arguments: Sequence[str]) -> int:
    """Print the table, write the figure and say where it is."""
    return command.run(arguments, __doc__, _work, DEFAULTS, first="schedule", configurable=True)


def _work(options: command.Options) -> None:
    by = [word for word in options["by"].split(",") if word]
    if unknown := [word for word in by if word not in GROUPS] or ([] if by else [options["by"]]):
        raise ValueError(f"by={unknown[0]}: choose from {', '.join(GROUPS)}, joined by commas")
    samples = command.whole(options, "samples", 2, 10_000)
    if not options["schedule"]:
        raise ValueError("type python -m search.explain schedule.json")
    from rich.console import Console
    from rich.progress import Progress

    from search.loaded import config_for, model_of
    from search.schedule import Schedule

    schedule = Schedule.load(options["schedule"])
    config = config_for(schedule, options.overrides)
    console = Console(soft_wrap=True)
    with console.status("loading"):
        evaluator = evaluator_of(config, model_of(config), samples)
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("runs", total=None)
        found = effects(
            schedule, evaluator, by, Path(options["schedule"]).stem,
            lambda count, total: progress.update(task, completed=count, total=total),
        )  # fmt: skip
    out = Path(options["out"])
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(found.png())
    console.print(found.table())
    if best := found.dearest:
        console.print(
            f"dearest    {best.name}: computed, {best.added / found.drift:.0%} of the drift would be gone "
            f"for {best.saved:.1%} of the MACs"
        )
    console.print(f"figure     {out}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
