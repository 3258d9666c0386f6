"""PixArt: the adapter, the bundled model, and the small one beside it."""

import pytest
from diffusers import PixArtAlphaPipeline

from search.profile.bundled import bundled_model
from search.testing.model_contract import ModelContract
from search.testing.models import pixart, tiny_folder
from tests.helpers.bundled_models import bundled_loops_agree, bundled_size

EMOJI = ["red apple, 3d style, white background", "cat face, flat style, blue background"]


class TestPixArt(ModelContract):
    def make(self, **arguments):
        return pixart(**{"path": tiny_folder(), "steps": self.steps, "max_sequence_length": 8, **arguments})


def test_the_bundled_pipeline_loads_without_anything_of_ours():
    pipe = PixArtAlphaPipeline.from_pretrained(bundled_model("pixart"), local_files_only=True)
    count = sum(p.numel() for part in (pipe.transformer, pipe.vae, pipe.text_encoder) for p in part.parameters())
    assert 2e6 < count < 6e6
    assert bundled_size(bundled_model("pixart")) < 15 * 2**20


@pytest.mark.slow
def test_the_bundled_model_searched_loop_is_the_stock_call():
    model = pixart()
    bundled_loops_agree(model, EMOJI, [["transformer_blocks.*:*", "(CR)*10"], ["transformer_blocks.2:ff", "CC F1*18"]])
    assert len(model.target.tree.nodes) == 2 + 8 * 4


@pytest.mark.slow
def test_the_small_bundled_model_takes_the_conditions_and_the_noise_of_the_large_one():
    large, small = pixart(), pixart(name="pixart_small", path="pixart_small")
    assert small.target.tree.stacks == {"transformer_blocks": 3}
    assert small.target.sampler == large.target.sampler
    assert (small.encode(EMOJI)["encoder_hidden_states"] == large.encode(EMOJI)["encoder_hidden_states"]).all()
    bundled_loops_agree(small, EMOJI, [["transformer_blocks.*:*", "(CR)*10"]])
