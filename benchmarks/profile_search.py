"""python -m benchmarks.profile_search [OVERRIDE ...]: where the time of a search goes, and how soon it has a front.

Runs `python -m search +space=cache model=pixart` in this process, MLflow included, into a folder that is thrown away,
with clocks around the kinds of work below. Every moment of the main thread is charged to the innermost kind that it is
in; what the denoiser's forward calls (hooks of an applied schedule) is the denoiser's. Wall time suffers from whatever
else the machine does, so CPU time of the process stands beside it. Writes docs/benchmarks/profile.md.
"""

import time

BEGAN = time.perf_counter()  # before anything is imported

import argparse  # noqa: E402
import bisect  # noqa: E402
import functools  # noqa: E402
import importlib  # noqa: E402
import importlib._bootstrap  # noqa: E402
import json  # noqa: E402
import platform  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
from collections import Counter, defaultdict  # noqa: E402
from collections.abc import Callable, Iterator, Mapping, Sequence  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

JOB = ["+space=cache", "model=pixart"]
PHASES = ("start", "prepare", "search", "held-out", "timing", "report")
DENOISER, REST = "denoiser's forward", "rest"
SHARE, FIRST, SECONDS = 0.9, 0.95, 60  # the targets
PAGE, DATA = Path("docs/benchmarks/profile.md"), Path("runs/profile/profile.json")

# What is clocked: a class's methods (of all its subclasses) or a module's functions.
CLOCKED = {
    "guidance, solver and its fit": [
        "search.models.base:Model.advance begin",
        "search.evaluate.fit.solver:Fitter.solver",
    ],
    "applying and removing schedules": ["search.schedule.apply.handle:Handle.__init__ remove"],
    "states that runs go on from": [
        "search.schedule.apply.handle:Handle.snapshot restore",
        "search.evaluate.execute.states:States.put get",
    ],
    "schedules: decoding, digests, keys": [
        "search.spaces.base:Space.decode encode presets",
        "search.loop.candidates:to_schedule",
        "search.schedule.schedule:Schedule.from_dict to_dict digest plan with_sampler _replace",
        "search.evaluate.fit.solver:Fitter.prior fitted",
        "search.evaluate.execute.prefix:path marks needs",
        "search.profile.costs:Costs.macs",
    ],
    "engine": ["search.engines.base:Engine.ask tell __init__"],
    "calibration outside of the denoiser": [
        "search.models.base:Model.costs",
        "search.loop.run:_with_latency",
        "search.calibrate.propose.proposals:Proposals.seeds presets prior initial_rows",
        "search.calibrate.tables:MeasuredTables.drifts weights scales",
    ],
    "memo and checkpoint": ["search.evaluate.memo:Memo.get put latents keep", "search.loop.state:SearchState.save"],
    "text encoding": ["search.models.base:Model.encode noise"],
    "decoding to pictures": ["search.models.base:Model.decode"],
    "scores and their intervals": [
        "search.objectives.base:Quality.__call__",
        "search.evaluate.scoring:Scorer._measure",
        "search.pareto.domination:bootstrap_interval hypervolume non_dominated",
    ],
    "files and figures": ["search.loop.finish:write_result"],
    "MLflow": ["search.tracking.writing:log"],
    "loading the pipeline": ["search.models.loading:load"],
}


