"""What encoders returned is given again, as long as inputs and weights are the same."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from search.models import encoders
from search.models.encoders import EncoderMemo

TOKENS = torch.tensor([[1, 2, 3]])


class Encoder(nn.Module):
    """Counts its calls."""

    def __init__(self):
        super().__init__()
        self.embed, self.calls = nn.Embedding(9, 4), 0

    def forward(self, tokens, mask=None, extra=None):
        self.calls += 1
        return {"states": self.embed(tokens), "mask": mask}


class Decoder(Encoder):
    def decode(self):
        """What makes it an autoencoder."""


@pytest.fixture
def pipe():
    parts = {
        "encoder": Encoder().eval(),
        "vae": Decoder().eval(),
        "denoiser": nn.Linear(4, 4).eval(),
        "words": object(),
    }
    return SimpleNamespace(components=parts, **parts)


@torch.no_grad()
def run(memo, pipe, *args, **kwargs):
    """What the encoder gives before the denoiser's call and after it."""
    with memo.remembered([pipe.denoiser]):
        before = pipe.encoder(*args, **kwargs)
        pipe.denoiser(torch.zeros(4))
        after = pipe.encoder(*args, **kwargs)
    return before["states"], after["states"]


def test_equal_calls_are_answered_until_the_denoiser_is_called(pipe):
    memo = EncoderMemo(pipe)
    first = run(memo, pipe, TOKENS)
    assert pipe.encoder.calls == 2
    assert all(torch.equal(*pair) for pair in zip(first, run(memo, pipe, TOKENS.clone()), strict=True))
    assert pipe.encoder.calls == 3  # the one after the denoiser's
    run(memo, pipe, tokens=TOKENS)
    run(memo, pipe, TOKENS, mask=True)
    run(memo, pipe, TOKENS + 1)
    assert pipe.encoder.calls == 9


def test_what_a_pipeline_writes_into_stays_its_own(pipe):
    memo = EncoderMemo(pipe)
    expected = run(memo, pipe, TOKENS)[0].clone()
    run(memo, pipe, TOKENS)[0].zero_()
    assert torch.equal(run(memo, pipe, TOKENS)[0], expected)


@torch.no_grad()
@pytest.mark.parametrize("change", ["in place", "data in place", "data", "parameter", "type"])
def test_changed_weights_are_seen(pipe, change):
    memo, embed = EncoderMemo(pipe), pipe.encoder.embed
    run(memo, pipe, TOKENS)
    if change == "in place":
        embed.weight[2, 1] += 1
    elif change == "data in place":  # as adapters are merged: leaves no version
        embed.weight.data += 1
    elif change == "data":
        embed.weight.data = embed.weight.data + 1
    elif change == "parameter":
        embed.weight = nn.Parameter(embed.weight + 1)
    else:
        embed.to(torch.float16)
    before, after = run(memo, pipe, TOKENS)
    assert torch.equal(before, after)


def test_calls_with_other_arguments_are_made(pipe):
    memo = EncoderMemo(pipe)
    for _ in range(2):
        run(memo, pipe, TOKENS, extra=object())
    assert pipe.encoder.calls == 4 and not memo.results


def test_encoders_in_training_and_autoencoders_are_called(pipe):
    memo = EncoderMemo(pipe)
    pipe.encoder.train()
    for _ in range(2):
        with memo.remembered([pipe.denoiser]):
            pipe.encoder(TOKENS)
            pipe.vae(TOKENS)
    assert pipe.encoder.calls == pipe.vae.calls == 2


def test_the_oldest_results_go(pipe, monkeypatch):
    monkeypatch.setattr(encoders, "KEPT", 2)
    memo = EncoderMemo(pipe)
    for number in (0, 1, 0, 2, 0, 1):  # 1 was used least recently when 2 came
        with memo.remembered([pipe.denoiser]):
            pipe.encoder(TOKENS + number)
    assert pipe.encoder.calls == 4 and len(memo.results) == 2


@pytest.mark.parametrize("replaced", [False, True])
def test_forwards_are_as_before(pipe, replaced):
    """Also one that another tool has replaced, as offloading does."""
    own = pipe.encoder.forward
    if replaced:
        pipe.encoder.forward = lambda *args: {"states": 2 * own(*args)["states"]}
    before = dict(vars(pipe.encoder))
    memo = EncoderMemo(pipe)
    with pytest.raises(ZeroDivisionError), memo.remembered([pipe.denoiser]):
        raise ZeroDivisionError
    first, again = run(memo, pipe, TOKENS)
    assert torch.equal(first, again) and torch.equal(first, (1 + replaced) * pipe.encoder.embed(TOKENS))
    assert {**vars(pipe.encoder), "calls": 0} == before
    assert not pipe.denoiser._forward_pre_hooks
