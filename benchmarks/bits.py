"""python -m benchmarks.bits: which bits each group of layers gets, chosen in six ways, on the bundled model.

Weights only, 8, 6, 4, 3 or 2 bits per group of layers, mean bits over the searchable weights of at most 3, 4, 5 and
6: uniform, additive DP on scalar errors, Gram search on error vectors (damping 0.5 and 1), the best of these four on
calibration ("proposals", what engine=milp hands out), and NSGA-II that begins with all of them. Sensitivities are
measured five times, with other noise each time; NSGA-II runs with five seeds. Rows are judged on prompts and noise
that nothing was chosen on. Goes on where it was stopped (runs/bits/). Writes JSON, docs/benchmarks/bits.md and
docs/images/benchmark_bits.png.
"""

import argparse
import json
import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from search.config.prompts import read_prompts
from search.engines.base import EngineInputs
from search.engines.milp import milp_rows
from search.engines.nsga2 import Nsga2Engine
from search.evaluate.evaluator import Evaluator
from search.evaluate.memo import Memo
from search.exact.knapsack import gram_search, knapsack_front
from search.models.base import to_schedule
from search.models.pipeline import Pipeline
from search.objectives.drift import Drift
from search.pareto.intervals import bootstrap_interval, paired_difference_interval
from search.profile.count import count_costs
from search.profile.tables import GeneTable
from search.schedule.parts.formats import FORMATS, formats_that_fit, packed_bytes
from search.spaces.bits import BitsSpace
from search.spaces.gene import Gene
from search.testing.models import pixart

SPACE = BitsSpace(("w8", "w6", "w4g128", "w3g128", "w2g64"), elide=False)
LEFT = BitsSpace(("w5",), elide=False)  # a reference at 5 bits; no search may use it
BITS = np.array([FORMATS[name].weight for name in SPACE.formats], dtype=int)  # of a level; full precision has none
BUDGETS = (3, 4, 5, 6)
STEPS, TABLE_STEPS = 20, 10
NOISES = (0, 100, 200, 300, 400)  # first noise seed of each sensitivity table
TABLE_PROMPTS, SEARCH_PROMPTS = 2, 2
SETS = ((2, 3, 4), (3, 4, 6), (4, 6, 8), (2, 3, 4, 6, 8))
MIXES, BATCH = 48, 24
W5 = "uniform w5"
METHODS = ("uniform", "DP", "Gram 0.5", "Gram 1", "proposals", "nsga2")
COLORS = {"uniform": "#9AA0A6", "DP": "#202124", "Gram 0.5": "#0072B2", "Gram 1": "#56B4E9"}
COLORS |= {"proposals": "#009E73", "nsga2": "#D55E00"}

Rows = dict[str, list[np.ndarray]]  # by method: a row, or one for each seed


# What a worker measures


@cache
def _model(steps: int) -> Pipeline:
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    return pixart(steps=steps)


@cache
def _probe(split: str, folder: Path) -> Evaluator:
    calibration, held_out = read_prompts("emoji_calibration.txt"), read_prompts("emoji_held_out.txt")
    steps, prompts, seeds = {
        "table": (TABLE_STEPS, calibration[:TABLE_PROMPTS] * 5, [s + i for s in NOISES for i in range(TABLE_PROMPTS)]),
        "mixes": (TABLE_STEPS, calibration[:TABLE_PROMPTS] * 2, [0, 1, 100, 101]),
        "search": (STEPS, calibration[:SEARCH_PROMPTS], list(range(SEARCH_PROMPTS))),
        "calibration": (STEPS, calibration[:8], list(range(8))),
        "held out": (STEPS, held_out[:16], list(range(10000, 10016))),
    }[split]
    model = _model(steps)
    costs = count_costs(model.denoiser, model.target.tree, steps, model.once)
    memo = Memo(folder / "memo.db")
    return Evaluator(model, prompts, seeds, {"drift": Drift()}, costs, memo, batch=10 if split == "table" else 8)


