"""python -m benchmarks.throughput [PART ...]: candidates a second, ours against running the stock pipeline for each.

Parts: `ways` runs the same generations of a genetic search in every way, taking turns; `batching` times denoiser calls
of 1 to 64 pictures; `racing` runs a population on 32 prompts to the end and as a race; `replay` times the call of the
pipeline as a search runs it; `spill` runs a population whose states do not fit the device. Bundled pixart, interval
cache space, drift and MACs. Results are kept in runs/throughput; docs/benchmarks/throughput.md is made of all that is
there. With `--json` a line for each part goes to a file, and there is no page.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from search.config.prompts import read_prompts
from search.engines.base import EngineInputs
from search.engines.nsga2 import Nsga2Engine
from search.evaluate.evaluator import Evaluator
from search.evaluate.execute.jobs import Batch, Job
from search.evaluate.execute.partial import PartialRun
from search.evaluate.execute.runner import Runner
from search.evaluate.execute.states import StateCache
from search.evaluate.memo import Memo
from search.models.base import to_schedule
from search.models.loading import quiet
from search.objectives.drift import Drift
from search.objectives.macs import Macs
from search.objectives.psnr import Psnr
from search.pareto.domination import non_dominated
from search.profile.bundled import bundled_model
from search.schedule import Schedule
from search.spaces.cache import CacheSpace
from search.testing.models import pixart

PROMPTS, RACED, POPULATION, TARGET = 8, 32, 24, 5.0
SIZES = (1, 2, 4, 8, 16, 32, 64)
FOLDER, PAGE = Path("runs/throughput"), Path("docs/benchmarks/throughput.md")
Seconds = tuple[float, float]  # wall, CPU


class Bench:
    """The model, the space, and an engine that begins with the published rules."""

    def __init__(self, prompts: int, device: str = "cpu") -> None:
        self.model, self.space = pixart(device=device), CacheSpace()
        self.target, self.costs = self.model.target, self.model.costs()
        self.prompts, self.seeds = read_prompts("emoji_calibration.txt")[:prompts], list(range(prompts))
        presets = np.array(list(self.space.presets(self.target).values()))
        genes = self.space.genes(self.target)
        start = EngineInputs(genes, 2, np.random.default_rng(0), presets, np.ones(2))
        self.engine = Nsga2Engine(start, POPULATION)

    def evaluator(self, shares: bool = True) -> Evaluator:
        """With a memory of its own, or none at all."""
        objectives = {"drift": Drift(), "macs": Macs()}
        memory = Runner(self.model, self.costs, None if shares else StateCache(0, 0))
        given = self.prompts, self.seeds, objectives, self.costs, Memo(Path(":memory:"))
        return Evaluator(self.model, *given, runner=memory)

    def generation(self, count: int) -> tuple[np.ndarray, list[Schedule]]:
        rows = self.engine.ask(count)
        return rows, [to_schedule(self.model, self.space.decode(row, self.target)) for row in rows]


def clocked(call: Callable[[], Any]) -> tuple[Any, Seconds]:
    wall, cpu = time.perf_counter(), time.process_time()
    found = call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return found, (time.perf_counter() - wall, time.process_time() - cpu)


# The ways


class Naive:
    """The stock pipeline for every candidate, its parts clocked one by one."""

    def __init__(self, bench: Bench, evaluator: Evaluator) -> None:
        self.bench, self.model, self.evaluator = bench, bench.model, evaluator
        self.pictures = evaluator.scorer.teacher_images

    def __call__(self, schedule: Schedule) -> tuple[Mapping[str, Seconds], float, float]:
        """Seconds of each part, drift, and the MACs that were counted."""
        _, loading = clocked(self._load)
        latents, calling = clocked(lambda: self._call(schedule))
        pictures, decoding = clocked(lambda: self.evaluator.scorer.decode(latents))
        _, judging = clocked(lambda: Psnr()(pictures, self.pictures))
        macs, counting = clocked(lambda: self._count(schedule))
        drift, scoring = clocked(lambda: float(Drift()(latents, self.evaluator.teacher).mean()))
        parts = {"load": loading, "call": calling, "decode": decoding, "judge": judging, "count": counting}
        return parts | {"score": scoring}, drift, macs

    def _load(self) -> None:
        from diffusers import DiffusionPipeline

        with quiet():
            DiffusionPipeline.from_pretrained(bundled_model("pixart"), torch_dtype=torch.float32)

    def _call(self, schedule: Schedule) -> Tensor:
        with schedule.apply(self.model.pipe):
            return self.model.sample(self.bench.prompts, self.bench.seeds)

    def _count(self, schedule: Schedule) -> float:
        """MACs of one picture's run, by torch's counter of operations."""
        counter = FlopCounterMode(display=False)
        inputs = self.bench.prompts[:1], self.bench.seeds[:1]
        self.model.begin(*inputs)  # the text is encoded
        with schedule.apply(self.model.pipe), counter, sdpa_kernel(SDPBackend.MATH):
            self.model.sample(*inputs)
        return counter.get_total_flops() / 2


def ways(given: argparse.Namespace) -> dict[str, Any]:
    """Generations of children in every way, side by side."""
    bench = Bench(PROMPTS, given.device)
    ours, alone, fitting = bench.evaluator(), bench.evaluator(shares=False), bench.evaluator()
    naive = Naive(bench, ours)
    rows, schedules = bench.generation(POPULATION)
    for evaluator, fit in ((ours, False), (fitting, True)):
        scored = evaluator.evaluate([Job(schedule, fit) for schedule in schedules])
        if evaluator is ours:
            bench.engine.tell(rows, np.array([s.minimised for s in scored]))
    known = set(marked(bench, schedules))
    rounds = []
    for number in range(given.rounds):
        rows, schedules = bench.generation(given.candidates)
        found: dict[str, Any] = {"candidates": len(rows), **sharing(bench, schedules, known)}

        def stock(schedules: Sequence[Schedule] = schedules, found: dict[str, Any] = found) -> None:
            those = [naive(schedule) for schedule in schedules]
            found["parts"] = {k: np.sum([parts[k] for parts, _, _ in those], axis=0).tolist() for k in those[0][0]}
            found["stock"] = [[drift, macs] for _, drift, macs in those]

        def one_by_one(schedules: Sequence[Schedule] = schedules, found: dict[str, Any] = found) -> None:
            _, found["alone"] = clocked(lambda: [alone.evaluate([Job(schedule)]) for schedule in schedules])

        def together(schedules: Sequence[Schedule] = schedules, found: dict[str, Any] = found) -> None:
            before = ours.runner.executed
            scored, found["ours"] = clocked(lambda: ours.evaluate([Job(schedule) for schedule in schedules]))
            found["executed"] = ours.runner.executed - before
            found["scores"] = [s.minimised for s in scored]
            _, found["again"] = clocked(lambda: ours.evaluate([Job(schedule) for schedule in schedules]))

        def fitted(schedules: Sequence[Schedule] = schedules, found: dict[str, Any] = found) -> None:
            jobs = [Job(schedule, fit=True) for schedule in schedules]
            _, found["fitted"] = clocked(lambda: fitting.evaluate(jobs))

        turns = [stock, one_by_one, together, fitted]
        for turn in turns[number % len(turns) :] + turns[: number % len(turns)]:
            turn()
        scores = np.array(found["scores"])
        teacher = bench.costs.teacher_macs
        found["differ"] = float(np.abs(scores - np.array(found.pop("stock")) / [1, teacher]).max())
        known |= set(marked(bench, schedules))
        bench.engine.tell(rows, scores)
        rounds.append(found)
        print(json.dumps(found), flush=True)
    return {"rounds": rounds, "machine": machine()}


def marked(bench: Bench, schedules: Sequence[Schedule]) -> dict[int, float]:
    """Block executions of every distinct beginning of these runs, its last step alone."""
    batch = Batch(tuple(bench.prompts), tuple(bench.seeds))
    found: dict[int, float] = {}
    for schedule in schedules:
        steps = zip(Job(schedule).prefix_ids(batch), bench.costs.macs_by_step(schedule), strict=True)
        found |= {mark: macs / bench.costs.block_macs * len(batch) for mark, macs in steps}
    return found


def sharing(bench: Bench, schedules: Sequence[Schedule], known: set[int]) -> dict[str, float]:
    """Block executions of a generation: each run whole, shared within it, and shared with all before it too."""
    own = marked(bench, schedules)
    whole = sum(sum(bench.costs.macs_by_step(s)) for s in schedules) / bench.costs.block_macs * len(bench.prompts)
    return {
        "unshared": whole,
        "within": sum(own.values()),
        "across": sum(blocks for mark, blocks in own.items() if mark not in known),
    }


# Batches


@torch.no_grad()
def batching(given: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds a picture of a denoiser call, by pictures in it: sizes take turns."""
    model = pixart(device=given.device)
    inputs = {b: (["red apple"] * b, range(b)) for b in given.sizes}
    times: dict[int, list[Seconds]] = {b: [] for b in given.sizes}
    for number in range(given.repeats + 1):
        for b, (prompts, seeds) in inputs.items():
            args, named = model.begin(prompts, seeds)
            calls = max(1, 8 // b)
            _, spent = clocked(lambda a=args, k=named, n=calls: [model.denoiser(*a, **k) for _ in range(n)])
            if number:  # the first round warms up
                times[b].append((1e3 * spent[0] / b / calls, 1e3 * spent[1] / b / calls))
    return {"times": times, "machine": machine()}


# Replay


@torch.no_grad()
def replay(given: argparse.Namespace) -> dict[str, Any]:
    """Seconds of a call of the pipeline up to its latents: bare, watched, step by step, and its second half alone."""
    bench = Bench(given.prompts, given.device)
    model, prompts, seeds = bench.model, bench.prompts, bench.seeds
    teacher = to_schedule(model, {})
    run, states = PartialRun(model, prompts, seeds, bench.costs), []
    run.follow(run.begin(), teacher, on_state=states.append)
    half = states[model.target.steps // 2 - 1]
    ways: dict[str, Callable[[], Any]] = {
        "bare": lambda: model.stock(prompts, seeds),
        "watched": lambda: model.sample(prompts, seeds),
        "step by step": lambda: run.follow(run.begin(), teacher),
        "second half": lambda: run.follow(half, teacher),
    }
    times: dict[str, list[Seconds]] = {name: [] for name in ways}
    for number in range(given.repeats + 1):
        for name, way in ways.items():
            _, spent = clocked(way)
            if number:  # the first round warms up
                times[name].append(spent)
    return {"times": times, "steps": model.target.steps, "machine": machine()}


# Spill


def spill(given: argparse.Namespace) -> dict[str, Any]:
    """Seconds of a generation whose states stay on the device, are moved to host memory, or are dropped."""
    bench = Bench(given.prompts, given.device)
    _, schedules = bench.generation(given.candidates)
    batch, jobs = Batch(tuple(bench.prompts), tuple(bench.seeds)), [Job(schedule) for schedule in schedules]
    found: dict[str, dict[str, Any]] = {}
    held: list[Tensor] = []
    for name, limits in {"held": (2**33, 0), "moved": (2**20, 2**35), "dropped": (2**20, 0)}.items():
        runner, latents = Runner(bench.model, bench.costs, StateCache(*limits)), [torch.empty(0)] * len(jobs)
        run = lambda r=runner, kept=latents: r.run(batch, jobs, lambda i, o: kept.__setitem__(i, o.latents))  # noqa: E731
        _, spent = clocked(run)
        held = held or latents
        equal = all(map(torch.equal, latents, held))
        found[name] = {"seconds": spent, "block executions": runner.executed, "equal": equal}
        found[name]["far bytes"] = runner.memory.far_bytes
    return {"ways": found, "machine": machine()}


# Races


def racing(given: argparse.Namespace) -> dict[str, Any]:
    """Generations against the front before them, and then to the end: what a race saves, and whom it loses."""
    bench, found = Bench(RACED, given.device), []
    evaluator = bench.evaluator()
    rows, schedules = bench.generation(POPULATION)
    archive = dict(zip(schedules, [s.minimised for s in evaluator.evaluate([Job(s) for s in schedules])], strict=True))
    bench.engine.tell(rows, np.array(list(archive.values())))
    for _ in range(given.rounds):
        rows, schedules = bench.generation(given.candidates)
        jobs = [Job(schedule) for schedule in schedules]
        rivals = [list(archive)[i] for i in np.flatnonzero(non_dominated(np.array(list(archive.values()))))]
        start = evaluator.block_executions
        raced, in_race = clocked(lambda jobs=jobs, rivals=rivals: evaluator.evaluate(jobs, rivals))
        between = evaluator.block_executions
        whole, after = clocked(lambda jobs=jobs: evaluator.evaluate(jobs))  # those that lost run to the end
        told, truth = (np.array([s.minimised for s in those]) for those in (raced, whole))
        archive |= dict(zip(schedules, truth.tolist(), strict=True))
        front = non_dominated(np.array(list(archive.values())))
        names = [schedule for schedule, best in zip(archive, front, strict=True) if best]
        lost = [schedule for schedule, s in zip(schedules, raced, strict=True) if not s.values]
        found.append(
            {
                "candidates": len(jobs),
                "rivals": len(rivals),
                "raced": between - start,
                "whole": evaluator.block_executions - start,
                "seconds": [in_race, after],
                "lost": len(lost),
                "of_front": sum(schedule in schedules for schedule in names),
                "lost_of_front": sum(schedule in names for schedule in lost),
                "spearman": spearman(told[:, 0], truth[:, 0]),
                "prompts": float(np.mean([s.prompts for s in raced])),
            }
        )
        print(json.dumps(found[-1]), flush=True)
        bench.engine.tell(rows, truth)
    return {"rounds": found, "machine": machine()}


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    from scipy.stats import rankdata

    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])


