"""Flux: guidance as an input, grids shifted by the number of tokens, and the bundled model."""

import math
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest
import torch
from diffusers import FluxPipeline

from search.models.flux import Flux
from search.profile.bundled import bundled_model
from search.spaces.guidance import GuidanceSpace
from search.testing.model_contract import ModelContract
from search.testing.models import saved, tiny_family
from search.testing.pipelines import flux
from tests.helpers.bundled_models import bundled_loops_agree, bundled_size


class TestFlux(ModelContract):
    def make(self, **arguments):
        return tiny_family("flux", self.steps, **arguments)


@cache
def fixed_folder() -> Path:
    return saved(lambda: flux(dynamic=False), Path(mkdtemp()) / "fixed")


class TestFixedShift(TestFlux):
    """Schnell and the bundled model: the scheduler's shift does not depend on the size."""

    def make(self, **arguments):
        return tiny_family("flux", self.steps, **{"path": fixed_folder(), **arguments})


def test_the_grid_is_shifted_for_the_number_of_tokens():
    """16 tokens: exp(mu) = exp(0.5 + (16 - 256) (1.15 - 0.5) / (4096 - 256)), on the even grid from 1 to 1/T."""
    sigmas = tiny_family("flux", 4).target.sampler["sigmas"]
    shift = math.exp(0.5 + (16 - 256) * 0.65 / 3840)
    even = [1.0, 0.75, 0.5, 0.25]
    assert sigmas == pytest.approx([shift / (shift + 1 / s - 1) for s in even] + [0.0], rel=1e-6)


def test_a_model_without_guidance_embedding_takes_none(tmp_path):
    folder = saved(lambda: flux(guidance=False), tmp_path / "schnell")
    weak, strong = (tiny_family("flux", 3, path=folder, guidance_scale=scale) for scale in (0.0, 5.0))
    latents = [m.sample(["red apple"], [3]) for m in (weak, strong)]
    assert torch.equal(*latents)
    assert torch.equal(latents[0], weak.stock(["red apple"], [3], output_type="latent"))


def test_there_is_no_branch_for_a_guidance_space():
    model = tiny_family("flux")
    assert model.target.guidance == 1.0 and model.arguments["guidance_scale"] == 3.5
    with pytest.raises(ValueError, match="guidance"):
        GuidanceSpace().genes(model.target)


def test_the_bundled_pipeline_loads_without_anything_of_ours():
    FluxPipeline.from_pretrained(bundled_model("flux"), local_files_only=True)
    assert bundled_size(bundled_model("flux")) < 12 * 2**20


@pytest.mark.slow
def test_the_bundled_model_searched_loop_is_the_stock_call():
    model = Flux()
    assert model.size == (64, 64) and model.noise([0]).shape == (1, 64, 32)
    rules = [["transformer_blocks.*:*", "(CR)*10"], ["single_transformer_blocks.*:attn", "(CR)*10"]]
    bundled_loops_agree(model, ["red apple, 3d style", "cat face"], rules)
