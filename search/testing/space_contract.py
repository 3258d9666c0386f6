"""What every space must do. Inherit `SpaceContract`, and give the fixture `space`.

For another model than a tiny PixArt give a static method `make_model`, for another target a fixture `target`.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from search import Schedule
from search.models.base import Model
from search.profile.target import Target
from search.spaces.base import Space
from search.testing.models import tiny_model

PROMPTS = ["red apple", "blue boat"]


@cache
def _shared(make_model: Callable[[], Model]) -> Model:
    """One model for all classes that name it: a schedule leaves no trace."""
    return make_model()


@cache
def _bare(make_model: Callable[[], Model]) -> torch.Tensor:
    """Latents of the bare pipeline of that model."""
    return _shared(make_model).sample(PROMPTS, [0, 1])


class SpaceContract:
    """Rows decode to schedules that run, what is off is the bare pipeline bit for bit, and no trace is left."""

    @staticmethod
    def make_model() -> Model:
        """The model that schedules of the space run on."""
        return tiny_model()

    @pytest.fixture
    def model(self) -> Model:
        """What `make_model` gives, made once."""
        return _shared(type(self).make_model)

    @pytest.fixture
    def target(self, model: Model) -> Target:
        """What the space knows of the model."""
        return model.target

    @pytest.fixture
    def space(self) -> Space:
        """The space to test."""
        raise NotImplementedError("give a fixture `space` that returns your space")

    def row(self, space: Space, target: Target, draw: np.random.Generator) -> np.ndarray:
        """A row [G] by chance, with some genes off."""
        levels = np.array([g.levels for g in space.genes(target)])
        x = draw.integers(0, levels)
        x[draw.random(len(x)) > draw.random()] = 0
        return x

    def schedule(self, space: Space, target: Target, x: np.ndarray) -> Schedule:
        """The schedule that a row [G] decodes to."""
        return Schedule.from_dict(target.schedule(space.decode(x, target)))

    def test_the_zero_row_decodes_to_nothing(self, space: Space, target: Target) -> None:
        assert space.decode(np.zeros(len(space.genes(target)), dtype=int), target) == {}

    def test_the_zero_row_gives_the_bytes_of_the_bare_pipeline(self, space: Space, target: Target, model: Any) -> None:
        bare = _bare(type(self).make_model)
        zero = np.zeros(len(space.genes(target)), dtype=int)
        with model.apply(self.schedule(space, target, zero)):
            assert torch.equal(model.sample(PROMPTS, [0, 1]), bare)

    def test_genes_have_distinct_names_and_an_off_level(self, space: Space, target: Target) -> None:
        genes = space.genes(target)
        assert len({g.name for g in genes}) == len(genes)
        assert all(g.levels >= 1 for g in genes)

    @settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))  # others in every run
    @given(seed=st.integers(0, 2**32 - 1))
    def test_every_genome_runs_and_leaves_no_trace(self, space: Space, target: Target, model: Any, seed: int) -> None:
        x = self.row(space, target, np.random.default_rng(seed))
        schedule = self.schedule(space, target, x)
        assert Schedule.from_dict(schedule.to_dict()) == schedule
        with model.apply(schedule):
            assert torch.isfinite(model.sample(PROMPTS, [0, 1])).all()
        assert torch.equal(model.sample(PROMPTS, [0, 1]), _bare(type(self).make_model))

    def test_presets_are_rows_and_none_is_off(self, space: Space, target: Target) -> None:
        levels = np.array([g.levels for g in space.genes(target)])
        for name, x in space.presets(target).items():
            assert x.shape == levels.shape, name
            assert (x >= 0).all() and (x < levels).all(), name
            assert space.decode(x, target) != {}, name
