"""python benchmarks/search_cost.py [METHOD ...]: block executions to the hypervolume that a genetic search ends with.

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

from search.config import read_prompts
from search.engines.anneal import AnnealEngine
from search.engines.autodiffusion import AutoDiffusionEngine
from search.engines.base import Engine, Start
from search.engines.ecad import EcadEngine
from search.engines.random import RandomEngine
from search.evaluate.evaluator import Evaluator, to_schedule
from search.evaluate.memo import Memo
from search.evaluate.runner import Job
from search.front import hypervolume, non_dominated
from search.models.pixart import PixArt
from search.objectives.drift import Drift
from search.objectives.macs import Macs
from search.seeding import Proposals
from search.spaces.cache import CacheSpace

PROMPTS, BATCH = 4, 72
LIMITS = (0.25, 0.35, 0.5)  # of the MACs: AutoDiffusion searches one budget at a time
WORST = np.ones(2)


class Bench:
    """The model, ECAD's space, and scores of rows."""

    def __init__(self) -> None:
        self.model, self.space = PixArt(), CacheSpace("component", max_order=0)
        self.target, self.costs = self.model.target, self.model.costs()
        self.genes = self.space.genes(self.target)
        prompts = read_prompts("emoji_calibration.txt")[:PROMPTS]
        objectives = {"drift": Drift(), "macs": Macs()}
        memo = Memo(Path(":memory:"))
        self.probe = Evaluator(self.model, prompts, list(range(PROMPTS)), objectives, self.costs, memo)
        proposals = Proposals(self.space, self.target, self.model, self.probe, self.costs, list(objectives.values()))
        self.hand_made = proposals.intervals()

    def start(self, seed: int, seeded: bool = True) -> Start:
        seeds = self.hand_made if seeded else np.zeros((0, len(self.genes)), dtype=np.int64)
        return Start(self.genes, 2, np.random.default_rng(seed), seeds, WORST)

    def scores(self, rows: np.ndarray) -> np.ndarray:
        """Drift, share of MACs and block executions of whole runs [N, 3]."""
        schedules = [to_schedule(self.model, self.space.decode(row, self.target)) for row in rows]
        scored = self.probe.evaluate([Job(schedule) for schedule in schedules])
        drift = [found.told[0] for found in scored]
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


class _Turns(Engine):
    """Several engines by turns."""

    def __init__(self, engines: list) -> None:
        self.engines, self.turn = engines, 0

    def ask(self, n: int) -> np.ndarray:
        self.turn += 1
        return self.engines[self.turn % len(self.engines)].ask(n)

    def tell(self, x: np.ndarray, y: np.ndarray) -> None:
        self.engines[self.turn % len(self.engines)].tell(x, y)


METHODS: dict[str, tuple[Callable[[Bench, int, int], list[list[float]]], int]] = {  # and how many candidates
    "ecad": (ecad, 3600),
    "ecad_working": (ecad_working, 3600),
    "autodiffusion": (autodiffusion, 1800),
    "anneal": (anneal, 1800),
    "random": (random, 720),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("methods", nargs="*", metavar="METHOD", help=", ".join(METHODS))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=Path("runs/search_cost"))
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    torch.set_grad_enabled(False)
    bench = Bench()
    for seed in given.seeds:
        for name in given.methods or METHODS:
            file = given.folder / f"{name}_{seed}.json"
            if not file.exists():
                print(name, seed, flush=True)
                method, budget = METHODS[name]
                file.write_text(json.dumps(method(bench, seed, budget)) + "\n")


if __name__ == "__main__":
    main()
