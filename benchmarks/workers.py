"""python -m benchmarks.workers: the same population in this process, on one Ray worker and on two, one thread each.

Bundled pixart, 20 steps: children of a few parents with a free bit per step, block and component, as a genetic search
asks for them. Every round has noise of its own, so nothing is known from the round before; the three take turns within
it. All results are compared bit for bit. Ratios are of rounds, shown as medians and quartiles. Writes
docs/benchmarks/workers.md.
"""

import argparse
import os
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from search.config.compose import compose_config
from search.config.prompts import read_prompts
from search.evaluate.execute.cluster import Cluster
from search.evaluate.execute.jobs import Batch, Executor, Job
from search.evaluate.execute.runner import Runner
from search.models.base import to_schedule
from search.models.pipeline import Pipeline
from search.spaces.cache import CacheSpace
from search.testing.models import pixart

DOC = Path(__file__).parents[1] / "docs" / "benchmarks" / "workers.md"
CONFIG = compose_config(["+space=cache"])["model"]
PARENTS, MUTATED = 6, 0.02
ARMS = ("this process", "1 worker", "2 workers")


def population(model: Pipeline, size: int) -> list[Job]:
    """Children of random parents that reuse more the later the step is; a few genes of each child are mutated."""
    space, rng = CacheSpace("component", max_order=0), np.random.default_rng(0)
    genes = space.genes(model.target)
    parents = rng.random((PARENTS, len(genes))) < rng.uniform(0.2, 0.7, (PARENTS, 1))
    rows = parents[np.arange(size) % PARENTS] ^ (rng.random((size, len(genes))) < MUTATED)
    late = np.sort(rng.integers(1, model.target.steps, size))  # up to here a child is its parent, as after a crossover
    for row, parent, first in zip(rows, np.arange(size) % PARENTS, late, strict=True):
        same = [i for i, gene in enumerate(genes) if step_of(gene.name) < first]
        row[same] = parents[parent, same]
    return [Job(to_schedule(model, space.decode(row.astype(np.int64), model.target))) for row in rows]


def step_of(gene: str) -> int:
    return int(gene.rpartition("@")[2])


def timed(executor: Executor, batch: Batch, jobs: list[Job]) -> tuple[float, list[torch.Tensor]]:
    """Seconds, and final latents."""
    found: dict[int, torch.Tensor] = {}
    began = time.perf_counter()
    executor.run(batch, jobs, lambda i, outcome: found.__setitem__(i, outcome.latents))
    return time.perf_counter() - began, [found[i] for i in range(len(jobs))]


def counts(arm: Any) -> np.ndarray:
    """Model steps so far, of each worker."""
    return np.array([handle.steps for handle in arm.handles] if isinstance(arm, Cluster) else [arm.steps])


def quartiles(values: np.ndarray, form: str) -> str:
    low, middle, high = np.percentile(values, [25, 50, 75])
    return f"{middle:{form}} ({low:{form}} to {high:{form}})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--size", type=int, default=48, help="candidates in the population")
    parser.add_argument("--prompts", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    os.environ.setdefault("RAY_AUTH_TOKEN", "0" * 64)  # else Ray writes a token into the home folder
    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False, object_store_memory=2**28)
    model = pixart()
    costs, jobs = model.costs(), population(model, given.size)
    prompts = tuple(read_prompts("emoji_calibration.txt")[: given.prompts])
    arms: list[Any] = [Runner(model, costs), *(Cluster(CONFIG, costs, 1, workers=count) for count in (1, 2))]
    steps: list[list[tuple[int, int]]] = []
    for number, arm in enumerate(arms):  # everything loaded and run once
        timed(arm, Batch(prompts, tuple(range(given.prompts))), jobs)
        if isinstance(arm, Cluster):
            ray.get([handle.pending[0] for handle in arm.handles if handle.pending])
        print(f"{ARMS[number]}: ready")
    load = os.getloadavg()[0]
    seconds = np.zeros((given.rounds, len(arms)))
    for number in range(given.rounds):
        batch = Batch(prompts, tuple(1000 * (number + 1) + i for i in range(given.prompts)))
        before = [counts(arm) for arm in arms]
        found = {int(i): timed(arms[i], batch, jobs) for i in np.roll(range(len(arms)), number)}
        for i, (took, latents) in found.items():
            seconds[number, i] = took
            assert all(torch.equal(a, b) for a, b in zip(found[0][1], latents, strict=True))
        ran = [counts(arm) - was for arm, was in zip(arms, before, strict=True)]
        steps.append([(own.sum(), own.max()) for own in ran])
        print(f"round {number + 1}: " + ", ".join(f"{n} {s:.1f} s" for n, s in zip(ARMS, seconds[number], strict=True)))
    ray.shutdown()
    rows = [
        f"| {name} | {quartiles(seconds[:, i], '.1f')} | {np.median(np.array(steps)[:, i, 0]):.0f} | "
        f"{np.median(np.array(steps)[:, i, 1]):.0f} | "
        f"{quartiles(seconds[:, 1] / seconds[:, i], '.2f')} |"
        for i, name in enumerate(ARMS)
    ]
    alone = sum(job.schedule.steps or 0 for job in jobs)
    text = (
        "# One worker and two\n\n"
        f"`python -m benchmarks.workers` writes this page: {__doc__.split(':', 1)[1].split('Writes')[0].strip()}\n\n"
        f"{given.size} candidates, {given.prompts} prompts in a batch; run one by one they are {alone} model steps. "
        f"{given.rounds} rounds; {platform.machine()} with {os.cpu_count()} cores, load average {load:.1f} at the "
        f"start, torch {torch.__version__}, Ray {ray.__version__}.\n\n"
        "| | seconds a population | model steps executed | of them by the busiest | times as fast as one worker |\n"
        "| --- | --- | --- | --- | --- |\n" + "\n".join(rows) + "\n"
    )
    DOC.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
