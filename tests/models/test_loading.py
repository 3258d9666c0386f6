"""Where pipelines come from, and what is said where none does."""

import json

import pytest
import torch
import yaml
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
from transformers.utils import logging

from search.config.settings import CONF
from search.models.loading import CHOICES, load, without_downloads
from search.profile.bundled import bundled_model
from search.testing.models import tiny_folder

CLASSES = ("PixArtAlphaPipeline", "PixArtSigmaPipeline")


def test_a_missing_checkpoint_says_what_to_type(tmp_path):
    with pytest.raises(ValueError, match="cannot be loaded: .* Type model.path=<folder with model_index.json>"):
        load(tmp_path / "nowhere", "pixart", CLASSES, torch.float32)


def test_a_pipeline_without_adapter_is_refused_before_its_weights_are_read(tmp_path):
    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
    )
    DDIMPipeline(unet, DDIMScheduler()).save_pretrained(tmp_path)
    for weights in tmp_path.rglob("*.safetensors"):
        weights.unlink()
    told = "is a DDIMPipeline; model=pixart takes PixArtAlphaPipeline and PixArtSigmaPipeline; there are adapters for "
    with pytest.raises(ValueError, match=told):
        load(tmp_path, "pixart", CLASSES, torch.float32)


@pytest.mark.parametrize("found", CHOICES)
def test_every_class_that_is_known_is_told_with_its_model(found, tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": found}))
    told = f"is a {found}; model=mine takes Other; type model={CHOICES[found]} model.path="
    with pytest.raises(ValueError, match=told):
        load(tmp_path, "mine", ("Other",), torch.float32)
    assert found in adapter(CHOICES[found]).classes


def adapter(choice: str):
    """The class that a model= stands for."""
    from hydra.utils import get_class

    return get_class(yaml.safe_load((CONF / "model" / f"{choice}.yaml").read_text())["_target_"])


def test_a_bundled_name_is_a_path_and_a_folder_of_that_name_goes_before_it(tmp_path, monkeypatch):
    assert len(load("pixart", "pixart", CLASSES, torch.float32).transformer.transformer_blocks) == 8
    (tmp_path / "pixart").symlink_to(tiny_folder())
    monkeypatch.chdir(tmp_path)
    assert len(load("pixart", "pixart", CLASSES, torch.float32).transformer.transformer_blocks) == 3


def test_every_bundled_model_has_a_name_of_its_own_in_the_configuration():
    shipped = {folder.name for folder in bundled_model("pixart").parent.iterdir() if folder.is_dir()}
    named = {file.stem for group in ("model", "objective") for file in (CONF / group).glob("*.yaml")}
    assert shipped <= named


def test_libraries_talk_as_before_after_loading():
    before = logging.get_verbosity()
    load(tiny_folder(), "pixart", CLASSES, torch.float32)
    assert logging.get_verbosity() == before


@pytest.mark.parametrize("path", ["/etc/passwd", "https://example.org/x", "a/b/c", "../x"])
def test_what_is_neither_a_folder_nor_a_hub_id_is_not_opened(path):
    with pytest.raises(ValueError, match="cannot be loaded: there is no such folder, and it is not a hub id. Type"):
        load(path, "pixart", CLASSES, torch.float32)


def test_a_hub_id_is_looked_up_on_this_machine_only(monkeypatch):
    import socket

    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("the network was used"))
    with without_downloads(), pytest.raises(ValueError, match="model.path='nobody/nothing' cannot be loaded"):
        load("nobody/nothing", "pixart", CLASSES, torch.float32)
    assert not constants.HF_HUB_OFFLINE
