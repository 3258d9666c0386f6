"""The contract of models on a tiny pipeline of each family, and what is special about some."""

import math
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler

from search.calibrate.drifts import record_drifts
from search.spaces.guidance import GuidanceSpace
from search.testing import pipelines
from search.testing.model_contract import SEEDS, ModelContract
from search.testing.models import saved, tiny_family, tiny_model

SQUARE = {"height": 16, "width": 16, "max_sequence_length": 8}


class OfFamily(ModelContract):
    family = ""

    def make(self, **arguments: Any):
        return tiny_family(self.family, self.steps, **arguments)


class TestPixArt(ModelContract):
    call = {
        "guidance_scale": 4.0,
        "max_sequence_length": 8,
        "use_resolution_binning": False,
        "clean_caption": False,
    }

    def make(self, **arguments: Any):
        return tiny_model(self.steps, **arguments)


@cache
def noisy_folder() -> Path:
    own = pipelines.stable_diffusion().scheduler
    scheduler = DPMSolverMultistepScheduler.from_config(own.config, algorithm_type="sde-dpmsolver++")
    return saved(lambda: pipelines.stable_diffusion(scheduler), Path(mkdtemp()) / "noisy")


class TestStableDiffusion(OfFamily):
    """With a solver that draws noise at each step: a run that goes on from a state has drawn as much before."""

    family, call = "sd", {"guidance_scale": 4.0}

    def make(self, **arguments: Any):
        return super().make(**{"path": noisy_folder(), **arguments})


class TestStableDiffusionXL(OfFamily):
    family, call = "sdxl", {"guidance_scale": 4.0}


class TestFlux(OfFamily):
    family, call = "flux", {"guidance_scale": 3.5, **SQUARE}


class TestStableDiffusion3(OfFamily):
    family, call = "sd3", {"guidance_scale": 4.0, **SQUARE}


class TestWan(OfFamily):
    family, calls = "wan", 2
    call = {"guidance_scale": 5.0, "height": 32, "width": 32, "num_frames": 5, "max_sequence_length": 8}

    def pictures(self, model, **arguments):
        frames = super().pictures(model, **arguments)  # [B, F, 3, H, W]
        return torch.cat([frames[:, i] for i in (0, 1, 3, 4)], dim=-1)

    def test_drifts_of_both_calls_count_as_one_value(self, model):
        """Inner products of a step's outputs are sums over the two branches."""
        outputs = []
        hook = model.denoiser.blocks[1].ffn.register_forward_hook(lambda *a: outputs.append(a[-1].double().flatten()))
        drifts = record_drifts([model.denoiser], model.target.tree, range(5), lambda: model.sample(self.prompts, SEEDS))
        hook.remove()
        with_text, without = torch.stack(outputs[::2]), torch.stack(outputs[1::2])
        expected = with_text @ with_text.T + without @ without.T
        assert torch.allclose(torch.from_numpy(drifts.pairs["blocks.1:ffn"].inner), expected)

    def test_guidance_in_two_calls_is_no_batch_for_a_guidance_space(self, model):
        assert model.target.guidance == 5.0
        with pytest.raises(ValueError, match="WanTransformer3DModel"):
            GuidanceSpace().genes(model.target)


def test_a_timestep_for_each_token_is_what_the_pipeline_gives(tmp_path):
    """Wan 2.2 5B has one a token."""
    folder = saved(lambda: pipelines.wan(expand_timesteps=True), tmp_path / "tokens")
    model = tiny_family("wan", 5, path=folder)
    assert torch.equal(model.sample(TestWan.prompts, SEEDS), TestWan().returned(model))


class TestDiT(OfFamily):
    """Its pipeline decodes always, and steps both halves of guidance."""

    family, call = "dit", {"guidance_scale": 4.0}
    prompts = ["apple", "sailing boat"]

    def returned(self, model, **arguments):
        numbers = {"apple": 0, "sailing boat": 1}
        given = {"num_inference_steps": self.steps, **self.call, **arguments}
        generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
        return model.pipe([numbers[name] for name in self.prompts], generator=generators, return_dict=False, **given)[0]

    @pytest.mark.parametrize("guidance", [4.0, 1.0])
    def test_latents_are_those_of_the_pipelines_call(self, model, guidance, monkeypatch):
        monkeypatch.setattr(model, "guidance_scale", guidance)
        found, decoded = model.sample(self.prompts, SEEDS), []
        model.pipe.vae.post_quant_conv.register_forward_pre_hook(lambda _, args: decoded.append(args[0]))
        self.pictures(model, guidance_scale=guidance)
        model.pipe.vae.post_quant_conv._forward_pre_hooks.clear()
        assert torch.equal(1 / model.pipe.vae.config.scaling_factor * found, decoded[0])
        assert not torch.allclose(found, model.sample(self.prompts[::-1], SEEDS))


def test_a_grid_is_shifted_for_the_number_of_tokens(tmp_path):
    """16 tokens: exp(mu) = exp(0.5 + (16 - 256) (1.15 - 0.5) / (4096 - 256)), on the even grids of Flux and SD3."""
    folder = saved(lambda: pipelines.stable_diffusion_3(dynamic=True), tmp_path / "sd3")
    shift = math.exp(0.5 + (16 - 256) * 0.65 / 3840)
    models = tiny_family("flux", 4), tiny_family("sd3", 5, path=folder)
    for model, even in zip(models, ([1.0, 0.75, 0.5, 0.25], [1 - i / 4 * 0.999 for i in range(5)]), strict=True):
        expected = [shift / (shift + 1 / s - 1) for s in even] + [0.0]
        assert model.target.sampler["sigmas"] == pytest.approx(expected, rel=1e-4)


def test_guidance_as_an_input_is_no_branch_for_a_guidance_space():
    model = tiny_family("flux")
    assert model.target.guidance == 1.0 and model.arguments["guidance_scale"] == 3.5
    with pytest.raises(ValueError, match="guidance"):
        GuidanceSpace().genes(model.target)
