"""Stable Diffusion 3: the adapter, and grids shifted by the number of tokens."""

import math
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest

from search.models.sd3 import StableDiffusion3
from search.testing.model_contract import ModelContract
from search.testing.models import saved, tiny_family
from search.testing.pipelines import stable_diffusion_3


class TestStableDiffusion3(ModelContract):
    def make(self, **arguments):
        return tiny_family("sd3", self.steps, **arguments)

    def test_own_loop_gives_the_stock_pipelines_latents_at_another_size(self):
        """The tiny model has place embeddings for pictures up to its own size."""
        model = self.make(height=16, width=8)
        assert (self.own(model) == self.stock(model)).all()


@cache
def dynamic_folder() -> Path:
    return saved(lambda: stable_diffusion_3(dynamic=True), Path(mkdtemp()) / "dynamic")


class TestDynamicShift(TestStableDiffusion3):
    def make(self, **arguments):
        return tiny_family("sd3", self.steps, **{"path": dynamic_folder(), **arguments})

    def test_the_grid_is_shifted_for_the_number_of_tokens(self):
        """16 tokens: exp(mu) = exp(0.5 + (16 - 256) (1.15 - 0.5) / (4096 - 256)), on an even grid from 1 to 1/1000."""
        shift = math.exp(0.5 + (16 - 256) * (1.15 - 0.5) / 3840)
        even = [1 - i / 4 * 0.999 for i in range(5)]
        expected = [shift / (shift + 1 / s - 1) for s in even] + [0.0]
        assert self.make().target.sampler["sigmas"] == pytest.approx(expected, rel=1e-4)


def test_no_small_one_ships_with_the_project():
    with pytest.raises(
        ValueError, match="no StableDiffusion3Pipeline is bundled with the project; type model.path=<folder or hub"
    ):
        StableDiffusion3()
