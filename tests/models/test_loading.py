"""Where pipelines come from, and what is said where none does."""

import pytest
import torch
from transformers.utils import logging

from search.config.settings import CONF
from search.models.loading import load_any, without_downloads
from search.profile.bundled import bundled_model
from search.testing.models import tiny_folder


def test_a_missing_checkpoint_says_what_to_type(tmp_path):
    with pytest.raises(ValueError, match="cannot be loaded: .* Type model.path=<folder with model_index.json>"):
        load_any(tmp_path / "nowhere", torch.float32)


def test_a_bundled_name_is_a_path_and_a_folder_of_that_name_goes_before_it(tmp_path, monkeypatch):
    assert len(load_any("pixart", torch.float32).transformer.transformer_blocks) == 8
    (tmp_path / "pixart").symlink_to(tiny_folder())
    monkeypatch.chdir(tmp_path)
    assert len(load_any("pixart", torch.float32).transformer.transformer_blocks) == 3


def test_every_bundled_model_has_a_name_of_its_own_in_the_configuration():
    shipped = {folder.name for folder in bundled_model("pixart").parent.iterdir() if folder.is_dir()}
    named = {file.stem for group in ("model", "objective") for file in (CONF / group).glob("*.yaml")}
    assert shipped <= named


def test_libraries_talk_as_before_after_loading():
    before = logging.get_verbosity()
    load_any(tiny_folder(), torch.float32)
    assert logging.get_verbosity() == before


@pytest.mark.parametrize("path", ["/etc/passwd", "https://example.org/x", "a/b/c", "../x"])
def test_what_is_neither_a_folder_nor_a_hub_id_is_not_opened(path):
    with pytest.raises(ValueError, match="cannot be loaded: there is no such folder, and it is not a hub id. Type"):
        load_any(path, torch.float32)


def test_a_hub_id_is_looked_up_on_this_machine_only(monkeypatch):
    import socket

    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("the network was used"))
    with without_downloads(), pytest.raises(ValueError, match="model.path='nobody/nothing' cannot be loaded"):
        load_any("nobody/nothing", torch.float32)
    assert not constants.HF_HUB_OFFLINE
