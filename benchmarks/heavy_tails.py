"""python -m benchmarks.heavy_tails: what of the drift of several prompts a search should minimise.

Searches that differ only in `objective.drift.over`, with the same seeds and budget. The schedules of each front are run
on fresh pairs of a prompt that no search saw and new noise, the same pairs for all. Of each front, in the order of its
calibration drift: the hypervolume of MACs and of what nine of ten fresh runs stay within, and the cheapest schedule of
which it can be promised (90 % of new runs, confidence 95 %) that the picture is within the PSNR.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from search.config.compose import compose_config, normalise_overrides
from search.config.settings import Config
from search.loop.search import Search
from search.models.base import Model
from search.objectives.drift import Drift
from search.objectives.psnr import Psnr
from search.pareto.certificates import greatest_miss_rate
from search.pareto.domination import hypervolume, thin
from search.schedule import Schedule

FIRST_SEED = 500_000  # of the noise of fresh pairs
BATCH = 10


class FreshRuns:
    """Runs on pairs of prompt and noise that no search has seen, beside the teacher's."""

    def __init__(self, model: Model, prompts: list[str], pairs: int) -> None:
        self.model = model
        self.prompts = [prompts[i % len(prompts)] for i in range(pairs)]
        self.seeds = [FIRST_SEED + i for i in range(pairs)]
        self.teacher = self._latents()
        self.pictures = self._pictures(self.teacher)

    def measure(self, schedule: Schedule) -> tuple[np.ndarray, np.ndarray]:
        """Drift and PSNR [pairs] of a schedule."""
        with self.model.apply(schedule):
            latents = self._latents()
        psnr = Psnr()(self._pictures(latents), self.pictures, self.prompts)
        return Drift()(latents, self.teacher).numpy(), psnr.numpy()

    def _latents(self) -> torch.Tensor:
        parts = [slice(i, i + BATCH) for i in range(0, len(self.seeds), BATCH)]
        return torch.cat([self.model.sample(self.prompts[part], self.seeds[part]) for part in parts])

    def _pictures(self, latents: torch.Tensor) -> torch.Tensor:
        parts = [slice(i, i + BATCH) for i in range(0, len(self.seeds), BATCH)]
        decoded = [self.model.decode(latents[part], self.prompts[part], self.seeds[part]) for part in parts]
        return torch.cat(decoded)


def front(config: Config, most: int) -> tuple[Search, list[tuple[Schedule, float]], float]:
    """A search with its front, thinned, as schedules with their MACs in the order of drift; and its cost."""
    search = Search(config, Console(quiet=True))
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        search.prepare(Path(folder))
        search.loop()
    archive = list(search.state.archive.values())
    scores = [entry["scores"] for entry in archive]
    picked = sorted(thin(scores, [1.0, 1.0], most), key=lambda i: scores[i][0])
    schedules = [(search.candidates.schedule_of(archive[i]), float(scores[i][1])) for i in picked]
    return search, schedules, float(search.state.history[-1]["block_executions"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pixart")
    parser.add_argument("--space", default="cache")
    parser.add_argument("--over", nargs="+", default=["mean", "median", "q90", "log"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--evaluations", type=int, default=300)
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--schedules", type=int, default=20, help="of each front")
    parser.add_argument("--psnr", type=float, default=30.0)
    parser.add_argument("--out", type=Path, default=None, help="JSON lines; rows that it has are not measured again")
    options = parser.parse_args()
    done: list[dict[str, Any]] = []
    if options.out and options.out.exists():
        done = [json.loads(line) for line in options.out.read_text().splitlines()]
    fresh: FreshRuns | None = None
    for seed in options.seeds:
        for over in options.over:
            if any((row["seed"], row["over"]) == (seed, over) for row in done):
                continue
            given = [f"+space={options.space}", f"model={options.model}", f"objective.drift.over={over}"]
            given += [f"seed={seed}", f"budget.evaluations={options.evaluations}", "tracking.enabled=false"]
            config = Config.check(compose_config(normalise_overrides(given)))
            search, schedules, executions = front(config, options.schedules)
            if fresh is None:
                with torch.no_grad():
                    fresh = FreshRuns(search.model, list(config.prompts.held_out), options.pairs)
            row = {"seed": seed, "over": over, "block_executions": executions} | measure(fresh, schedules, options.psnr)
            done.append(row)
            print(json.dumps({k: v for k, v in row.items() if k != "front"}), flush=True)
            if options.out:
                with options.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    for over in options.over:
        rows = [row for row in done if row["over"] == over]
        cells = [f"{np.mean([row[name] for row in rows]):.4f}" for name in ("hypervolume", "mean", "cheapest")]
        print(f"{over:8} {len(rows)} seeds: hypervolume of q90 {cells[0]}, of means {cells[1]}, cheapest {cells[2]}")


@torch.no_grad()
def measure(fresh: FreshRuns, schedules: list[tuple[Schedule, float]], psnr: float) -> dict[str, Any]:
    """The front on fresh pairs; `cheapest` is the least share of the MACs that can be promised, 1 where none can."""
    points, means, listed, cheapest = [], [], [], 1.0
    for schedule, macs in schedules:
        drift, pictures = fresh.measure(schedule)
        misses = int((pictures < psnr).sum())
        points.append([macs, float(np.quantile(drift, 0.9))])
        means.append([macs, float(drift.mean())])
        if greatest_miss_rate(misses, len(pictures), 0.95) <= 0.1:
            cheapest = min(cheapest, macs)
        listed.append({"macs": macs, "misses": misses, "mean": means[-1][1], "q90": points[-1][1]})
    volumes = [hypervolume(np.array(rows), np.ones(2)) for rows in (points, means)]
    return {"hypervolume": volumes[0], "mean": volumes[1], "cheapest": cheapest, "front": listed}


if __name__ == "__main__":
    main()