class Meter:
    """Wall and CPU seconds by phase and kind, and calls by kind."""

    def __init__(self) -> None:
        self.spent: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0.0])
        self.calls: Counter[str] = Counter()
        self.phase, self.stack = PHASES[0], [REST]
        self.last = 0.0, 0.0
        self.cover: set[str] = set()  # kinds to which all that they call is charged

    def lap(self) -> None:
        """Charge what has passed to what was going on."""
        wall, cpu = now()
        spent = self.spent[self.phase, self.stack[-1]]
        spent[0] += wall - self.last[0]
        spent[1] += cpu - self.last[1]
        self.last = wall, cpu

    def clocked(self, function: Callable, kind: str) -> Callable:
        """The function with its time charged to a kind."""

        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if self.stack[-1] in self.cover:
                return function(*args, **kwargs)
            self.lap()
            self.calls[kind] += 1
            self.stack.append(kind)
            try:
                return function(*args, **kwargs)
            finally:
                self.lap()
                self.stack.pop()

        return wrapper

    def phased(self, function: Callable, phase: str, after: Callable[..., None] = lambda *args: None) -> Callable:
        """The function as a phase of its own; `after` is called with its arguments."""

        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            self.lap()
            before, self.phase = self.phase, phase
            try:
                found = function(*args, **kwargs)
                after(*args)
                return found
            finally:
                self.lap()
                self.phase = before

        return wrapper

    def install(self) -> None:
        """Put the clocks of `CLOCKED` where these names are, in all modules that have imported them."""
        for kind, places in CLOCKED.items():
            for place in places:
                module, _, names = place.partition(":")
                owner: Any = importlib.import_module(module)
                if "." in names:
                    name, _, names = names.partition(".")
                    for cls in _family(getattr(owner, name)):
                        for method in names.split():
                            self._method(cls, method, kind)
                else:
                    for name in names.split():
                        _replace(getattr(owner, name), self.clocked(getattr(owner, name), kind))
        self.cover |= {DENOISER, "imports", "MLflow", "files and figures", "loading the pipeline"}

    def _method(self, cls: type, name: str, kind: str) -> None:
        found = vars(cls).get(name)
        if found is None or getattr(found, "__isabstractmethod__", False):
            return
        if isinstance(found, functools.cached_property):
            found.func = self.clocked(found.func, kind)
        elif isinstance(found, staticmethod | classmethod):
            setattr(cls, name, type(found)(self.clocked(found.__func__, kind)))
        else:
            setattr(cls, name, self.clocked(found, kind))


def _family(cls: type) -> Iterator[type]:
    """A class and all that are made of it, each once."""
    seen, left = set(), [cls]
    while left:
        if (one := left.pop()) not in seen:
            seen.add(one)
            left += one.__subclasses__()
            yield one


def _replace(function: Callable, by: Callable) -> None:
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "search":
            for key, value in list(vars(module).items()):
                if value is function:
                    setattr(module, key, by)


