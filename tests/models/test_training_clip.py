"""The bundled CLIP's training: what is true of what, the loss by hand, and a run of two steps."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, CLIPModel

from search.models.training import clip, emoji


@pytest.fixture(scope="module")
def pictures() -> emoji.EmojiSet:
    rng = np.random.default_rng(0)
    pairs = [(name, style) for name in ("sun", "key", "red-apple") for style in emoji.STYLES]
    rgba = rng.integers(0, 255, (len(pairs), 64, 64, 4)).astype(np.uint8)
    return emoji.EmojiSet(rgba, tuple(name for name, _ in pairs), tuple(style for _, style in pairs))


def test_every_drawing_is_left_out_on_one_background(pictures):
    for index in range(9):
        assert sum(clip.held_out(pictures, index, ground) for ground in range(5)) == 1
    assert len(clip.pairs(pictures)) == 45


def test_captions_say_their_parts(pictures):
    texts = clip.Captions(pictures)
    assert texts.parts(torch.tensor([4, 6]), torch.tensor([1, 3])).tolist() == [[0, 1, 1], [1, 0, 3]]
    assert texts.write([1, 0, 3]) == "red apple, cartoon style, pink background"
    assert texts.write([1, -1, 3]) == "red apple, pink background" and texts.write([1, -1, -1]) == "red apple"
    kinds = [kind for kind in clip.SHOWN if kind != "nothing"]
    says = dict(zip(kinds, clip.Captions.says(torch.arange(4)).tolist(), strict=True))
    assert says == {
        "all": [True, True, True],
        "no style": [True, False, True],
        "no background": [True, True, False],
        "name": [True, False, False],
    }


def test_a_caption_is_true_of_all_pictures_that_have_what_it_says():
    parts = torch.tensor([[0, 1, 2], [0, 1, 3], [0, 2, 2], [1, 1, 2]])
    said = torch.tensor([[0, 1, 2], [0, -1, 3], [0, -1, -1], [1, 1, -1]])
    assert clip.matches(said, parts).int().tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [1, 1, 1, 0], [0, 0, 0, 1]]


def test_the_loss_by_hand():
    logits = torch.randn(4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    true = torch.tensor([[1, 0, 0, 0], [0, 1, 0, 0], [1, 1, 1, 0], [0, 0, 0, 1]]).bool()
    total = 0.0
    for z, t in ((logits, true), (logits.T, true.T)):
        for i in range(4):
            whole = math.log(sum(math.exp(float(v)) for v in z[i]))
            right = [float(z[i, j]) - whole for j in range(4) if t[i, j]]
            total -= sum(right) / len(right) / 4 / 2
    assert float(clip.contrastive(logits, true)) == pytest.approx(total)
    diagonal = torch.eye(4).bool()
    usual = torch.nn.functional.cross_entropy
    expected = (usual(logits, torch.arange(4)) + usual(logits.T, torch.arange(4))) / 2
    assert float(clip.contrastive(logits, diagonal)) == pytest.approx(float(expected))


def test_augmented_pictures_stay_pictures(pictures):
    plain = pictures.composite(torch.arange(9), torch.zeros(9, dtype=torch.long))
    seen = clip.augment(plain, torch.Generator().manual_seed(0))
    assert seen.shape == plain.shape and float(seen.abs().max()) <= 1
    assert torch.equal(seen, clip.augment(plain, torch.Generator().manual_seed(0)))


@pytest.mark.slow
def test_two_steps_make_a_folder_that_transformers_loads(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(clip, "BATCH", 6)
    recipe = dataclasses.replace(clip.RECIPE, steps=2, warmup=1)
    loss = clip.fit(pictures, tmp_path, torch.device("cpu"), tmp_path / "out", recipe)
    assert math.isfinite(loss)
    model = CLIPModel.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.float32 and AutoTokenizer.from_pretrained(tmp_path / "out").vocab_size > 40
    found = clip.retrieval(model.eval(), pictures)
    assert found["pictures"] == 9 and 0 <= found["caption of picture"] <= 1