def machine() -> str:
    return f"{torch.get_num_threads()} thread(s), {platform.machine()}, torch {torch.__version__}, float32"


# The page

LEVERS = {  # what a candidate costs in each way: parts of the stock pass, or one of ours
    "everything anew: load, stock call, pictures, counted MACs": ("load", "call", "decode", "judge", "count"),
    "pipeline loaded once": ("call", "decode", "judge", "count"),
    "and latents scored, nothing decoded": ("call", "score", "count"),
    "and analytic MACs": ("call", "score"),
    "our loop, prompts encoded once, one by one": ("alone",),
    "**ours: the population as a prefix tree**": ("ours",),
    "ours with fitted solvers, as a search runs": ("fitted",),
    "ours, when an earlier search has run them": ("again",),
}
OURS, *AFTER = list(LEVERS)[-3:]


def spent(found: Mapping[str, Any], parts: Sequence[str], cpu: bool) -> float:
    """Seconds a candidate."""
    return sum((found["parts"][p] if p in found["parts"] else found[p])[cpu] for p in parts) / found["candidates"]


def cell(values: Sequence[float] | np.ndarray, form: str = ".3g") -> str:
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return f"{middle:{form}} ({low:{form}}–{high:{form}})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _of(part: float, whole: float) -> str:
    return f"{part:,.0f} ({part / whole:.0%})"


