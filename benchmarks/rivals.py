"""python -m benchmarks.rivals: searched schedules beside the caches that a user would install instead.

    python -m benchmarks.rivals --run runs/… --prompts 24 --out rivals.json

For each run folder of a finished search, on prompts and noise that no search saw: the schedules of its front within
each limit on MACs; diffusers' First Block Cache, MagCache, TaylorSeer, PAB and FasterCache; cache-dit's DBCache and
SCM, with and without its Taylor calibrator; DeepCache on U-Nets; the published rules and fewer steps as the search
reports them. Each tool is tried over a grid, and its best setting is chosen on the very prompts that are reported,
which is in its favour; ours is chosen by its drift on the calibration prompts of its own search. Rules and fewer steps
are also run with their solvers fitted like ours, and ours without the fit. MACs are those of the denoiser's layers,
counted while they run; times are ratios to the teacher's in the same rounds, one picture at a time.
"""

import argparse
import contextlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.certificates import new_prompts
from benchmarks.rival_caches import Rival, forget, rivals
from search.calibrate.timing import time_call
from search.config.load import model_from_config, prompts_from_config
from search.config.settings import Config
from search.evaluate.fit.solver import Fitter
from search.models.base import Model
from search.objectives.drift import Drift
from search.objectives.psnr import Psnr
from search.pareto.intervals import paired_difference_interval, paired_ratio_interval
from search.results.result import FITTED, Entry, Result
from search.schedule import Schedule
from search.schedule.model.layers import is_layer, shape_of

LIMITS = (0.5, 0.34, 0.25)  # shares of the teacher's MACs
ROOM = 0.01  # above a limit: every second step of 20 is 0.504 for rules that compute more than whole steps
SEED = 7_000_000  # of the noise
BATCH = 8
ROUNDS = 3  # of timing


@dataclass
class Measured:
    """A way to run the model: of which tool it is, its share of the teacher's MACs, and what each prompt gave.

    `drift` is empty where the MACs are above the greatest limit, `psnr` where the row is in no comparison.
    """

    name: str
    tool: str
    macs: float
    drift: list[float]
    calibration: float = float("nan")  # drift on the prompts of its own search
    psnr: list[float] = field(default_factory=list)
    time: float = float("nan")  # as a share of the teacher's


