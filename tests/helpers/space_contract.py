"""What it means to be a space. Inherit, and give `space` and `target`."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from search import Schedule
from search.profile.target import Target
from search.spaces.base import Space
from search.testing.models import tiny_model

PROMPTS = ["red apple", "blue boat"]


class SpaceContract:
    @pytest.fixture(scope="class")
    def model(self):
        return tiny_model()

    @pytest.fixture
    def target(self, model) -> Target:
        return model.target

    @pytest.fixture
    def space(self) -> Space:
        raise NotImplementedError

    def row(self, space: Space, target: Target, draw: np.random.Generator) -> np.ndarray:
        levels = np.array([g.levels for g in space.genes(target)])
        x = draw.integers(0, levels)
        x[draw.random(len(x)) > draw.random()] = 0
        return x

    def schedule(self, space, target, x) -> Schedule:
        return Schedule.from_dict(target.schedule(space.decode(x, target)))

    def test_the_zero_row_decodes_to_nothing(self, space, target):
        assert space.decode(np.zeros(len(space.genes(target)), dtype=int), target) == {}

    def test_the_zero_row_gives_the_bytes_of_the_bare_pipeline(self, space, target, model):
        bare = model.stock(PROMPTS, [0, 1], output_type="latent")
        zero = np.zeros(len(space.genes(target)), dtype=int)
        with model.apply(self.schedule(space, target, zero)):
            assert torch.equal(model.stock(PROMPTS, [0, 1], output_type="latent"), bare)

    def test_genes_have_distinct_names_and_an_off_level(self, space, target):
        genes = space.genes(target)
        assert len({g.name for g in genes}) == len(genes)
        assert all(g.levels >= 1 for g in genes)

    @settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
    @given(seed=st.integers(0, 2**32 - 1))
    def test_every_genome_runs_and_leaves_no_trace(self, space, target, model, seed):
        x = self.row(space, target, np.random.default_rng(seed))
        schedule = self.schedule(space, target, x)
        assert Schedule.from_dict(schedule.to_dict()) == schedule
        bare = model.stock(PROMPTS, [0, 1], output_type="latent")
        with model.apply(schedule):
            first = model.stock(PROMPTS, [0, 1], output_type="latent")
            second = model.stock(PROMPTS, [0, 1], output_type="latent")
        assert torch.isfinite(first).all()
        assert torch.equal(first, second)
        assert torch.equal(model.stock(PROMPTS, [0, 1], output_type="latent"), bare)

    @settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
    @given(seed=st.integers(0, 2**32 - 1))
    def test_what_the_search_measures_is_what_the_stock_pipeline_does(self, space, target, model, seed):
        x = self.row(space, target, np.random.default_rng(seed))
        with model.apply(self.schedule(space, target, x)):
            own = model.sample(model.encode(PROMPTS), model.noise([0, 1]))
            stock = model.stock(PROMPTS, [0, 1], output_type="latent")
        assert torch.equal(own, stock)

    def test_presets_are_rows_and_none_is_off(self, space, target):
        levels = np.array([g.levels for g in space.genes(target)])
        for name, x in space.presets(target).items():
            assert x.shape == levels.shape, name
            assert (x >= 0).all() and (x < levels).all(), name
            assert space.decode(x, target) != {}, name
