"""python -m benchmarks.exhaustive: every engine against the truth, all 2^14 step plans of the bundled model.

All plans of 15 steps that compute or reuse the whole denoiser at each step (`CacheSpace("step", max_order=0)`) are
run once, beginnings shared, on 2 calibration prompts: drift and MACs in runs/exhaustive/truth.npz (minutes; goes on
where it was stopped). Then engines search with the table as their evaluator: the hypervolume that they find, as a
share of the true front's (reference 1 and 1), against evaluations. What calibration and the beam ran counts as
evaluations too. Writes a table, JSON files and docs/images/benchmark_exhaustive.png.
"""

import argparse
import importlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from search.calibrate.propose.beam import beam_rows
from search.calibrate.propose.proposals import Proposals
from search.config.prompts import read_prompts
from search.engines.base import Engine, EngineInputs
from search.evaluate.evaluator import Evaluator
from search.evaluate.execute.jobs import Job
from search.evaluate.memo import Memo
from search.models.base import to_schedule
from search.objectives.drift import Drift
from search.objectives.macs import Macs
from search.pareto.domination import hypervolume, non_dominated
from search.profile.count import count_costs
from search.spaces.cache import CacheSpace
from search.testing.models import pixart

STEPS, PROMPTS, BATCH, CHUNK = 15, 2, 24, 1024
TARGET = 0.99
TITLE = f"""# Engines against the truth: all 2^14 step plans of the bundled model

`python -m benchmarks.exhaustive`: hypervolume of drift and MACs
({PROMPTS} calibration prompts, {STEPS} steps) as a share of
the true front's (reference 1 and 1) after so many evaluations, calibration and beam steps included; median (quartiles)
of 5 seeds. All plans were run, beginnings shared.

![Hypervolume over evaluations](../images/benchmark_exhaustive.png)"""
ENGINES = {  # name in the table: module, class, what it is given
    "random": ("random", "RandomEngine", {}),
    "nsga2": ("nsga2", "Nsga2Engine", {}),
    "anneal": ("anneal", "AnnealEngine", {}),
    "bayes": ("bayes", "BayesEngine", {}),
    "predictor": ("predictor", "PredictorEngine", {}),
    "dp": ("proposals", "ProposalEngine", {"of": "dp"}),
    "beam": ("proposals", "ProposalEngine", {"of": "beam"}),
    "beam 32": ("proposals", "ProposalEngine", {"of": "beam 32"}),
    "dp+nsga2": ("nsga2", "Nsga2Engine", {}),
    "dp+anneal": ("anneal", "AnnealEngine", {}),
    "dp+predictor": ("predictor", "PredictorEngine", {}),
    "beam 32+nsga2": ("nsga2", "Nsga2Engine", {}),
    "beam 32+anneal": ("anneal", "AnnealEngine", {}),
    "beam 32+predictor": ("predictor", "PredictorEngine", {}),
}
COLORS = {"random": "#9AA0A6", "nsga2": "#0072B2", "anneal": "#009E73", "bayes": "#CC79A7", "predictor": "#E69F00"}
COLORS |= {"dp": "#202124", "beam": "#D55E00", "beam 32": "#8B3A00"}


