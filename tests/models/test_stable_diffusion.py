"""Stable Diffusion and SDXL: sizes as a condition, decoding in float16, schedulers, and the bundled model."""

import pytest
import torch
from diffusers import PNDMScheduler, StableDiffusionPipeline

from search.models.stable_diffusion import StableDiffusion
from search.profile.bundled import bundled_model
from search.testing.model_contract import ModelContract
from search.testing.models import saved, tiny_family
from search.testing.pipelines import stable_diffusion
from tests.helpers.bundled_models import bundled_loops_agree, bundled_size


class TestStableDiffusion(ModelContract):
    def make(self, **arguments):
        return tiny_family("sd", self.steps, **arguments)


class TestStableDiffusionXL(ModelContract):
    def make(self, **arguments):
        return tiny_family("sdxl", self.steps, **arguments)

    def test_the_size_of_the_picture_is_a_condition(self):
        model = self.make(height=32, width=16)
        added = model.encode(self.prompts)["added_cond_kwargs"]
        assert added["time_ids"].tolist() == [[32, 16, 0, 0, 32, 16]] * 4
        assert torch.equal(added["text_embeds"][:2], torch.zeros(2, 16))  # the empty prompt is zeros, as SDXL has it

    def test_an_autoencoder_in_float16_decodes_in_float32(self):
        model, precise = self.make(dtype="float16"), self.make()
        latents = precise.noise([0])
        found = model.decode(latents.half())
        assert found.dtype == torch.float32 and model.pipe.vae.dtype == torch.float16
        assert torch.allclose(found, precise.decode(latents), atol=2e-3)


def test_another_scheduler_gets_the_configuration_of_the_pipelines_own(tmp_path):
    plms = PNDMScheduler(beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1, set_alpha_to_one=False)
    folder = saved(lambda: stable_diffusion(plms), tmp_path / "plms")
    with pytest.raises(ValueError, match="model=sd has a PNDMScheduler, .*type model.scheduler=DPMSolverMultistep"):
        StableDiffusion(path=folder)
    with pytest.raises(ValueError, match="model.scheduler='PNDMScheduler': choose from DPMSolverMultistepScheduler, "):
        StableDiffusion(path=folder, scheduler="PNDMScheduler")
    model = StableDiffusion(path=folder, scheduler="DPMSolverMultistepScheduler", steps=4)
    assert model.target.sampler["class"] == "DPMSolverMultistepScheduler"
    assert model.target.sampler["config"]["beta_schedule"] == "scaled_linear"
    own = model.sample(["red apple"], [3])
    assert torch.equal(own, model.stock(["red apple"], [3], output_type="latent"))


def test_a_unet_that_takes_the_guidance_scale_is_refused(tmp_path):
    folder = saved(lambda: stable_diffusion(time_cond_proj_dim=8), tmp_path / "lcm")
    with pytest.raises(ValueError, match="model=sd takes the guidance scale as an input .*give model.path= a UNet"):
        StableDiffusion(path=folder)


def test_the_bundled_pipeline_loads_without_anything_of_ours():
    StableDiffusionPipeline.from_pretrained(bundled_model("sd"), local_files_only=True)
    assert bundled_size(bundled_model("sd")) < 12 * 2**20


@pytest.mark.slow
def test_the_bundled_model_searched_loop_is_the_stock_call():
    model = StableDiffusion()
    assert model.size == (64, 64)
    bundled_loops_agree(model, ["red apple, 3d style", "cat face"], [["up_blocks.*:*", "(CR)*10"]])