def page(results: Mapping[str, Any]) -> str:
    lines = [
        "# Candidates a second",
        "",
        "`python -m benchmarks.throughput` writes this page. Bundled pixart, 20 steps, interval cache space; drift and "
        "MACs. Medians (quartiles) of rounds in which all take turns. CPU time of the process is given because wall "
        "time depends on what else the machine does. Nothing was timed on a GPU.",
    ]
    if "ways" in results:
        lines += _ways_page(results["ways"])
    if "batching" in results:
        lines += _batching_page(results["batching"])
    if "racing" in results:
        lines += _racing_page(results["racing"])
    return "\n".join(lines) + "\n"


def _ways_page(result: Mapping[str, Any]) -> list[str]:
    rounds = result["rounds"]
    times = {
        name: np.array([[spent(r, parts, cpu) for cpu in (0, 1)] for r in rounds]) for name, parts in LEVERS.items()
    }
    own = times[OURS]
    ratios = {name: np.median(t / own, axis=0) for name, t in times.items()}
    rows, before = [], None
    for name, t in times.items():
        rates = [_number(1 / float(np.median(t[:, cpu]))) for cpu in (1, 0)]
        brought = "" if before is None or name in AFTER else cell(before[:, 1] / t[:, 1])
        both = [cell((t / own)[:, cpu]) for cpu in (1, 0)]
        rows.append(f"| {name} | {cell(t[:, 1])} | {' | '.join([*rates, brought, *both])} |")
        before = t
    naive = list(LEVERS)[:2]
    verdicts = [
        f"{ratios[name][1]:.1f} by CPU time and {ratios[name][0]:.1f} by wall time against "
        f"{'everything anew' if name == naive[0] else 'a pipeline that is loaded once'}"
        for name in naive
    ]
    met = ["met" if ratios[name][1] >= TARGET else "missed" for name in naive]
    shared = [
        f"| {i + 1} | {r['candidates']} | {r['unshared']:,.0f} | {_of(r['within'], r['unshared'])} "
        f"| {_of(r['across'], r['unshared'])} | {r['executed']:,.0f} |"
        for i, r in enumerate(rounds)
    ]
    differ = max(r["differ"] for r in rounds)
    return [
        "",
        "## Ours against the stock pipeline for each candidate",
        "",
        f"{len(rounds)} generations of NSGA-II that begins with the published rules, {PROMPTS} prompts in one batch, "
        f"{result['machine']}. All ways run the same candidates with the same prompts and noise; between their scores, "
        f"drift of stock latents and counted MACs against ours, the largest difference is {differ:.1e}.",
        "",
        f"Target: at least {TARGET:.0f} times as many candidates a second. Measured: {verdicts[0]} ({met[0]}); "
        f"{verdicts[1]} ({met[1]}).",
        "",
        "| a candidate costs | CPU s | a CPU second | a second of wall time | brought by this lever, CPU "
        "| this / ours, CPU | this / ours, wall |",
        "|---|---:|---:|---:|---:|---:|---:|",
        *rows,
        "",
        "Up to ours, every row leaves out one thing more. Loading is what it takes in a process that has imported "
        "everything; MACs are counted in a run of one picture. One by one, values are kept as in the tree, and nobody "
        "goes on from them. What sharing saves depends on what the candidates of a generation have in common, and with "
        "those before them:",
        "",
        "| generation | candidates | block executions, each run whole | shared within the generation "
        "| and with all before it | executed |",
        "|---|---:|---:|---:|---:|---:|",
        *shared,
    ]


