import pytest
import torch

from search import Schedule
from search.models.pixart import BUNDLED, PixArt, load
from tests.models import tiny_model

PROMPTS = ["red apple", "blue boat"]


@pytest.mark.parametrize("guidance", [4.0, 1.0])
def test_own_loop_gives_the_stock_pipelines_latents(guidance):
    model = tiny_model(guidance_scale=guidance)
    own = model.sample(model.encode(PROMPTS), model.noise([3, 4]))
    assert torch.equal(own, model.stock(PROMPTS, [3, 4], output_type="latent"))


def test_decoded_pictures_are_the_stock_pipelines():
    model = tiny_model()
    own = model.decode(model.sample(model.encode(PROMPTS), model.noise([3, 4])))
    stock = torch.from_numpy(model.stock(PROMPTS, [3, 4], output_type="np")).permute(0, 3, 1, 2)
    assert torch.allclose(own, stock, atol=1e-6)


def test_fewer_steps_by_schedule_are_fewer_steps_by_argument():
    model = tiny_model(steps=6)
    fewer = Schedule.from_dict(model.target.schedule({}) | {"steps": 4, "sampler": model.shorter(4)})
    bare = model.stock(PROMPTS, [3, 4], output_type="latent", num_inference_steps=4)
    with fewer.apply(model.pipe):
        assert torch.equal(model.stock(PROMPTS, [3, 4], output_type="latent"), bare)


def test_a_missing_checkpoint_says_what_to_type(tmp_path):
    with pytest.raises(ValueError, match="cannot be loaded: .* Type model.path=<folder with model_index.json>"):
        load(tmp_path / "nowhere", torch.float32)


def test_another_pipeline_is_refused(tmp_path):
    from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
    )
    DDIMPipeline(unet, DDIMScheduler()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a DDIMPipeline; model=pixart takes PixArtAlphaPipeline"):
        load(tmp_path, torch.float32)


def test_the_bundled_pipeline_loads_without_anything_of_ours():
    from diffusers import PixArtAlphaPipeline

    pipe = PixArtAlphaPipeline.from_pretrained(BUNDLED, local_files_only=True)
    count = sum(p.numel() for part in (pipe.transformer, pipe.vae, pipe.text_encoder) for p in part.parameters())
    assert 2e6 < count < 6e6
    size = sum(f.stat().st_size for f in BUNDLED.rglob("*") if f.is_file())
    assert size < 15 * 2**20


def test_the_bundled_model_searched_loop_is_the_stock_call():
    model = PixArt()
    prompts = ["red apple, 3d style, white background", "cat face, flat style, blue background"]
    parts = {"plan": {"rules": [["transformer_blocks.*:*", "(CR)*10"], ["transformer_blocks.2:ff", "CC F1*18"]]}}
    with Schedule.from_dict(model.target.schedule(parts)).apply(model.pipe):
        own = model.sample(model.encode(prompts), model.noise([0, 1]))
        assert torch.equal(own, model.stock(prompts, [0, 1], output_type="latent"))
    assert len(model.target.tree.nodes) == 2 + 8 * 4
