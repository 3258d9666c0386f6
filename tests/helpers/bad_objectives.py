"""Objectives that do something wrong, of the kinds that a user's may."""

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from search.objectives.base import Cost, Quality, Reward
from search.profile.costs import Costs
from search.schedule import Schedule


class Odd(Quality):
    """Mean difference to the teacher's pictures; wrong in the way `how` for about two of three schedules."""

    key, unit = "odd", ""

    def __init__(self, how: str, always: bool = False) -> None:
        self.how, self.always = how, always

    def __call__(self, run: Tensor, teacher: Tensor, prompts: Sequence[str]) -> Any:
        values = (run - teacher).abs().mean((1, 2, 3))
        wrong = bool(values.any()) and int(float(values.sum()) * 1e6) % 3 > 0
        if self.how == "noisy":
            return values + torch.rand(len(values))
        return misbehave(self.how, values) if wrong or self.always else values

    def worst(self, costs: Costs) -> float:
        return float("nan") if self.how == "worst" else 1.0


def misbehave(how: str, values: Tensor) -> Any:
    match how:
        case "undefined":
            return torch.where(torch.arange(len(values)) == 0, torch.nan, values)
        case "raise":
            raise RuntimeError("the server is gone\nand so on")
        case "shape":
            return values.mean()
        case "list":
            return values.tolist()
        case "sleep":
            time.sleep(3)
        case "exit":
            raise SystemExit("done")
        case "loop":
            while True:
                pass
    return values


class OddCost(Cost):
    """MACs, but not for plans that reuse most of the steps."""

    key, unit = "oddcost", "ratio"

    def __call__(self, schedule: Schedule, costs: Costs) -> float:
        share = costs.macs(schedule) / costs.teacher_macs
        return float("inf") if share < 0.5 else share

    def worst(self, costs: Costs) -> float:
        return 1.0


class Rough(Reward):
    """How much neighbouring pixels differ: what a bad schedule may easily have more of."""

    key, unit = "rough", ""

    def score(self, pictures: Tensor, prompts: Sequence[str]) -> Tensor:
        return pictures.diff(dim=-1).abs().mean((1, 2, 3)) + pictures.diff(dim=-2).abs().mean((1, 2, 3))

    def worst(self, costs: Costs) -> float:
        return 0.0


class Smooth(Rough):
    """The opposite: whoever gains in `rough` loses here."""

    key = "smooth"

    def score(self, pictures: Tensor, prompts: Sequence[str]) -> Tensor:
        return 1 - super().score(pictures, prompts)