def _batching_page(result: Mapping[str, Any]) -> list[str]:
    times = {int(b): np.array(t) for b, t in result["times"].items()}
    rows = [f"| {b} | {cell(t[:, 1], '.1f')} | {cell(t[:, 0], '.1f')} |" for b, t in times.items()]
    middle = {b: float(np.median(t[:, 1])) for b, t in times.items()}
    best = min(middle, key=lambda b: middle[b])
    return [
        "",
        "## Does batching a population pay?",
        "",
        "A call of the denoiser by the number of pictures in it (two rows each, for guidance), "
        f"{result['machine']}, {len(next(iter(times.values())))} rounds:",
        "",
        "| pictures in a call | CPU ms a picture | wall ms a picture |",
        "|---:|---:|---:|",
        *rows,
        "",
        f"A search runs {PROMPTS} prompts in one call. If all candidates of a population shared every call, the most "
        f"that is left to gain is {middle[PROMPTS] / middle[best]:.2f} times (at {best} pictures), and they would have "
        "to compute the same nodes at the same steps: calls are not batched over candidates. Not measured on a GPU; "
        "there `prompts.batch=` is what to raise first.",
    ]


def _racing_page(result: Mapping[str, Any]) -> list[str]:
    rows = [
        f"| {i + 1} | {r['candidates']} | {r['rivals']} | {r['whole']:,.0f} | {_of(r['raced'], r['whole'])} "
        f"| {r['prompts']:.1f} | {r['lost']} | {r['lost_of_front']} of {r['of_front']} "
        f"| {r['spearman']:.3f} |"
        for i, r in enumerate(result["rounds"])
    ]
    return [
        "",
        "## Races",
        "",
        f"Generations on {RACED} prompts in batches of {PROMPTS}: against the front before them, and then all to the "
        "end. Block executions are shared in both cases. The true front is that of all candidates so far, to the end. "
        f"The ratios above are for {PROMPTS} prompts, one batch, without races.",
        "",
        "| generation | candidates | rivals | block executions to the end | raced | prompts a candidate | left early "
        "| of them on the true front | rank correlation of drifts told |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
        *rows,
    ]


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "ways": ways,
    "batching": batching,
    "racing": racing,
    "replay": replay,
    "spill": spill,
}
ON_THE_PAGE = ("ways", "batching", "racing")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; all of them. page: none of them")
    parser.add_argument("--candidates", type=int, default=POPULATION, help="of a generation")
    parser.add_argument("--rounds", type=int, default=5, help="generations")
    parser.add_argument("--repeats", type=int, default=9, help="of each batch")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--prompts", type=int, default=PROMPTS, help="of replay and spill")
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES, help="pictures in a call, of batching")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if unknown := sorted(set(given.parts) - {*PARTS, "page"}):
        parser.error(f"there is no part {unknown[0]!r}; choose from {', '.join(PARTS)}")
    torch.set_grad_enabled(False)
    torch.set_num_threads(given.threads)
    if given.json:
        for name in given.parts or PARTS:
            line = json.dumps({"part": name, **PARTS[name](given)})
            with given.json.open("a") as file:
                file.write(line + "\n")
        return
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in (part for part in given.parts or ON_THE_PAGE if part in PARTS):
        (FOLDER / f"{name}.json").write_text(json.dumps(PARTS[name](given)) + "\n")
    files = {name: FOLDER / f"{name}.json" for name in ON_THE_PAGE}
    PAGE.write_text(page({name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}))
    print(PAGE.read_text())


if __name__ == "__main__":
    main()