class Bench:
    """The model, its space, and the table of all rows."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.model, self.space = folder, pixart(steps=STEPS), CacheSpace("step", max_order=0)
        self.target = self.model.target
        self.genes = self.space.genes(self.target)
        self.prompts, self.seeds = read_prompts("emoji_calibration.txt")[:PROMPTS], list(range(PROMPTS))
        self.costs = count_costs(self.model.denoiser, self.target.tree, STEPS, self.model.once)
        objectives, memo = {"drift": Drift()}, Memo(Path(":memory:"))
        self.probe = Evaluator(self.model, self.prompts, self.seeds, objectives, self.costs, memo)

    def rows(self, first: int, last: int) -> np.ndarray:
        """Rows first .. last - 1, the last gene fastest."""
        return np.arange(first, last)[:, None] >> np.arange(len(self.genes))[::-1] & 1

    def truth(self) -> np.ndarray:
        """Scores [2^G, 2]: drift, share of the teacher's MACs."""
        file, count = self.folder / "truth.npz", 2 ** len(self.genes)
        known: dict[str, Any] = dict(np.load(file)) if file.exists() else {}
        if not known:
            known = {"drift": np.zeros((0, PROMPTS)), "macs": np.zeros(0), "executed": 0, "unshared": 0, "seconds": 0.0}
        while (done := len(known["macs"])) < count:
            began = time.perf_counter()
            rows = self.rows(done, min(done + CHUNK, count))
            schedules = [to_schedule(self.model, self.space.decode(row, self.target)) for row in rows]
            executed, unshared = self.probe.block_executions, self.probe.unshared
            scored = self.probe.evaluate([Job(schedule) for schedule in schedules])
            macs = [self.costs.macs(schedule) / self.costs.teacher_macs for schedule in schedules]
            known["drift"] = np.concatenate([known["drift"], np.array([s.values["drift"] for s in scored])])
            known["macs"] = np.concatenate([known["macs"], macs])
            known["executed"] = float(known["executed"]) + self.probe.block_executions - executed
            known["unshared"] = float(known["unshared"]) + self.probe.unshared - unshared
            known["seconds"] = float(known["seconds"]) + time.perf_counter() - began
            np.savez(file, **known)
            print(f"{done + len(rows)} of {count} plans, {known['seconds']:.0f} s", flush=True)
        seconds, executed, unshared = (known[name] for name in ("seconds", "executed", "unshared"))
        fewer = f"{unshared / executed:.1f} times fewer"
        print(f"truth: {executed:.0f} block executions instead of {unshared:.0f} ({fewer}), {seconds:.0f} s")
        return np.stack([known["drift"].mean(axis=1), known["macs"]], axis=1)

    def prepare(self) -> dict[str, tuple[np.ndarray, float]]:
        """Rows of the dynamic program and of beams of width 16 and 32, and how many evaluations each cost."""
        probe, executed = self.probe, 0
        proposals = Proposals(self.space, self.target, self.model, probe, self.costs, [Drift(), Macs()])

        def on_step(_: int, steps: int) -> None:
            nonlocal executed
            executed = steps

        dp = proposals.methods()["dp"]()
        runs = probe.runs / PROMPTS + 1  # the teacher is run once more, to be recorded
        seeds = proposals.seeds()
        found = {"dp": (dp, runs)}
        for name, width in (("beam", 16), ("beam 32", 32)):
            rows = beam_rows(self.space, self.target, probe, seeds, self.costs, width, on_step=on_step)
            found[name] = rows, probe.runs / PROMPTS + 1 + executed / STEPS
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/exhaustive"))
    parser.add_argument("--figure", type=Path, default=Path("docs/images/benchmark_exhaustive.png"))
    parser.add_argument("--table", type=Path, default=Path("docs/benchmarks/exhaustive.md"))
    parser.add_argument("--evaluations", type=int, default=800)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    torch.set_grad_enabled(False)
    bench = Bench(given.folder)
    scores = bench.truth()
    best = _volume(scores)
    print(f"true front: {non_dominated(scores).sum()} of {len(scores)} plans, hypervolume {best:.5f}")
    proposed = bench.prepare()
    curves: dict[str, list[np.ndarray]] = {}
    for name in ENGINES:
        found = []
        for seed in range(given.repeats):
            engine, spent = _engine(name, bench, proposed, seed)
            if engine is None:
                print(f"{name}: not in this version")
                break
            found.append(_search(engine, scores, given.evaluations, spent) / [1, best])
        if found:
            curves[name] = found
            content = {"seeds": [{"evaluations": c[:, 0].tolist(), "share": c[:, 1].tolist()} for c in found]}
            (given.folder / f"{name}.json").write_text(json.dumps(content) + "\n")
            print(_row(name, found, len(scores)), flush=True)
    table = [*_head(len(scores)), *(_row(name, found, len(scores)) for name, found in curves.items())]
    given.table.parent.mkdir(parents=True, exist_ok=True)
    given.table.write_text("\n".join([TITLE, "", *table]) + "\n")
    print("\n".join(table))
    _figure(curves, given.figure, given.evaluations, len(scores))


def _engine(name: str, bench: Bench, proposed: dict, seed: int) -> tuple[Engine | None, float]:
    """An engine at its start, and the evaluations that its seeds or rows cost."""
    module, title, arguments = ENGINES[name]
    try:
        make = getattr(importlib.import_module(f"search.engines.{module}"), title)
    except (ImportError, AttributeError):
        return None, 0
    by = name.rpartition("+")[0]
    seeds, spent = proposed[by] if by else (np.zeros((0, len(bench.genes)), dtype=np.int64), 0)
    if "of" in arguments:
        spent = proposed[arguments["of"]][1]
    given: dict[str, Callable[[], np.ndarray]] = {key: lambda rows=rows: rows for key, (rows, _) in proposed.items()}
    start = EngineInputs(
        bench.genes, 2, np.random.default_rng(seed), seeds, worst=np.array([1.0, 1.0]), proposals=given
    )
    return make(start, **arguments), spent


