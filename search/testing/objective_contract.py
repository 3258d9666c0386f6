"""What every objective must do. Inherit `QualityContract` or `CostContract`, and give the fixture `objective`."""

import copy
import json
import math
from dataclasses import replace
from functools import cache
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from search import Schedule
from search.evaluate.guard import objective_identity
from search.models.base import to_schedule
from search.objectives.base import Cost, Distance, Objective, Quality, Reward
from search.profile.costs import Costs
from search.spaces.bits import BitsSpace
from search.spaces.cache import CacheSpace
from search.spaces.joint import JointSpace
from search.testing.models import tiny_model


@cache
def _measured() -> tuple[Any, Costs]:
    model = tiny_model()
    milliseconds = {"run": 1.0, "denoiser": 2.0} | dict.fromkeys(model.target.kinds, 0.1)
    return model, replace(model.costs(), milliseconds=milliseconds)


class ObjectiveContract:
    """What objectives of both kinds have in common."""

    kind: ClassVar[str]

    @pytest.fixture
    def objective(self) -> Any:
        """The objective to test."""
        raise NotImplementedError("give a fixture `objective` that returns your objective")

    @pytest.fixture
    def tiny(self) -> Any:
        """The model whose schedules are scored."""
        return _measured()[0]

    @pytest.fixture
    def costs(self) -> Costs:
        """Its cost tables; times as if they had been measured."""
        return _measured()[1]

    def test_it_says_what_it_is(self, objective: Objective) -> None:
        assert objective.kind == self.kind
        assert objective.key.isidentifier()  # what people type: objective=[drift,key]
        assert objective.better in ("lower", "higher")
        assert isinstance(objective.unit, str) and isinstance(objective.label, str)
        assert isinstance(objective.share, bool) and math.isfinite(objective.ceiling)

    def test_its_arguments_name_it_in_the_memo(self, objective: Objective) -> None:
        assert json.loads(json.dumps(objective_identity(objective))) == objective_identity(objective)

    def test_the_worst_value_is_finite(self, objective: Objective, costs: Costs) -> None:
        assert math.isfinite(objective.worst(costs))

    def test_minimised_turns_around_what_is_better_higher(self, objective: Objective) -> None:
        assert objective.minimised(2.0) == (-2.0 if objective.better == "higher" else 2.0)


class QualityContract(ObjectiveContract):
    """One value for each prompt, the same for the same pictures, best for the teacher's own."""

    kind = "quality"
    prompts: ClassVar[list[str]] = ["red apple", "tulip, flat style", "key", "lion, 3d style", "pizza"]

    @pytest.fixture
    def pictures(self) -> Tensor:
        """The teacher's: [B, 3, H, W] in [0, 1], or latents."""
        return torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    def damaged(self, pictures: Tensor, amount: float) -> Tensor:
        """The pictures with so much noise on them."""
        return pictures + amount * torch.randn(pictures.shape, generator=torch.Generator().manual_seed(1))

    def best(self, objective: Quality) -> float:
        """What the teacher's own pictures score."""
        return objective.ceiling if objective.better == "higher" else 0.0

    def test_one_finite_value_for_each_prompt(self, objective: Quality, pictures: Tensor) -> None:
        values = objective(self.damaged(pictures, 0.1), pictures, self.prompts)
        assert values.shape == (5,) and values.is_floating_point() and not values.requires_grad
        assert values.isfinite().all()

    def test_the_same_pictures_score_the_same(self, objective: Quality, pictures: Tensor) -> None:
        run = self.damaged(pictures, 0.1)
        assert torch.equal(objective(run, pictures, self.prompts), objective(run, pictures, self.prompts))

    def test_what_it_is_given_stays_as_it_was(self, objective: Quality, pictures: Tensor) -> None:
        run, prompts = self.damaged(pictures, 0.1), [*self.prompts]
        before = run.clone(), pictures.clone(), [*prompts]
        objective(run, pictures, prompts)
        assert torch.equal(run, before[0]) and torch.equal(pictures, before[1]) and prompts == before[2]

    def test_values_belong_to_their_prompts(self, objective: Quality, pictures: Tensor) -> None:
        run, order = self.damaged(pictures, 0.1), [3, 0, 4, 1, 2]
        values = objective(run, pictures, self.prompts)
        turned = objective(run[order], pictures[order], [self.prompts[i] for i in order])
        assert turned.tolist() == pytest.approx(values[order].tolist(), rel=1e-4, abs=1e-4)

    def test_a_value_does_not_depend_on_the_other_prompts(self, objective: Quality, pictures: Tensor) -> None:
        if isinstance(objective, Distance):
            pytest.skip("a distance compares sets")
        run = self.damaged(pictures, 0.1)
        alone = objective(run[1:2], pictures[1:2], self.prompts[1:2])
        together = objective(run, pictures, self.prompts)
        assert float(alone[0]) == pytest.approx(float(together[1]), rel=1e-5, abs=1e-5)

    def test_the_teachers_own_pictures_are_perfect(self, objective: Quality, pictures: Tensor, costs: Costs) -> None:
        if isinstance(objective, Reward):
            pytest.skip("a reward does not look at the teacher")
        values = objective(pictures, pictures, self.prompts)
        assert values.tolist() == pytest.approx([self.best(objective)] * 5, abs=1e-6)
        worst = objective.minimised(objective.worst(costs))
        assert all(objective.minimised(value) <= worst for value in values.tolist())

    def test_more_damage_is_worse(self, objective: Quality, pictures: Tensor) -> None:
        if isinstance(objective, Reward):
            pytest.skip("a reward may like the damage")
        damage = [self.damaged(pictures, amount) for amount in (0.02, 0.1, 0.4)]
        means = [float(objective(run, pictures, self.prompts).mean()) for run in damage]
        assert means == sorted(means, reverse=objective.better == "higher") and len(set(means)) == 3


class CostContract(ObjectiveContract):
    """A number that follows from a schedule and the tables alone, at most the worst."""

    kind = "cost"

    def drawn(self, tiny: Any, seed: int) -> Schedule:
        """A schedule by chance: some components reused, some layers at few bits."""
        draw, space = np.random.default_rng(seed), JointSpace([CacheSpace("component", max_order=0), BitsSpace()])
        x = draw.integers(0, [gene.levels for gene in space.genes(tiny.target)])
        x[draw.random(len(x)) > draw.random()] = 0
        return to_schedule(tiny, space.decode(x, tiny.target))

    def test_the_teacher_costs_at_most_the_worst(self, objective: Cost, tiny: Any, costs: Costs) -> None:
        value = objective(to_schedule(tiny, {}), costs)
        assert math.isfinite(value) and objective.minimised(value) <= objective.minimised(objective.worst(costs))

    @settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
    @given(seed=st.integers(0, 2**32 - 1))
    def test_schedules_cost_the_same_again_and_at_most_the_worst(
        self, objective: Cost, tiny: Any, costs: Costs, seed: int
    ) -> None:
        schedule = self.drawn(tiny, seed)
        before = copy.deepcopy(costs), schedule.digest
        value = objective(schedule, costs)
        assert isinstance(value, int | float) and math.isfinite(value)
        assert objective.minimised(value) <= objective.minimised(objective.worst(costs)) * (1 + 1e-9)
        assert objective(Schedule.from_dict(schedule.to_dict()), costs) == value
        assert (costs, schedule.digest) == before
