"""python -m benchmarks.joint: searching all spaces together, against each alone, every pair, and one after another.

Every search spends the same number of block executions, its calibration included, and begins from its own proposals.
Hypervolume of drift and bit operations (reference 1 and 1), of the front of each search re-scored on held-out prompts
and noise. `one after another` spends a quarter on timesteps, takes the best of them that is still close to the
teacher, searches the solver on it, and so on through cache and bits; all that it evaluated is its front.

Without `refit`, so that the solver space has something to do; `--refit` runs the same with it.
"""

import argparse
import itertools
import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from hydra.utils import instantiate
from rich.console import Console

from search.config.compose import compose_config, normalise_overrides
from search.config.load import HELD_OUT_SEED
from search.config.settings import Config
from search.evaluate.evaluator import Evaluator
from search.loop.search import Search
from search.objectives.bops import Bops
from search.objectives.drift import Drift
from search.pareto.domination import hypervolume, thin
from search.profile.target import Target
from search.spaces.base import Space
from search.spaces.gene import Gene
from search.spaces.joint import JointSpace

matplotlib.use("Agg")
SPACES = ("timesteps", "solver", "cache", "bits")
CLOSE = 0.15  # drift up to which a stage of `one after another` hands its cheapest schedule on
SCORED = 24  # of each front, on held-out prompts


class Fixed(Space):
    """The genes of one part of a joint space, the others fixed."""

    def __init__(self, joint: JointSpace, key: str, rows: Mapping[str, np.ndarray]) -> None:
        self.joint, self.rows = joint, dict(rows)
        self.part = next(s for s in joint.spaces if s.key == key)
        self.key, self.stage, self.additive = key, self.part.stage, self.part.additive  # type: ignore[misc]

    def genes(self, target: Target) -> list[Gene]:
        return self.part.genes(target)

    def decode(self, x: Sequence[int] | np.ndarray, target: Target) -> Mapping[str, Any]:
        return self.joint.decode(self.joint.join(self.rows | {self.key: np.asarray(x)}, target), target)

    def encode(self, tokens: Mapping[str, Sequence[str]], target: Target) -> np.ndarray | None:
        return self.part.encode(tokens, target)

    def presets(self, target: Target) -> dict[str, np.ndarray]:
        return self.part.presets(target)


def config(spaces: Sequence[str], seed: int, budget: int, refit: bool) -> Config:
    arguments = [f"+space=[{','.join(spaces)}]", "objective=[drift,bops]", f"seed={seed}", f"refit={refit}"]
    limits = ["budget.evaluations=null", f"budget.block_executions={budget}", "tracking.enabled=false", "certify=off"]
    return Config.check(compose_config(normalise_overrides([*arguments, *limits])))


class Prepared:
    """A search after its calibration, to be run with several seeds of the engine: the memo knows what was evaluated."""

    def __init__(self, spaces: Sequence[str], budget: int, refit: bool, console: Console) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.search = Search(config(spaces, 0, budget, refit), console)
        self.search.prepare(Path(self.folder.name))
        self.state = self.search.state

    def run(self, seed: int, space: Space | None = None) -> list[Mapping[str, Any]]:
        """All candidates of one search; `space` decodes instead of the one that was prepared."""
        search = self.search
        start = replace(self.state.inputs, rng=np.random.default_rng(seed))
        engine = instantiate(search.config.engine | {"_partial_": True})(start)
        empty: dict[str, Any] = {"archive": {}, "counted": set(), "halved": {}, "history": []}
        search.state = replace(self.state, engine=engine, inputs=start, **empty)
        kept, search.candidates.space = search.space, space or search.space
        try:
            search.loop()
            archive = list(search.state.archive.values())
            return [a | {"schedule": search.candidates.plain_schedule(a["x"])} for a in archive]
        finally:
            search.candidates.space = kept


class Together:
    """One search in all the given spaces."""

    def __init__(self, spaces: Sequence[str], budget: int, refit: bool, console: Console) -> None:
        self.prepared = Prepared(spaces, budget, refit, console)

    def run(self, seed: int) -> list[Mapping[str, Any]]:
        return self.prepared.run(seed)