class Profile:
    """One search under the clocks."""

    def __init__(self, overrides: Sequence[str]) -> None:
        self.meter = Meter()
        self.front: list[dict[str, float]] = []  # after every generation
        self.told: list[tuple[float, float, list[float]]] = []  # of every candidate: wall and CPU seconds, scores
        self.loads = 0
        bootstrap: Any = importlib._bootstrap
        bootstrap._find_and_load = self.meter.clocked(bootstrap._find_and_load, "imports")
        self.meter.cover.add("imports")
        self.meter.stack[0] = "imports"  # the interpreter and this file
        self.meter.lap()
        self.meter.stack[0] = REST

        from search.config.compose import compose_config, normalise_overrides
        from search.config.settings import Config

        self.config = Config.check(compose_config(normalise_overrides(list(overrides))))
        parts = [self.config.engine, self.config.model, *self.config.space.values(), *self.config.objective.values()]
        for part in parts:  # so that their classes are there when the clocks are put in
            importlib.import_module(part["_target_"].rpartition(".")[0])
        self._install()

    def run(self) -> Any:
        from search.loop.run import run

        found = run(self.config)
        self.meter.lap()
        return found

    def _install(self) -> None:
        from diffusers import DiffusionPipeline

        from search.calibrate import timing
        from search.evaluate.evaluator import Evaluator
        from search.loop import finish, run
        from search.tracking import writing

        def counted(cls: Any, *args: Any, **kwargs: Any) -> Any:
            self.loads += 1
            return load(cls, *args, **kwargs)

        load = DiffusionPipeline.from_pretrained.__func__
        DiffusionPipeline.from_pretrained = classmethod(counted)
        meter, search = self.meter, run.Search
        meter.install()
        search.__init__ = meter.phased(search.__init__, "start", self._loaded)  # type: ignore[method-assign]
        search.prepare = meter.phased(search.prepare, "prepare")  # type: ignore[method-assign]
        search.loop = meter.phased(search.loop, "search")  # type: ignore[method-assign]
        search._close_generation = meter.phased(search._close_generation, "search", self._note)  # type: ignore
        scored = Evaluator._scored

        def stamped(*args: Any) -> Any:
            found = scored(*args)
            if meter.phase == "search":
                self.told.append((*now(), found.minimised))
            return found

        Evaluator._scored = stamped  # type: ignore[method-assign]
        finish.collect_result = meter.phased(finish.collect_result, "held-out")
        _replace(timing.time_schedules, meter.phased(timing.time_schedules, "timing"))
        finish.write_result = meter.phased(finish.write_result, "report")
        writing.log_result = meter.phased(writing.log_result, "report")

    def _loaded(self, search: Any, *_: Any) -> None:
        self.search, cls = search, type(search.model.denoiser)
        cls.__call__ = self.meter.clocked(cls.__call__, DENOISER)

    def _note(self, search: Any, *_: Any) -> None:
        last = search.state.history[-1]
        known = {key: last[key] for key in ("evaluations", "block_executions", "hypervolume", "front")}
        self.front.append(known | dict(zip(("wall", "cpu"), now(), strict=True)))

    def first(self) -> dict[str, float]:
        """The earliest moment at which what was scored had `FIRST` of the final hypervolume."""
        target = FIRST * self.front[-1]["hypervolume"]
        count = bisect.bisect_left(range(1, len(self.told)), True, key=lambda n: self._hypervolume(n) >= target)
        wall, cpu, _ = self.told[count]
        return {"candidates": count + 1, "wall": wall, "cpu": cpu, "hypervolume": self._hypervolume(count + 1)}

    def _hypervolume(self, count: int) -> float:
        from search.loop.history import scaled_hypervolume

        return scaled_hypervolume(
            [told for _, _, told in self.told[:count]], self.search.objectives, self.search.state.costs
        )


def now() -> tuple[float, float]:
    """Wall and CPU seconds since the process began."""
    return time.perf_counter() - BEGAN, time.process_time()


def report(profile: Profile, threads: int) -> dict[str, Any]:
    """What was measured, as plain data."""
    meter, last = profile.meter, profile.front[-1]
    first = next(row for row in profile.front if row["hypervolume"] >= FIRST * last["hypervolume"])
    return {
        "threads": threads,
        "loads": profile.loads,
        "calls": dict(meter.calls),
        "spent": [[phase, kind, *spent] for (phase, kind), spent in meter.spent.items()],
        "last": last,
        "first": first,  # the earliest generation
        "candidate": profile.first(),
        "machine": f"{platform.machine()}, Python {platform.python_version()}, torch {_torch()}",
    }


def _torch() -> str:
    import torch

    return torch.__version__


class Table:
    """Shares of the wall time by kind and phase, and seconds."""

    def __init__(self, found: Mapping[str, Any]) -> None:
        self.found = found
        self.phases = [phase for phase in PHASES if self.spent(phase)]
        self.kinds = sorted({kind for _, kind, *_ in found["spent"]}, key=lambda kind: -self.spent(kind=kind))

    def spent(self, phase: str | None = None, kind: str | None = None, cpu: bool = False) -> float:
        rows = self.found["spent"]
        return sum(row[2 + cpu] for row in rows if phase in (None, row[0]) and kind in (None, row[1]))

    def share(self, phase: str | None = None, cpu: bool = False) -> float:
        """The denoiser's share."""
        return self.spent(phase, DENOISER, cpu) / max(self.spent(phase, cpu=cpu), 1e-9)

    def lines(self) -> list[str]:
        whole, calls = self.spent(), self.found["calls"]
        lines = [
            f"| share of wall time | {' | '.join(self.phases)} | in all | wall s | CPU s | calls |",
            "|---|" + "---:|" * (len(self.phases) + 4),
        ]
        for kind in [*self.kinds, None]:
            cells = [_percent(self.spent(phase, kind) / whole) for phase in self.phases]
            ours = [f"**{_percent(self.spent(None, kind) / whole)}**", f"{self.spent(None, kind):.1f}"]
            ours += [f"{self.spent(None, kind, True):.1f}", f"{calls[kind]:,}" if kind in calls else ""]
            lines.append(f"| {kind or 'all'} | {' | '.join(cells + ours)} |")
        for name, cpu in (("wall", False), ("CPU", True)):
            cells = [_percent(self.share(phase, cpu)) for phase in self.phases]
            lines.append(
                f"| *denoiser's share of the {name} time* | {' | '.join(cells)} "
                f"| **{_percent(self.share(cpu=cpu))}** | | | |"
            )
        return lines