class Bench:
    """One model, prompts and noise that no search saw, and the teacher's results for them."""

    def __init__(self, model: Model, prompts: Sequence[str]) -> None:
        self.model, self.prompts = model, list(prompts)
        self.seeds = [SEED + i for i in range(len(prompts))]
        self.teacher, self.teacher_macs = self.latents(), self._macs(self._first)
        self.pictures = self._pictures(self.teacher)

    def measure(self, rival: Rival, tool: str) -> Measured | None:
        """The MACs, and the drift of each prompt; None, with a line, where it does not run on this model."""
        try:
            with rival.switch(self.model):
                first = self._macs(self._first)
                measured = Measured(rival.name, tool, first / self.teacher_macs, [])
                if measured.macs <= LIMITS[0] + ROOM:
                    found: list[torch.Tensor] = []
                    macs = self._macs(lambda: found.append(self.latents(1 if rival.decides else BATCH)))
                    measured.macs = macs / len(self.prompts) / self.teacher_macs
                    measured.drift = Drift()(found[0], self.teacher).tolist()
        except Exception as error:  # of any kind: it is their code, on a model that they may not know
            print(f"{rival.name} does not run here: {' '.join(str(error).split())[:150]}", flush=True)
            return None
        drift = f"drift {np.mean(measured.drift):.4f}" if measured.drift else "above the limits"
        print(f"{tool:16} {rival.name:45} {measured.macs:6.1%} {drift}", flush=True)
        return measured

    def psnr(self, rival: Rival) -> list[float]:
        """PSNR in dB of each prompt's picture against the teacher's."""
        with rival.switch(self.model):
            latents = self.latents(1 if rival.decides else BATCH)
        return list(Psnr()(self._pictures(latents), self.pictures, self.prompts).tolist())

    def latents(self, batch: int = BATCH) -> torch.Tensor:
        """Final latents of every prompt, by what the model runs now."""
        parts = []
        for i in range(0, len(self.prompts), batch):
            forget(self.model)
            parts.append(self.model.sample(self.prompts[i : i + batch], self.seeds[i : i + batch]).cpu())
        return torch.cat(parts)

    def _first(self) -> None:
        forget(self.model)
        self.model.sample(self.prompts[:1], self.seeds[:1])

    def _macs(self, call: Callable[[], object]) -> float:
        """MACs that the denoiser's layers compute during a call; the products within attention are not among them."""
        counted = [0]

        def count(layer: torch.nn.Module, _: object, output: torch.Tensor) -> None:
            counted[0] += output.numel() * shape_of(layer)[1]

        removers = [m.register_forward_hook(count) for m in self.model.denoiser.modules() if is_layer(m)]
        try:
            call()
        finally:
            for remover in removers:
                remover.remove()
        return float(counted[0])

    def _pictures(self, latents: torch.Tensor) -> torch.Tensor:
        parts = [slice(i, i + BATCH) for i in range(0, len(self.seeds), BATCH)]
        return torch.cat([self.model.decode(latents[p], self.prompts[p], self.seeds[p]).cpu() for p in parts])

    def time(self, switches: Sequence[Callable[[Model], Any]]) -> list[float]:
        """Median times of one picture as shares of the teacher's: every round runs all of them and the teacher."""
        inputs, ratios = (self.prompts[:1], self.seeds[:1]), []
        for _ in range(ROUNDS):
            times = []
            for switch in (lambda model: contextlib.nullcontext(), *switches):
                with switch(self.model):
                    forget(self.model)
                    self.model.sample(*inputs)  # the first run of a cache allocates
                    forget(self.model)
                    times.append(time_call(self.model, lambda: self.model.sample(*inputs)))
            ratios.append([time / times[0] for time in times[1:]])
        return [float(value) for value in np.median(ratios, axis=0)]


def measure_run(folder: Path, count: int, known: dict[str, Any], save: Callable[[], None]) -> None:
    """All measurements of one run folder, and what they say at each limit; rows that `known` has are not run again."""
    result = Result.load(folder, pictures=False)
    config = Config.load(folder / "config.yaml")
    model = model_from_config(config)
    prompts = new_prompts(result.model, count)
    if known.get("prompts") != prompts:
        known |= {"model": result.model, "prompts": prompts, "rows": {}}
    rows: dict[str, Measured] = {name: Measured(**row) for name, row in known["rows"].items()}
    bench, ways = Bench(model, prompts), {}
    for tool, rival, calibration in _ways(result, config, model):
        ways[rival.name] = rival
        if rival.name not in rows and (measured := bench.measure(rival, tool)):
            measured.calibration = calibration
            rows[rival.name] = measured
            known["rows"][rival.name] = asdict(measured)
            save()
    lines = [line for limit in LIMITS if (line := compare_at(list(rows.values()), limit))]
    compared = {row.name: row for line in lines for row in line.values()}
    times = bench.time([ways[name].switch for name in compared])
    for (name, row), time in zip(compared.items(), times, strict=True):
        row.time, row.psnr = time, bench.psnr(ways[name])
        known["rows"][name] = asdict(row)
    save()
    for limit, line in zip(LIMITS, lines, strict=False):
        print_line(limit, line)


def _ways(result: Result, config: Config, model: Model) -> Iterator[tuple[str, Rival, float]]:
    """Everything that is measured: of which tool, how it is switched on, and its drift on calibration prompts."""
    nan, seen = float("nan"), prompts_from_config(config.prompts)[0][:BATCH]
    fitter = Fitter(model, seen, [config.prompts.seed + i for i in range(len(seen))])

    def applied(name: str, schedule: Schedule) -> Rival:
        return Rival(name, lambda model: model.apply(schedule), bool(schedule.gates))

    for entry in _front_within_limits(result):
        calibration = entry.calibration["drift"].value
        yield "ours", applied(entry.name, entry.schedule), calibration
        if plain := _unfitted(entry.schedule):
            yield "ours, not fitted", applied(f"{entry.name}, not fitted", plain), calibration
    for rival in sorted(rivals(model), key=lambda rival: rival.decides):
        yield "tool", rival, nan
    for entry in result.of("preset"):
        if entry.held_out["macs"].value <= LIMITS[0] + ROOM and not entry.is_fitted_preset:
            yield "rule", applied(entry.name, entry.schedule), nan
            yield "rule, fitted", applied(entry.name + FITTED, fitter.fit(entry.schedule)), nan


