"""python -m benchmarks.search_cost [METHOD ...]: block executions to the hypervolume that a genetic search ends with.

Bundled pixart, 20 steps, a free bit per step, block and component (ECAD's space), drift and MACs, no fitted solvers,
4 calibration prompts with their noise. Every method is counted as it is published: a whole run for every candidate.
Ours is counted as it runs, calibration included. Results are kept in runs/search_cost and not computed twice; the table
and the figure are of all that is there. Hypervolumes have their reference at 1 and 1.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from search.calibrate.propose.proposals import Proposals
from search.config.prompts import read_prompts
from search.engines.anneal import AnnealEngine
from search.engines.autodiffusion import AutoDiffusionEngine
from search.engines.base import Engine, EngineInputs
from search.engines.ecad import EcadEngine
from search.engines.predictor import PredictorEngine
from search.engines.random import RandomEngine
from search.evaluate.evaluator import Evaluator
from search.evaluate.execute.jobs import Job
from search.evaluate.memo import Memo
from search.models.base import to_schedule
from search.objectives.drift import Drift
from search.objectives.macs import Macs
from search.pareto.domination import hypervolume, non_dominated
from search.spaces.cache import CacheSpace
from search.testing.models import pixart

PROMPTS, PROBED, BATCH, OWN_BATCH = 4, 2, 72, 24
FIRST = 6  # rows at a time of what the tables propose, so that the beginning of the curve can be seen
LIMITS = (0.25, 0.35, 0.5)  # of the MACs: AutoDiffusion searches one budget at a time
WORST = np.ones(2)


TITLE = """# Block executions to a genetic search's final hypervolume