def _schedule(model: Pipeline, row: Sequence[int]) -> Any:
    """Levels from the most bits down; a row of -1 is w5 everywhere."""
    levels = np.array(row) + 1
    parts = SPACE.decode(levels, model.target) if levels.any() else LEFT.decode(np.ones_like(levels), model.target)
    return to_schedule(model, parts)


def work(task: tuple[str, tuple[int, ...]], folder: Path) -> tuple[Any, float]:
    """What a task measures and the seconds of this core it took: drifts [P] or relative error vectors [P, D]."""
    kind, row = task
    split = "calibration" if kind == "fitted calibration" else "held out" if kind == "fitted held out" else kind
    probe = _probe(split, folder)
    began = time.process_time()
    with torch.no_grad():
        if kind == "table":
            x = np.zeros(len(_genes()), dtype=int)
            x[row[0]] = row[1] + 1  # all else at full precision
            latents = probe.latents(to_schedule(probe.model, SPACE.decode(x, probe.model.target))).flatten(1)
            teacher = probe.teacher.flatten(1)
            return ((latents - teacher) / teacher.norm(dim=1, keepdim=True)).numpy(), time.process_time() - began
        schedule = _schedule(probe.model, row)
        if kind.startswith("fitted"):
            schedule = _probe("calibration", folder).fit(schedule)
        found = probe.values(schedule)["drift"]
    return found, time.process_time() - began


@cache
def _genes() -> list[Gene]:
    """The space's genes without full precision: level 0 has the most bits."""
    return [Gene(g.name, g.levels - 1, g.group) for g in SPACE.genes(_model(STEPS).target)]


@cache
def _shapes() -> list[list[tuple[int, int]]]:
    target = _model(STEPS).target
    return [[target.layers[name] for name in names] for names in SPACE.groups(target).values()]


@cache
def _weights() -> np.ndarray:
    return np.array([sum(a * b for a, b in shapes) for shapes in _shapes()])


def mean_bits(row: np.ndarray) -> float:
    return 5.0 if (row < 0).all() else float(_weights() @ BITS[row] / _weights().sum())


def packed_bits(row: np.ndarray) -> float:
    """With scales and zero points of 16 bits each."""
    names = ["w5" if level < 0 else SPACE.formats[level] for level in row]
    size = sum(
        packed_bytes(formats_that_fit(n, b)[1], a, b) for n, s in zip(names, _shapes(), strict=True) for a, b in s
    )
    return 8 * size / float(_weights().sum())


class Bench:
    """Rows in, drifts per prompt out; nothing is measured twice."""

    def __init__(self, folder: Path, workers: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.known, self.began = folder, {}, time.perf_counter()
        self.file = folder / "seconds.json"
        self.seconds = json.loads(self.file.read_text()) if self.file.exists() else {}
        self.pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))

    def measure(self, kind: str, rows: Sequence[Sequence[int]], title: str = "") -> list[Any]:
        tasks = [(kind, tuple(int(v) for v in row)) for row in rows]
        new = [task for task in dict.fromkeys(tasks) if task not in self.known]
        futures = [self.pool.submit(work, task, self.folder) for task in new]
        for task, future in zip(new, futures, strict=True):
            self.known[task], seconds = future.result()
            self.seconds[title or kind] = self.seconds.get(title or kind, 0) + seconds
        self.file.write_text(json.dumps(self.seconds) + "\n")
        if new:
            print(f"{time.perf_counter() - self.began:5.0f} s  {title or kind}: {len(new)} rows", flush=True)
        return [self.known[task] for task in tasks]

    def vectors(self) -> np.ndarray:
        """Relative errors [noises, genes, levels, prompts * D]; their norms are the RMS drift of the prompts."""
        file = self.folder / "table.npy"
        if not file.exists():
            pairs = [(g, level) for g in range(len(_genes())) for level in range(len(BITS))]
            found = np.array(self.measure("table", pairs))  # [pairs, noises * prompts, D]
            found = found.reshape(len(_genes()), len(BITS), len(NOISES), -1).transpose(2, 0, 1, 3)
            np.save(file, found / TABLE_PROMPTS**0.5)
        return np.load(file)