def compare_at(rows: Sequence[Measured], limit: float) -> dict[str, Measured] | None:
    """What each side would run within a limit on MACs: ours by calibration, everything else by these prompts."""
    best: dict[str, Measured] = {}
    for side, tools in {
        "ours": ("ours",),
        "ours, not fitted": ("ours, not fitted",),
        "best of others": ("rule", "tool"),
        "best tool": ("tool",),
        "best rule, fitted": ("rule, fitted",),
    }.items():
        within = [row for row in rows if row.tool in tools and row.drift and row.macs <= limit + ROOM]
        ours = side.startswith("ours")
        if within:
            best[side] = min(within, key=lambda row: row.calibration if ours else float(np.mean(row.drift)))
    return best if "ours" in best else None


def print_line(limit: float, line: dict[str, Measured]) -> None:
    """One limit as rows of a Markdown table."""
    ours, rng = line["ours"], np.random.default_rng(0)
    drift, psnr = np.array(ours.drift), np.array(ours.psnr)
    heads = f"at most {limit:.0%} of the MACs", "MACs", "time", "drift", "PSNR", "drift of ours over it"
    print("\n| " + " | ".join((*heads, "PSNR of ours minus it", "ours is better on")) + " |\n" + "|---" * 8 + "|")
    for side, row in line.items():
        cells = [f"{side}: {row.name}", f"{row.macs:.2f}", f"{row.time:.2f}", f"{np.mean(row.drift):.3f}"]
        cells.append(f"{np.mean(row.psnr):.1f} dB")
        if row is not ours:
            others, dbs = np.array(row.drift), np.array(row.psnr)
            low, high = paired_ratio_interval(drift, others, rng)
            lower, higher = paired_difference_interval(psnr, dbs, rng)
            cells += [
                f"{drift.mean() / others.mean():.2f} [{low:.2f}, {high:.2f}]",
                f"{(psnr - dbs).mean():+.1f} dB [{lower:+.1f}, {higher:+.1f}]",
                f"{np.mean(drift < others):.0%} of prompts",
            ]
        print("| " + " | ".join(cells) + " |" + " |" * (8 - len(cells)), flush=True)


def _front_within_limits(result: Result) -> list[Entry]:
    """Of the front the one within each limit that drifts least on the calibration prompts of the search."""
    within = ([e for e in result.of("front") if e.held_out["macs"].value <= limit + ROOM] for limit in LIMITS)
    best = (min(entries, key=lambda e: e.calibration["drift"].value) for entries in within if entries)
    return list(dict((entry.name, entry) for entry in best).values())


def _unfitted(schedule: Schedule) -> Schedule | None:
    """The same with its scheduler's own solver; None where nothing is fitted."""
    sampler = dict(schedule.sampler or {})
    return schedule.with_sampler(sampler) if sampler.pop("coefficients", None) else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, nargs="+", required=True, help="folders of finished searches")
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument(
        "--out", type=Path, default=Path("rivals.json"), help="all values; what is in it is not run again"
    )
    given = parser.parse_args()
    logging.disable(logging.WARNING)  # of the tools, which print several lines for every setting
    known = json.loads(given.out.read_text()) if given.out.exists() else {}
    with torch.no_grad():
        for folder in given.run:
            of_run = known.setdefault(folder.name, {})
            measure_run(folder, given.prompts, of_run, lambda: given.out.write_text(json.dumps(known, indent=1) + "\n"))


if __name__ == "__main__":
    main()
