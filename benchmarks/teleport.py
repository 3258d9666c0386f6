"""python -m benchmarks.teleport: what the Gaussian of a model's final latents saves at equal cost.

    python -m benchmarks.teleport --model pixart --seeds 0 1 2 --evaluations 300 --prompts 48 --out teleport.json

For each seed two searches with the same budget, over timesteps and solver with and without `teleport`; solvers are
fitted in both. Within each limit on MACs the schedule of either front that drifts least on the calibration prompts of
its search runs on prompts and noise that no search saw; what is compared is its drift there, prompt by prompt.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

import search
from benchmarks.certificates import new_prompts
from benchmarks.rivals import Bench
from search.config.load import load_model
from search.objectives.drift import Drift
from search.pareto.intervals import paired_ratio_interval
from search.results.result import Entry, Result

SPACES = {"without": ["timesteps", "solver"], "with": ["timesteps", "solver", "teleport"]}
LIMITS = (2, 3, 4, 5, 6, 8, 10)  # calls of the denoiser, of the teacher's 20


def within(result: Result, calls: int, steps: int) -> Entry | None:
    """Of a front the schedule within so many calls that drifts least on the calibration prompts of the search."""
    entries = [e for e in result.of("front") if e.held_out["macs"].value <= (calls + 0.2) / steps]
    return min(entries, key=lambda entry: entry.calibration["drift"].value, default=None)


def drifts(bench: Bench, entry: Entry) -> list[float]:
    """Of each prompt, under a schedule."""
    with bench.model.apply(entry.schedule):
        return [float(value) for value in Drift()(bench.latents(), bench.teacher)]


def measure(given: argparse.Namespace, known: dict[str, Any]) -> dict[str, Any]:
    """Run what `known` lacks, and keep every value in it."""
    bench = Bench(load_model(given.model), new_prompts(given.model, given.prompts))
    for seed in given.seeds:
        for side, spaces in SPACES.items():
            if (key := f"{seed} {side}") in known:
                continue
            with tempfile.TemporaryDirectory() as folder:
                result = search.search(
                    "tracking.enabled=false",
                    model=given.model,
                    space=spaces,
                    objective=["drift", "macs"],
                    seed=seed,
                    certify="off",
                    runs=folder,
                    budget={"evaluations": given.evaluations},
                )
            found = {calls: within(result, calls, bench.model.target.steps) for calls in LIMITS}
            known[key] = {
                str(calls): {"name": e.name, "drift": drifts(bench, e), "at": at_of(e)}
                for calls, e in found.items()
                if e is not None
            }
            given.out.write_text(json.dumps(known, indent=1) + "\n")
    return known


def at_of(entry: Entry) -> str:
    """The letters of the denoisers of its steps."""
    return entry.schedule.models.at if entry.schedule.models else "L" * (entry.schedule.steps or 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pixart")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--evaluations", type=int, default=300)
    parser.add_argument("--prompts", type=int, default=48)
    parser.add_argument("--out", type=Path, default=Path("teleport.json"), help="all values; they are not run again")
    given = parser.parse_args()
    with torch.no_grad():
        known = measure(given, json.loads(given.out.read_text()) if given.out.exists() else {})
    print("| calls | drift without | with | ratio | steps of the Gaussian |\n|---|---|---|---|---|")
    for calls in map(str, LIMITS):
        pairs = [(known[f"{s} without"].get(calls), known[f"{s} with"].get(calls)) for s in given.seeds]
        pairs = [(a, b) for a, b in pairs if a and b]
        if pairs:
            without, with_ = (np.array([pair[i]["drift"] for pair in pairs]).ravel() for i in (0, 1))
            low, high = paired_ratio_interval(with_, without, np.random.default_rng(0))
            steps = ", ".join(f"{b['at'].count('G')} of {len(b['at'])}" for _, b in pairs)
            ratio = f"{with_.mean() / without.mean():.2f} [{low:.2f}, {high:.2f}]"
            print(f"| {calls} | {without.mean():.3f} | {with_.mean():.3f} | {ratio} | {steps} |")


if __name__ == "__main__":
    main()
