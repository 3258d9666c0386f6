"""Training of the bundled PixArt: resuming, the moving average, captions and their vocabulary."""

import dataclasses

import numpy as np
import pytest
import torch

from search.models.training import emoji, pixart
from search.models.training.loop import Recipe, train

RECIPE = Recipe(steps=12, rate=1e-2, warmup=2, checkpoint_every=4)


def fit(work, recipe: Recipe, stop_at: int | None = None) -> tuple[dict, float]:
    torch.manual_seed(recipe.seed)
    module = torch.nn.Linear(4, 1)

    def loss_at(step: int, generator: torch.Generator) -> torch.Tensor:
        if step == stop_at:
            raise KeyboardInterrupt
        x = torch.randn(16, 4, generator=generator)
        return (module(x) - x.sum(1, keepdim=True)).square().mean()

    work.mkdir(exist_ok=True)
    return module.state_dict(), train("toy", module, loss_at, recipe, work)


def test_a_stopped_training_resumes_to_the_same_weights(tmp_path):
    whole, loss = fit(tmp_path / "whole", RECIPE)
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "parts", RECIPE, stop_at=9)
    resumed, again = fit(tmp_path / "parts", RECIPE)
    assert loss == again
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)
    other, _ = fit(tmp_path / "other", dataclasses.replace(RECIPE, seed=1))
    assert not torch.equal(whole["weight"], other["weight"])


def test_exports_see_the_moving_average_and_training_goes_on_unchanged(tmp_path, monkeypatch):
    seen = []
    clock = iter(range(0, 10_000_000, 1000))
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    torch.manual_seed(0)
    module = torch.nn.Linear(2, 1)

    def loss_at(step: int, generator: torch.Generator) -> torch.Tensor:
        return module(torch.ones(1, 2)).square().mean()

    train("toy", module, loss_at, RECIPE, tmp_path, export=lambda: seen.append(module.weight.detach().clone()))
    assert len(seen) == RECIPE.steps
    assert torch.equal(seen[-1], module.weight)  # the average is what training leaves in the module


def test_captions_and_pictures_go_together():
    assert emoji.caption("red-apple", "3d", "pink") == "red apple, 3d style, pink background"
    assert emoji.caption("red-apple", "", "pink") == "red apple, pink background"
    rgba = np.zeros((1, 64, 64, 4), dtype=np.uint8)
    pictures = emoji.EmojiSet(rgba, ("sun",), ("flat",))
    blue = pictures.composite(torch.tensor([0]), torch.tensor([list(emoji.BACKGROUNDS).index("blue")]))
    assert blue[0, :, 0, 0].tolist() == pytest.approx([2 * c - 1 for c in emoji.BACKGROUNDS["blue"]])


def test_the_vocabulary_covers_every_caption():
    captions = [emoji.caption(n, s, b) for n in emoji.CONCEPTS for s in emoji.STYLES for b in emoji.BACKGROUNDS]
    tokenizer = pixart.build_tokenizer(captions)
    ids = tokenizer(captions).input_ids
    assert max(map(len, ids)) <= pixart.TOKENS
    assert not any(tokenizer.unk_token_id in row for row in ids)