`python -m benchmarks.search_cost`: bundled pixart, 20 steps, drift and MACs of 4 calibration prompts with their noise.
All search what to compute and what to reuse per step, block and component (ECAD's space, 456 free bits). The published
ones begin with ECAD's hand-made schedules and are counted as published, a whole run for every candidate. ECAD ran 550
generations of 72; here it has 50.

Ours counts all that it executes, calibration included, each distinct beginning of its runs once. It has structured
genes (an interval of blocks per step and component), tables and their exact fronts first, then the predictor; and it
may forecast and fits every schedule's solver, which costs no execution. *Solvers not fitted* is the same without both:
there all methods choose among the very same schedules.

![Hypervolume over block executions](../images/benchmark_search_cost.png)"""


class Bench:
    """The model, ECAD's space, and scores of rows."""

    def __init__(self) -> None:
        self.model, self.space = pixart(), CacheSpace("component", max_order=0)
        self.target, self.costs = self.model.target, self.model.costs()
        self.genes = self.space.genes(self.target)
        self.objectives = {"drift": Drift(), "macs": Macs()}
        self.probe = self.evaluator(PROMPTS)
        self.hand_made = self.proposals(self.space, self.probe).methods()["intervals"]()

    def evaluator(self, prompts: int) -> Evaluator:
        """A new one that knows nothing."""
        texts = read_prompts("emoji_calibration.txt")[:prompts]
        memo = Memo(Path(":memory:"))
        return Evaluator(self.model, texts, list(range(prompts)), self.objectives, self.costs, memo)

    def proposals(self, space: CacheSpace, probe: Evaluator) -> Proposals:
        return Proposals(space, self.target, self.model, probe, self.costs, list(self.objectives.values()))

    def start(self, seed: int, seeded: bool = True) -> EngineInputs:
        seeds = self.hand_made if seeded else np.zeros((0, len(self.genes)), dtype=np.int64)
        return EngineInputs(self.genes, 2, np.random.default_rng(seed), seeds, WORST)

    def scores(self, rows: np.ndarray) -> np.ndarray:
        """Drift, share of MACs and block executions of whole runs [N, 3]."""
        schedules = [to_schedule(self.model, self.space.decode(row, self.target)) for row in rows]
        scored = self.probe.evaluate([Job(schedule) for schedule in schedules])
        drift = [found.minimised[0] for found in scored]
        macs = np.array([self.costs.macs(schedule) for schedule in schedules])
        return np.stack([drift, macs / self.costs.teacher_macs, macs / self.costs.block_macs * PROMPTS], axis=1)


def searched(bench: Bench, engine: Engine, budget: int) -> list[list[float]]:
    """Evaluations, block executions and hypervolume after every batch of an engine."""
    front, curve, spent, count, began = np.zeros((0, 2)), [], 0.0, 0, time.monotonic()
    while count < budget and len(rows := engine.ask(min(BATCH, budget - count))):
        found = bench.scores(rows)
        engine.tell(rows, found[:, :2])
        front = np.vstack([front, found[:, :2]])
        front = front[non_dominated(front)]
        spent, count = spent + float(found[:, 2].sum()), count + len(rows)
        curve.append([count, spent, hypervolume(front, WORST)])
        print(f"  {count} {spent:.0f} {curve[-1][2]:.4f}, {time.monotonic() - began:.0f} s", flush=True)
    return curve


def ecad(bench: Bench, seed: int, budget: int) -> list[list[float]]:
    return searched(bench, EcadEngine(bench.start(seed)), budget)


def ecad_working(bench: Bench, seed: int, budget: int) -> list[list[float]]:
    return searched(bench, EcadEngine(bench.start(seed), mutation=1.0, flips=3), budget)


def anneal(bench: Bench, seed: int, budget: int) -> list[list[float]]:
    return searched(bench, AnnealEngine(bench.start(seed), steps=budget // 2), budget)


def random(bench: Bench, seed: int, budget: int) -> list[list[float]]:
    return searched(bench, RandomEngine(bench.start(seed)), budget)


def autodiffusion(bench: Bench, seed: int, budget: int) -> list[list[float]]:
    """A search for each limit, one after the other; what one found counts for the next."""
    engines = [AutoDiffusionEngine(bench.start(seed), limit=limit) for limit in LIMITS]
    return searched(bench, _Turns(engines), budget)


class _Turns:
    """Several engines by turns."""

    def __init__(self, engines: list) -> None:
        self.engines, self.turn = engines, 0

    def ask(self, n: int) -> np.ndarray:
        self.turn += 1
        return self.engines[self.turn % len(self.engines)].ask(n)

    def tell(self, x: np.ndarray, y: np.ndarray) -> None:
        self.engines[self.turn % len(self.engines)].tell(x, y)


def ours(bench: Bench, seed: int, budget: int, fit: bool = True) -> list[list[float]]:
    """What a search does by default, on the structured genes: tables, their front, then the predictor."""
    space, probe, evaluator = (
        CacheSpace("interval", max_order=int(fit)),
        bench.evaluator(PROBED),
        bench.evaluator(PROMPTS),
    )
    proposals = bench.proposals(space, probe)
    front, curve, began = np.zeros((0, 2)), [], time.monotonic()
    recorded = (
        (PROBED + fit * PROMPTS) * bench.costs.teacher_macs / bench.costs.block_macs
    )  # runs that no evaluator sees

    def scores(rows: np.ndarray) -> np.ndarray:
        nonlocal front
        jobs = [Job(to_schedule(bench.model, space.decode(row, bench.target)), fit and row.any()) for row in rows]
        found = np.array([scored.minimised for scored in evaluator.evaluate(jobs)])
        front = np.vstack([front, found])
        front = front[non_dominated(front)]
        spent = recorded + probe.block_executions + evaluator.block_executions
        curve.append([(curve[-1][0] if curve else 0) + len(rows), spent, hypervolume(front, WORST)])
        print(f"  {curve[-1][0]} {spent:.0f} {curve[-1][2]:.4f}, {time.monotonic() - began:.0f} s", flush=True)
        return found

    seeds = proposals.methods()["dp"]()
    order = np.random.default_rng(seed).permutation(len(seeds))
    for first in range(0, len(seeds), FIRST):
        scores(seeds[order[first : first + FIRST]])
    rng = np.random.default_rng(seed)
    start = EngineInputs(space.genes(bench.target), 2, rng, seeds, WORST, prior=proposals.prior())
    engine = PredictorEngine(start)
    while curve[-1][0] - len(seeds) < budget and len(rows := engine.ask(OWN_BATCH)):
        engine.tell(rows, scores(rows))
    return curve


def ours_plain(bench: Bench, seed: int, budget: int) -> list[list[float]]:
    """The same without fitted solvers and forecasts: nothing but ECAD's own schedules."""
    return ours(bench, seed, budget, fit=False)


METHODS: dict[str, tuple[Callable[[Bench, int, int], list[list[float]]], int]] = {  # and how many candidates
    "ecad": (ecad, 3600),
    "ecad_working": (ecad_working, 3600),
    "autodiffusion": (autodiffusion, 1800),
    "anneal": (anneal, 1800),
    "random": (random, 720),
    "ours": (ours, 300),
    "ours_plain": (ours_plain, 480),
}
NAMES = {
    "ecad": "ECAD's GA as published",
    "ecad_working": "ECAD's GA, every child mutated",
    "autodiffusion": "AutoDiffusion's EA, three budgets",
    "anneal": "BudCache's annealing",
    "random": "random",
    "ours": "ours",
    "ours_plain": "ours, solvers not fitted",
}
COLORS = dict(zip(NAMES, ("#D55E00", "#E69F00", "#CC79A7", "#009E73", "#9AA0A6", "#0072B2", "#56B4E9"), strict=True))


def reached(curve: list[list[float]], volume: float) -> float:
    """Block executions until a hypervolume; infinite where it is not reached."""
    return next((spent for _, spent, found in curve if found >= volume), float("inf"))


def report(folder: Path, page: Path, figure: Path) -> None:
    """A table and a curve of all results that are there."""
    found = {
        name: [json.loads(file.read_text()) for file in sorted(folder.glob(f"{name}_[0-9]*.json"))] for name in NAMES
    }
    found = {name: curves for name, curves in found.items() if curves}
    volume = float(np.median([curve[-1][2] for curve in found["ecad"]]))
    whole = float(np.median([curve[-1][1] for curve in found["ecad"]]))
    head = ["method", "seeds", "candidates", "block executions", "hypervolume", f"executions to {volume:.4f}", "fewer"]
    rows = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for name, curves in found.items():
        needed = [reached(curve, volume) for curve in curves]
        middle = float(np.median(needed))
        cells = [NAMES[name], str(len(curves)), f"{curves[0][-1][0]:.0f}"]
        cells += [_spread([c[-1][1] for c in curves], ",.0f"), _spread([c[-1][2] for c in curves], ".4f")]
        cells += [_spread(needed, ",.0f"), f"{whole / middle:.0f}×" if np.isfinite(middle) else "never"]
        rows.append("| " + " | ".join(cells) + " |")
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("\n".join([TITLE, "", *rows]) + "\n")
    print("\n".join(rows))
    _figure(found, figure, volume)


def _spread(values: list[float], form: str) -> str:
    """The median, and the least and the greatest where there are several."""
    middle = f"{float(np.median(values)):{form}}"
    text = middle if len(values) == 1 else f"{middle} ({min(values):{form}}–{max(values):{form}})"
    return text.replace("inf", "never")


def _figure(found: dict[str, list[list[list[float]]]], file: Path, volume: float) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, curves in found.items():
        for i, curve in enumerate(curves):
            _, spent, volumes = np.array(curve).T
            axes.step(spent, volumes, where="post", color=COLORS[name], lw=1.6, label=None if i else NAMES[name])
    axes.axhline(volume, color="#202124", lw=0.8, ls=":")
    axes.set(xscale="log", xlabel="block executions, calibration counted", ylabel="hypervolume of drift and MACs")
    axes.set_ylim(0.6, 0.92)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    figure.savefig(file, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("methods", nargs="*", metavar="METHOD", help=", ".join(METHODS))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=Path("runs/search_cost"))
    parser.add_argument("--page", type=Path, default=Path("docs/benchmarks/search_cost.md"))
    parser.add_argument("--figure", type=Path, default=Path("docs/images/benchmark_search_cost.png"))
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    torch.set_grad_enabled(False)
    bench: Bench | None = None
    for seed in given.seeds:
        for name in given.methods or METHODS:
            file = given.folder / f"{name}_{seed}.json"
            if not file.exists():
                print(name, seed, flush=True)
                bench = bench or Bench()
                method, budget = METHODS[name]
                file.write_text(json.dumps(method(bench, seed, budget)) + "\n")
    report(given.folder, given.page, given.figure)


if __name__ == "__main__":
    main()