def table(vectors: np.ndarray) -> GeneTable:
    """[genes, levels, D]; what a gene costs are the bits of all its weights."""
    costs = [(BITS * w).astype(float) for w in _weights()]
    return GeneTable(list(np.linalg.norm(vectors, axis=2).astype(float)), [costs], list(vectors))


def allocate(known: GeneTable) -> tuple[dict[tuple[str, int], np.ndarray], list[float]]:
    """A row by method and budget; and by how much the integer program's sum of squares is off the DP's."""
    rows, off = {}, []
    squares = [e**2 for e in known.errors]
    front = knapsack_front(squares, known.costs[0])
    for budget in BUDGETS:
        limit = float(budget * _weights().sum())
        cost, error, x = [point for point in front if point[0] <= limit + 1e-6][-1]
        rows["DP", budget] = x
        for damping in (0.5, 1):
            rows[f"Gram {damping}", budget] = gram_search(known.vectors, known.costs, x[None], damping)[0]
        solved = milp_rows(known, np.array([[limit]]))[0]
        off.append(sum(s[level] for s, level in zip(squares, solved, strict=True)) / error - 1)
    return rows, off


def uniform(bits: int) -> np.ndarray:
    return np.full(len(_genes()), -1 if bits == 5 else int(np.flatnonzero(bits == BITS)[0]))


def random_mix(rng: np.random.Generator) -> np.ndarray:
    """w4 everywhere and w6 in random groups, as many as a mean of 5 bits allows."""
    row = uniform(4)
    for g in rng.permutation(len(row)):
        raised = row.copy()
        raised[g] = uniform(6)[g]
        row = raised if mean_bits(raised) <= 5 else row
    return row


