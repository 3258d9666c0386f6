"""Wan: frames of videos, guidance in two calls, and what is refused."""

from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest
import torch

from search.calibrate.drifts import record_drifts
from search.spaces.guidance import GuidanceSpace
from search.testing.denoisers import wan as wan_transformer
from search.testing.model_contract import SEEDS, ModelContract
from search.testing.models import saved, tiny_family
from search.testing.pipelines import wan


class TestWan(ModelContract):
    calls = 2

    def make(self, **arguments):
        return tiny_family("wan", self.steps, **arguments)

    def pictures(self, model):
        frames = torch.from_numpy(self.stock(model, output_type="np"))  # [B, F, H, W, 3]
        return torch.cat([frames[:, i].permute(0, 3, 1, 2) for i in (0, 1, 3, 4)], dim=-1)

    def test_latents_have_frames_and_pictures_are_strips_of_four(self):
        model = self.make()
        latents = model.noise(SEEDS)
        assert latents.shape == (2, 4, 2, 4, 4) and latents.dtype == torch.float32
        assert model.decode(latents).shape == (2, 3, 32, 4 * 32)

    def test_a_number_of_frames_that_cannot_be_is_told_with_one_that_can(self):
        with pytest.raises(ValueError, match="model.num_frames=80: .* type model.num_frames=81"):
            self.make(num_frames=80)

    def test_drifts_of_both_calls_count_as_one_value(self):
        """Inner products of a step's outputs are sums over the two branches."""
        model, outputs = self.make(), []
        hook = model.denoiser.blocks[1].ffn.register_forward_hook(lambda *a: outputs.append(a[-1].double().flatten()))
        drifts = record_drifts(model.denoiser, model.target.tree, range(5), lambda: self.own(model))
        hook.remove()
        with_text, without = torch.stack(outputs[::2]), torch.stack(outputs[1::2])
        expected = with_text @ with_text.T + without @ without.T
        assert torch.allclose(torch.from_numpy(drifts.pairs["blocks.1:ffn"].inner), expected)

    def test_guidance_in_two_calls_is_no_batch_for_a_guidance_space(self):
        model = self.make()
        assert model.target.guidance == 5.0
        with pytest.raises(ValueError, match="WanTransformer3DModel"):
            GuidanceSpace().genes(model.target)


@cache
def tokens_folder() -> Path:
    return saved(lambda: wan(expand_timesteps=True), Path(mkdtemp()) / "tokens")


class TestTimeOfEachToken(TestWan):
    """Wan 2.2 5B gives the denoiser one timestep a token."""

    def make(self, **arguments):
        return tiny_family("wan", self.steps, **{"path": tokens_folder(), **arguments})


def test_two_transformers_are_refused(tmp_path):
    folder = saved(lambda: wan(transformer_2=wan_transformer(), boundary_ratio=0.875), tmp_path / "two")
    with pytest.raises(
        ValueError, match="has two transformers, .*; model=wan takes pipelines with one, such as Wan-AI"
    ):
        tiny_family("wan", path=folder)