def page(found: Mapping[str, Any]) -> str:
    table, last, first, candidate = Table(found), found["last"], found["first"], found["candidate"]
    whole, share = table.spent(), table.share()
    once = "one pipeline load" if found["loads"] == 1 else f"{found['loads']} pipeline loads"
    return "\n".join(
        [
            "# Where the time of a search goes",
            "",
            "`python -m benchmarks.profile_search` writes this page: `python -m search +space=cache model=pixart` in "
            f"one process, MLflow included, in an empty folder; {last['evaluations']} evaluations, {found['threads']} "
            f"thread(s), {found['machine']}, no GPU. One run. Every moment is charged to the innermost kind of work; "
            "the denoiser's forward includes the hooks of the applied schedule. Wall time depends on what else the "
            "machine does, so CPU time of the process stands beside it (the two should be alike with one thread: here "
            f"wall time was {whole / table.spent(cpu=True):.2f} times as long).",
            "",
            f"Target: {SHARE:.0%} of the wall time inside the denoiser's forward. Measured: {_percent(share)} of the "
            f"wall time, {_percent(table.share(cpu=True))} of the CPU time in all ({_verdict(share >= SHARE)}); "
            f"{_percent(table.share('search'))} and {_percent(table.share('search', True))} of the search itself. "
            f"The process made {once} (target: no more than one).",
            "",
            *table.lines(),
            "",
            "Start: imports and the pipeline. Prepare: teacher, cost tables, calibration. Held-out: front and "
            "published rules on held-out prompts. Timing: their latencies, one picture at a time, and the latency "
            "table. Report: files, figures, MLflow, which makes its database on first use.",
            "",
            "## Time to the first usable front",
            "",
            f"Hypervolume of drift and MACs (calibration prompts, reference 1 and 1) at the end: "
            f"{last['hypervolume']:.4f}. Target: {FIRST:.0%} of it within {SECONDS} s from the start of the process. "
            f"Measured: {candidate['wall']:.0f} s of wall time, {candidate['cpu']:.0f} s of CPU time "
            f"({_verdict(candidate['wall'] <= SECONDS)}), when {candidate['candidates']} candidates were scored "
            f"({candidate['hypervolume']:.4f}). A search that is stopped keeps whole generations: the first one to "
            f"have that much ended after {first['wall']:.0f} s of wall time, {first['cpu']:.0f} s of CPU time, with "
            f"{first['evaluations']:.0f} evaluations and {first['hypervolume']:.4f} "
            f"({_verdict(first['wall'] <= SECONDS)}).",
        ]
    )


def _verdict(met: bool) -> str:
    return "met" if met else "missed"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0.0005 else "0"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="of the search, as for python -m search")
    parser.add_argument("--evaluations", type=int, help="of the search; as many as by default")
    parser.add_argument("--threads", type=int, help="of torch; as many as it likes")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as runs:
        limits = [f"budget.evaluations={given.evaluations}"] if given.evaluations else []
        limits += [f"compute.threads={given.threads}"] if given.threads else []
        profile = Profile([*JOB, f"runs={runs}", *limits, *given.overrides])
        profile.run()
    import torch

    found = report(profile, torch.get_num_threads())
    DATA.parent.mkdir(parents=True, exist_ok=True)
    DATA.write_text(json.dumps(found) + "\n", encoding="utf-8")
    PAGE.write_text(page(found) + "\n", encoding="utf-8")
    print(page(found))


if __name__ == "__main__":
    main()