def evolve(bench: Bench, seeds: np.ndarray, evaluations: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and their drifts on the search's prompts."""
    engine = Nsga2Engine(EngineInputs(_genes(), 2, np.random.default_rng(seed), seeds, worst=np.array([1.0, 16.0])))
    rows, drifts = np.zeros((0, len(_genes())), dtype=np.int64), np.zeros(0)
    while len(rows) < evaluations and len(x := engine.ask(min(BATCH, evaluations - len(rows)))):
        drift = np.array(bench.measure("search", x, "nsga2")).mean(axis=1)
        engine.tell(x, np.stack([drift, [mean_bits(row) for row in x]], axis=1))
        rows, drifts = np.concatenate([rows, x]), np.concatenate([drifts, drift])
    return rows, drifts


def additivity(bench: Bench, vectors: np.ndarray) -> list[dict[str, Any]]:
    """Whether single errors say which of some random mixes is better, on their own noise and on other noise."""
    from scipy.stats import spearmanr

    found = []
    for levels in SETS:
        rng = np.random.default_rng(sum(levels))
        allowed = [int(np.flatnonzero(b == BITS)[0]) for b in levels]
        rows = rng.choice(allowed, size=(MIXES, len(_genes())))
        true = np.square(bench.measure("mixes", rows))  # [mixes, 2 * prompts]
        parts = vectors[0][np.arange(len(_genes())), rows]  # [mixes, genes, D]
        scalar, joint = np.square(parts).sum(axis=(1, 2)), np.square(parts.sum(axis=1)).sum(axis=1)
        predicted = {"scalars": scalar, "vectors": joint, "half": (scalar + joint) / 2}
        entry: dict[str, Any] = {"bits": levels}
        for name, part in (("own", slice(TABLE_PROMPTS)), ("other", slice(TABLE_PROMPTS, None))):
            error = true[:, part].mean(axis=1)
            entry[name] = {key: float(spearmanr(value, error).statistic) for key, value in predicted.items()}
            entry[name]["ratio"] = {key: float(np.median(error / value)) for key, value in predicted.items()}
        found.append(entry)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/bits"))
    parser.add_argument("--figure", type=Path, default=Path("docs/images/benchmark_bits.png"))
    parser.add_argument("--page", type=Path, default=Path("docs/benchmarks/bits.md"))
    parser.add_argument("--evaluations", type=int, default=120)
    parser.add_argument("--repeats", type=int, default=5, help="of nsga2; 0 leaves it out")
    parser.add_argument("--workers", type=int, default=1, help="processes of one thread each")
    given = parser.parse_args()
    torch.set_grad_enabled(False)
    bench = Bench(given.folder, given.workers)
    vectors = bench.vectors()
    solved = [allocate(table(part)) for part in vectors]
    mixes = additivity(bench, vectors)

    rows: dict[tuple[str, int], list[np.ndarray]] = {}
    for budget in BUDGETS:
        rows["uniform", budget] = [uniform(budget)]
        for method in ("DP", "Gram 0.5", "Gram 1"):
            rows[method, budget] = [found[method, budget] for found, _ in solved]
        drawn = [{m: rows[m, budget][i] for m in ("DP", "Gram 0.5", "Gram 1")} for i in range(len(NOISES))]
        options = [[uniform(4 if budget == 5 else budget), *those.values()] for those in drawn]
        means = [np.mean(bench.measure("calibration", some), axis=1) for some in options]
        rows["proposals", budget] = [some[int(m.argmin())] for some, m in zip(options, means, strict=True)]
    rows["random", 5] = [random_mix(np.random.default_rng(seed)) for seed in range(len(NOISES))]

    known = [uniform(int(bits)) for bits in BITS] + [found for found in solved[0][0].values()]
    seeds = np.unique(np.array([*known, rows["random", 5][0]]), axis=0)
    for seed in range(given.repeats):
        x, drifts = evolve(bench, seeds, given.evaluations, seed)
        used = np.array([mean_bits(row) for row in x])
        for budget in BUDGETS:
            best = np.where(used <= budget + 1e-9, drifts, np.inf).argmin()
            rows.setdefault(("nsga2", budget), []).append(x[best])

    results = []
    for (method, budget), some in rows.items():
        entry: dict[str, Any] = {"method": method, "budget": budget, "rows": [row.tolist() for row in some]}
        entry["mean bits"] = [mean_bits(row) for row in some]
        entry["packed bits"] = [packed_bits(row) for row in some]
        fitted = ("fitted calibration", "fitted held out") if method in ("uniform", "proposals") else ()
        for split in ("calibration", "held out", *fitted):
            entry[split] = bench.measure(split, some)
        results.append(entry)
    content = {"results": results, "additivity": mixes, "milp off": [off for _, off in solved], "seeds": len(seeds)}
    evolved = [row for budget in BUDGETS for row in rows.get(("nsga2", budget), [])]
    content["improved"] = sum(not (seeds == row).all(axis=1).any() for row in evolved)
    content |= {"seconds": bench.seconds, "evaluations": given.evaluations, "repeats": given.repeats}
    (given.folder / "results.json").write_text(json.dumps(content) + "\n")
    page = report(content)
    given.page.parent.mkdir(parents=True, exist_ok=True)
    given.page.write_text(page, encoding="utf-8")
    print(page)
    _figure(results, given.figure)


# What is said about it


def _find(results: list[dict[str, Any]], method: str, budget: int) -> dict[str, Any]:
    return next(e for e in results if (e["method"], e["budget"]) == (method, budget))


def _versus(entry: dict[str, Any], base: dict[str, Any], split: str = "held out") -> tuple[float, float, float]:
    """Mean drift over that of a base, less 1, and its 95 % interval over prompts; means over the seeds first."""
    a, b = np.mean(entry[split], axis=0), np.mean(base[split], axis=0)
    low, high = paired_difference_interval(a, b, np.random.default_rng(0))
    return float((a - b).mean() / b.mean()), low / float(b.mean()), high / float(b.mean())


def _spread(values: np.ndarray) -> str:
    """Median and quartiles over seeds of means over prompts [seeds, P]."""
    means = np.mean(values, axis=1)
    low, middle, high = np.quantile(means, [0.25, 0.5, 0.75])
    return f"{middle:.4f}" + (f" ({low:.4f}–{high:.4f})" if len(means) > 1 else "")


def _percent(values: tuple[float, float, float]) -> str:
    middle, low, high = (f"{round(100 * v, 1) + 0:+.1f}" for v in values)
    return f"{middle} % [{low}, {high}]"


def report(content: dict[str, Any]) -> str:
    results = content["results"]
    head = ["mean bits", "method", "bits (packed)", "calibration", "held out", "95 %, prompts", "to uniform, held out"]
    head += ["refitted, held out", "to uniform refitted"]
    lines = [_line(head), "|" + " --- |" * len(head)]
    for budget in BUDGETS:
        there = {e["method"] for e in results if e["budget"] == budget}
        order = [m for m in ("uniform", "random", *METHODS[1:]) if m in there]
        base = _find(results, "uniform", budget)
        for method in order:
            entry = _find(results, method, budget)
            low, high = bootstrap_interval(np.mean(entry["held out"], axis=0), np.random.default_rng(0))
            names = {"uniform": f"uniform w{budget}" + (" *" if budget == 5 else ""), "random": "random w4, w6"}
            cells = [f"≤ {budget}", names.get(method, method)]
            cells += [f"{np.median(entry['mean bits']):.2f} ({np.median(entry['packed bits']):.2f})"]
            cells += [_spread(entry["calibration"]), _spread(entry["held out"]), f"{low:.4f}–{high:.4f}"]
            cells += ["" if method == "uniform" else _percent(_versus(entry, base))]
            cells += [_spread(entry["fitted held out"]) if "fitted held out" in entry else ""]
            cells += [_percent(_versus(entry, base, "fitted held out")) if method == "proposals" else ""]
            lines.append(_line(cells))
    off = np.abs(content["milp off"])
    agree = f"equal in {(off < 1e-6).sum()} of {off.size} cases, largest relative difference {off.max():.1e}"
    seconds = content["seconds"]
    total = f"{sum(seconds.values()) / 60:.0f} minutes of one core: "
    total += ", ".join(f"{name} {value / 60:.1f}" for name, value in seconds.items())
    text = [
        "# Bits per layer: what a search gains over uniform bits",
        "",
        f"`python -m benchmarks.bits`: the bundled model, {STEPS} steps, weights of {len(_genes())} groups of layers "
        f"rounded to {', '.join(SPACE.formats)} (simulated; activations stay). Drift of the final latents, means over "
        "8 calibration and 16 held-out prompts. Mean bits are of the searchable weights, without scales; packed bits "
        "have them. Median (quartiles) over 5 sensitivity tables, for nsga2 over "
        f"{content['repeats']} seeds of the engine; intervals are over prompts, of means over seeds.",
        "",
        f"- Sensitivity: every group at every format alone, {TABLE_STEPS} steps, {TABLE_PROMPTS} prompts, noise seeds "
        f"from {', '.join(map(str, NOISES))}.",
        "- DP: knapsack on squared single errors. Gram: local search on error vectors from there, by damping. "
        "Proposals: the best of uniform, DP and both Grams on the 8 calibration prompts.",
        f"- nsga2: {content['evaluations']} evaluations (drift, mean bits) on {SEARCH_PROMPTS} calibration prompts for "
        f"all budgets at once, from {content['seeds']} seeds: uniform, random, and DP and Grams of the first table; "
        f"its best row within each budget, in {content['improved']} of {len(BUDGETS) * content['repeats']} cases a row "
        "that was not a seed.",
        "- Refitted: the same rows with the solver's table fitted on the 8 calibration prompts.",
        f"- The integer program (`milp_rows`) and the DP have the same sum of squares: {agree}.",
        f"- Measured in {total}.",
        "",
        "![Drift over mean bits](../images/benchmark_bits.png)",
        "",
        *lines,
        "",
        "\\* w5 is not among the formats that the other rows may use.",
        "",
        f"## Do errors of layers add? {MIXES} random mixes per set of bits",
        "",
        f"Spearman rank correlation of predicted and true squared error at {TABLE_STEPS} steps, and the median of true "
        "over predicted. Other noise: the prediction comes from the first table, the truth from other noise seeds.",
        "",
        *_additivity(content["additivity"]),
        "",
    ]
    return "\n".join(text)


def _additivity(mixes: list[dict[str, Any]]) -> list[str]:
    head = ["bits", "sum of squares", "norm of sum", "half of each"]
    head += [f"{name}, other noise" for name in head[1:]] + ["true / sum of squares", "true / norm of sum"]
    lines = [_line(head), "|" + " --- |" * len(head)]
    for entry in mixes:
        cells = [", ".join(map(str, entry["bits"]))]
        cells += [f"{entry[n][key]:.2f}" for n in ("own", "other") for key in ("scalars", "vectors", "half")]
        cells += [f"{entry['own']['ratio'][key]:.2f}" for key in ("scalars", "vectors")]
        lines.append(_line(cells))
    return lines


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _figure(results: list[dict[str, Any]], file: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    there = {e["method"] for e in results}
    for i, method in enumerate(m for m in METHODS if m in there):
        color, shift = COLORS[method], 0.11 * (i - (len(METHODS) - 1) / 2)
        entries = [_find(results, method, budget) for budget in BUDGETS]
        means = [np.mean(e["held out"], axis=1) for e in entries]
        middle = np.array([np.median(m) for m in means])
        reach = np.abs(np.array([np.quantile(m, [0.25, 0.75]) for m in means]).T - middle)
        x = np.array(BUDGETS) + shift
        style = {"color": color, "marker": "os^vD*"[i], "ms": 8 if method == "nsga2" else 5.5, "lw": 1.1}
        style |= {"label": method, "capsize": 2.5, "elinewidth": 1.6}
        left.errorbar(x, middle, reach, ls="", **style)
        if method != "uniform":
            gains = 100 * np.array([_versus(e, _find(results, "uniform", e["budget"])) for e in entries])
            right.errorbar(x, gains[:, 0], np.abs(gains[:, 1:].T - gains[:, 0]), ls="", **style)
    left.set_yscale("log")
    ticks = [0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5]
    low, high = left.get_ylim()
    shown = [t for t in ticks if low <= t <= high]
    left.set_yticks(shown, [f"{t:g}" for t in shown])
    left.minorticks_off()
    left.set_ylabel("drift, held out")
    left.set_title("Median and quartiles over seeds (tables, engine)", fontsize=11, loc="left")
    right.axhline(0, color=COLORS["uniform"], lw=1.5, zorder=0)
    right.set_ylabel("drift to uniform bits, %")
    right.set_title("Mean over seeds, 95 % interval over held-out prompts", fontsize=11, loc="left")
    for ax in (left, right):
        ax.set_xticks(BUDGETS, [f"{b}" + ("\n(uniform: w5)" if b == 5 else "") for b in BUDGETS])
        ax.set_xlabel("mean weight bits, at most")
        ax.grid(axis="y", color="#E8EAED", lw=0.8)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=len(METHODS), frameon=False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)


if __name__ == "__main__":
    main()
