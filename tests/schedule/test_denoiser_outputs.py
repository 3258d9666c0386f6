"""Denoisers that take lists of tensors, and return lists or several tensors: whole steps are reused and forecast."""

from collections import OrderedDict
from types import SimpleNamespace

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from search import Schedule, ScheduleError
from search.schedule.apply.outputs import unpack_output
from search.schedule.model.contracts import Contract
from search.schedule.model.identity import model_part

CONTRACT = Contract.from_dict({"stacks": [{"name": "layers", "components": [], "outputs": ["input"]}], "sample": "x"})


class Denoiser(nn.Module):
    """Takes a list of pictures, one for each prompt; `pack` says what it returns."""

    def __init__(self, pack):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.pack = pack

    def forward(self, x, t):
        states = torch.stack(x) + t
        for layer in self.layers:
            states = torch.tanh(layer(states))
        return self.pack(states)


class Named(OrderedDict):
    """An output class that torch cannot take apart."""

    def __init__(self, sample):
        super().__init__(sample=sample)

    def __getitem__(self, key):
        return list(self.values())[key] if isinstance(key, int) else super().__getitem__(key)


PACKS = {
    "tensor": lambda s: s,
    "tuple": lambda s: (s,),
    "list of pictures": lambda s: (list(s.unbind(0)), {}),
    "video, text, audio": lambda s: ((s,), None, [s * 2, 7]),
    "output of diffusers": lambda s: Transformer2DModelOutput(sample=s),
}


def pipeline(pack):
    torch.manual_seed(0)
    return SimpleNamespace(denoiser=Denoiser(PACKS[pack]), scheduler=FlowMatchEulerDiscreteScheduler())


def schedule(pipe, actions):
    data = {"format": "schedule/1", "model": model_part(pipe.denoiser, CONTRACT), "steps": len(actions.split())}
    return Schedule.from_dict(data | {"plan": {"rules": [["denoiser", actions]]}})


def run(pipe, steps=4):
    """What the denoiser returned at each step, on inputs that do not depend on it."""
    pipe.scheduler.set_timesteps(steps)
    outputs, latents = [], torch.zeros(1)
    with torch.no_grad():
        for i, t in enumerate(pipe.scheduler.timesteps):
            outputs.append(pipe.denoiser([torch.full((2, 4), float(i + k)) for k in range(3)], t / 1000))
            pipe.scheduler.step(latents, t, latents)
    return outputs


def equal(a, b):
    left, right = tree_flatten(a), tree_flatten(b)
    return left[1] == right[1] and all(
        torch.equal(x, y) if isinstance(x, Tensor) else x == y for x, y in zip(left[0], right[0], strict=True)
    )


@pytest.mark.parametrize("pack", PACKS)
def test_off_reuse_and_forecast(pack):
    pipe = pipeline(pack)
    bare = run(pipe)
    with schedule(pipe, "C C C C").apply(pipe):
        assert all(map(equal, run(pipe), bare))
    with schedule(pipe, "C R C R").apply(pipe) as handle:
        found = run(pipe)
        assert handle.memory.now == 0
    assert all(map(equal, found, [bare[0], bare[0], bare[2], bare[2]]))
    with schedule(pipe, "C C F1 C").apply(pipe):
        found = run(pipe)
    for before, last, forecast in zip(*(tree_flatten(each)[0] for each in (bare[0], bare[1], found[2])), strict=True):
        if isinstance(last, Tensor):
            torch.testing.assert_close(forecast, last + (last - before))
        else:
            assert forecast == last
    assert all(map(equal, run(pipe), bare))


def test_what_is_reused_may_be_written_into():
    pipe = pipeline("list of pictures")
    bare = run(pipe)
    with schedule(pipe, "C R R R").apply(pipe):
        pipe.scheduler.set_timesteps(4)
        latents = torch.zeros(1)
        for t in pipe.scheduler.timesteps:
            with torch.no_grad():
                (pictures, _) = pipe.denoiser([torch.full((2, 4), float(k)) for k in range(3)], t / 1000)
            assert equal(pictures, bare[0][0])
            for picture in pictures:
                picture.zero_()
            pipe.scheduler.step(latents, t, latents)


def test_lists_of_another_length_are_another_input():
    pipe = pipeline("tuple")
    with schedule(pipe, "C R").apply(pipe):
        pipe.scheduler.set_timesteps(2)
        pipe.denoiser([torch.zeros(2, 4)] * 3, 0.5)
        pipe.scheduler.step(torch.zeros(1), pipe.scheduler.timesteps[0], torch.zeros(1))
        with pytest.raises(ScheduleError, match=r"input changed from \(\(2, 4\).*, \(\(2, 4\).* to .* at step 1"):
            pipe.denoiser([torch.zeros(2, 4)] * 2, 0.5)


def test_outputs_of_classes_that_torch_cannot_take_apart():
    sample = torch.ones(2)
    value, container = unpack_output(Named(sample))
    assert value is sample and torch.equal(container.pack(sample * 2)["sample"], sample * 2)
    with pytest.raises(ScheduleError, match="the denoiser returns a tuple of 1 .None.; a schedule takes a tensor"):
        unpack_output((None,))