def _search(engine: Engine, scores: np.ndarray, budget: int, spent: float) -> np.ndarray:
    """Evaluations so far and hypervolume [N, 2], a row for every evaluation."""
    found, curve = np.zeros((0, 2)), []
    volume = 0.0
    while spent < budget and len(x := engine.ask(min(BATCH, int(budget - spent) or 1))):
        y = scores[x @ (1 << np.arange(x.shape[1])[::-1])]
        for row in y:
            spent += 1
            if not (found <= row).all(axis=1).any():
                found = np.vstack([found, row])
                found = found[non_dominated(found)]
                volume = _volume(found)
            curve.append([spent, volume])
        engine.tell(x, y)
    return np.array(curve)


def _volume(scores: np.ndarray) -> float:
    return hypervolume(np.clip(scores, 0, 1), np.ones(2))


def _at(curve: np.ndarray, evaluations: float) -> float:
    """Share found after so many evaluations."""
    before = curve[curve[:, 0] <= evaluations]
    return float(before[-1, 1]) if len(before) else 0.0


def _reached(curve: np.ndarray) -> float:
    """Evaluations until the target share; infinite where it is not reached."""
    there = curve[curve[:, 1] >= TARGET]
    return float(there[0, 0]) if len(there) else np.inf


def _head(count: int) -> list[str]:
    cells = ["engine", *(f"at {n} ({n / count:.2%})" for n in _marks(count)), "end", f"evaluations to {TARGET}"]
    return ["| " + " | ".join(cells) + " |", "|" + " --- |" * len(cells)]


def _marks(count: int) -> list[int]:
    return [count // 400, count // 200, count // 100, count // 50]


def _row(name: str, found: list[np.ndarray], count: int) -> str:
    cells = [_spread([_at(curve, n) for curve in found], ".4f") for n in _marks(count)]
    cells += [_spread([curve[-1, 1] for curve in found], ".4f"), _spread([_reached(curve) for curve in found], ".0f")]
    return "| " + " | ".join([name, *cells]) + " |"


def _spread(values: list[float], form: str) -> str:
    """Median and quartiles; numbers that are there, so that an engine that fails now and then shows it."""
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75], method="nearest")
    return f"{middle:{form}} ({low:{form}}–{high:{form}})".replace("inf", "never")


def _figure(curves: dict[str, list[np.ndarray]], file: Path, budget: int, count: int) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.add_subplot()
    grid = np.unique(np.geomspace(5, budget, 200).round())
    for name, found in curves.items():
        values = np.array([[_at(curve, n) for n in grid] for curve in found])
        low, middle, high = np.quantile(values, [0.25, 0.5, 0.75], axis=0)
        by, _, engine = name.rpartition("+")
        color, line = COLORS[engine], {"": "-", "dp": "--", "beam 32": ":"}[by]
        ax.step(grid, middle, line, where="post", color=color, lw=1.9, label=name)
        ax.fill_between(grid, low, high, step="post", color=color, alpha=0.1, lw=0)
    ax.axhline(TARGET, color="#5F6368", lw=0.9, ls=(0, (4, 3)), zorder=0)
    ax.text(grid[0], TARGET, f" {TARGET}", va="bottom", fontsize=9, color="#5F6368")
    ax.axvline(count / 100, color="#5F6368", lw=0.9, ls=(0, (4, 3)), zorder=0)
    ax.text(count / 100, 0.805, " 1 % of all plans", fontsize=9, color="#5F6368")
    ax.set_xscale("log")
    ax.set_xlim(grid[0], budget)
    ax.set_ylim(0.8, 1.003)
    ticks = [n for n in (5, 10, 20, 50, 100, 200, 400, 800, 1600, 3200, 6400, 16384) if n <= budget]
    ax.set_xticks(ticks, [str(n) for n in ticks])
    ax.minorticks_off()
    ax.set_xlabel("evaluations, calibration counted")
    ax.set_ylabel("hypervolume, share of the true front's")
    ax.set_title(f"{count} step plans of the bundled model: median and quartiles of {len(next(iter(curves.values())))} "
                 "seeds", fontsize=11, loc="left")  # fmt: skip
    ax.spines[["top", "right"]].set_visible(False)
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)


if __name__ == "__main__":
    main()
