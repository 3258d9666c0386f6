"""Evaluators of a tiny model that count what they run, and a few jobs for them."""

from functools import cache
from pathlib import Path
from typing import Any

from search.evaluate.evaluator import Evaluator
from search.evaluate.execute.jobs import Batch, Job, OnDone
from search.evaluate.execute.runner import Runner
from search.evaluate.memo import Memo
from search.models.base import to_schedule
from search.objectives.drift import Drift
from search.objectives.macs import Macs
from search.testing.models import lively, tiny_model

PROMPTS = ["red apple", "blue boat", "flat style", "red boat", "blue apple", "3d boat", "flat red apple"]
TEXTS = ["CRCRCR", "CRRRRR", "CCCRCC", "CCRRCC", "CCCCCR", "CRCRCC"]


@cache
def parts() -> tuple:
    model = lively(tiny_model(6))
    return model, model.costs()


class Counting(Runner):
    """Counts the jobs of every batch."""

    def __init__(self) -> None:
        super().__init__(*parts())
        self.jobs: list[tuple[int, int]] = []

    def run(self, batch: Batch, jobs: Any, done: OnDone) -> None:
        self.jobs.append((len(batch), len(jobs)))
        super().run(batch, jobs, done)


def evaluator(path: Path | str = ":memory:", batch: int = 8, prompts: int = 7, **objectives: Any) -> Evaluator:
    model, costs = parts()
    given = objectives or {"drift": Drift(), "macs": Macs()}
    return Evaluator(model, PROMPTS[:prompts], list(range(prompts)), given, costs, Memo(Path(path)), batch, Counting())


def jobs(fit: bool = False) -> list[Job]:
    model, _ = parts()
    return [Job(to_schedule(model, {"plan": {"rules": [["denoiser", text]]}}), fit) for text in TEXTS]