class OneAfterAnother:
    """A quarter of the budget for each space, on what the stages before have chosen."""

    def __init__(self, budget: int, refit: bool, console: Console) -> None:
        self.stages = {key: Prepared([key], budget // len(SPACES), refit, console) for key in SPACES}
        self.joint = JointSpace([stage.search.space for stage in self.stages.values()])

    def run(self, seed: int) -> list[Mapping[str, Any]]:
        found: list[Mapping[str, Any]] = []
        chosen: dict[str, np.ndarray] = {}
        for key, stage in self.stages.items():
            archive = stage.run(seed, Fixed(self.joint, key, chosen))
            found += archive
            if near := [a for a in archive if a["scores"][0] <= CLOSE]:
                chosen[key] = min(near, key=lambda a: (a["scores"][1], a["scores"][0]))["x"]
        return found


class HeldOut:
    """Hypervolume of a search's front on prompts and noise that no search has seen."""

    def __init__(self, console: Console) -> None:
        self.search = Search(config(["cache"], 0, 1, False), console)
        self.evaluator: Evaluator | None = None

    def __call__(self, candidates: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
        """On calibration and on held-out prompts."""
        from search.evaluate.memo import Memo
        from search.profile.count import count_costs

        if self.evaluator is None:
            model, target = self.search.model, self.search.model.target
            costs = count_costs(model.denoiser, target.tree, target.steps, model.once)
            prompts = self.search.held_out[:8]
            seeds = [HELD_OUT_SEED + i for i in range(len(prompts))]
            objectives = {"drift": Drift(), "bops": Bops()}
            self.evaluator = Evaluator(model, prompts, seeds, objectives, costs, Memo(Path(":memory:")))
        scores = np.array([a["scores"] for a in candidates])
        front = thin(scores, [1.0, 1.0], SCORED)
        found = [self.evaluator.scorer.minimised(self.evaluator.values(candidates[i]["schedule"])) for i in front]
        return hypervolume(scores, np.ones(2)), hypervolume(np.array(found), np.ones(2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", type=int, default=100_000, help="block executions of each search")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--refit", action="store_true")
    parser.add_argument("--folder", type=Path, default=Path("runs/joint"))
    parser.add_argument("--table", type=Path, default=Path("docs/benchmarks/joint.md"))
    parser.add_argument("--figure", type=Path, default=Path("docs/images/benchmark_joint.png"))
    parser.add_argument("--only", nargs="*", help="names of methods, to share the work between processes")
    given = parser.parse_args()
    torch.set_grad_enabled(False)
    given.folder.mkdir(parents=True, exist_ok=True)
    console = Console(quiet=True)
    held_out = HeldOut(console)
    groups = [SPACES, *itertools.combinations(SPACES, 2), *((s,) for s in SPACES)]
    methods = {"+".join(g): g for g in groups} | {"one after another": ()}
    for name, spaces in methods.items():
        files = {seed: _file(given, name, seed) for seed in range(given.seeds)}
        missing = [seed for seed, file in files.items() if not file.exists()]
        if not missing or (given.only and name not in given.only):
            continue
        arguments = given.budget, given.refit, console
        method = Together(spaces, *arguments) if spaces else OneAfterAnother(*arguments)
        for seed in missing:
            found = method.run(seed)
            calibration, held = held_out(found)
            front = sorted(a["scores"] for a in found)
            content = {"calibration": calibration, "held_out": held, "evaluations": len(found), "scores": front}
            files[seed].write_text(json.dumps(content) + "\n")
            print(
                f"{name:<28} seed {seed}: calibration {calibration:.4f}, held out {held:.4f}, {len(found)}", flush=True
            )
    report(given, list(methods))


def _file(given: argparse.Namespace, name: str, seed: int) -> Path:
    return given.folder / f"{name.replace(' ', '_')}_{'refit_' if given.refit else ''}{seed}.json"


def report(given: argparse.Namespace, methods: Sequence[str]) -> None:
    """Table and figure of what there is."""
    results = {}
    for name in methods:
        files = [file for seed in range(given.seeds) if (file := _file(given, name, seed)).exists()]
        if files:
            results[name] = [json.loads(file.read_text()) for file in files]
    if "+".join(SPACES) not in results:
        return
    joint = [r["held_out"] for r in results["+".join(SPACES)]]
    lines = [
        "# All spaces together, each alone, every pair, one after another",
        "",
        "`python -m benchmarks.joint`: hypervolume of drift and bit operations (reference 1 and 1),",
        f"{given.budget:,} block executions each, calibration counted, refit {given.refit}. Median (range) over",
        "seeds of the engine; held out: the front re-scored on 8 other prompts and other noise.",
        "",
        "![Hypervolumes](../images/benchmark_joint.png)",
        "",
        "| searched | calibration | held out | all together / this | evaluations | seeds |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, runs in sorted(results.items(), key=lambda item: -statistics.median(r["held_out"] for r in item[1])):
        ratio = [a / r["held_out"] for a, r in zip(joint, runs, strict=False) if r["held_out"]]
        cells = [_cell([r["calibration"] for r in runs]), _cell([r["held_out"] for r in runs]), _cell(ratio)]
        lines.append(
            f"| {name} | {' | '.join(cells)} | {statistics.median(r['evaluations'] for r in runs):.0f} | {len(runs)} |"
        )
    given.table.parent.mkdir(parents=True, exist_ok=True)
    given.table.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    _figure(results, given.figure)


def _cell(values: Sequence[float]) -> str:
    if not values:
        return "it saves nothing"
    return f"{statistics.median(values):.3f} ({min(values):.3f}–{max(values):.3f})"


def _figure(results: Mapping[str, Sequence[Mapping[str, Any]]], file: Path) -> None:
    import matplotlib.pyplot as plt

    results = {name: runs for name, runs in results.items() if any(r["held_out"] for r in runs)}
    order = sorted(results, key=lambda name: statistics.median(r["held_out"] for r in results[name]))
    figure, axes = plt.subplots(figsize=(7.2, 0.34 * len(order) + 1.1), layout="constrained")
    for y, name in enumerate(order):
        values = [r["held_out"] for r in results[name]]
        color = "#0072B2" if name == "+".join(SPACES) else "#D55E00" if name == "one after another" else "#5F6368"
        axes.plot([min(values), max(values)], [y, y], color=color, linewidth=3, alpha=0.35, solid_capstyle="round")
        axes.plot(statistics.median(values), y, "o", color=color)
    axes.set_yticks(range(len(order)), order)
    axes.set_xlabel("hypervolume on held-out prompts, median and range")
    axes.grid(axis="x", color="#E8EAED")
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=140)


if __name__ == "__main__":
    main()
