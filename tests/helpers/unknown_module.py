"""A denoiser of no known class: two streams, blocks deep in the module, a bare tensor out."""

import copy
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler
from torch import Tensor, nn

from search.schedule import Schedule
from search.schedule.model.contracts import Contract
from search.schedule.model.identity import model_part

WIDTH = 6
CONTRACT = {
    "stacks": [
        {
            "name": "trunk.blocks",
            "components": ["turn", "net", "net.1"],
            "outputs": ["x", "y"],
            "zeros": {"turn": ["x"], "net": ["x"]},
        },
        {"name": "neck", "components": [], "outputs": ["x"], "single": True},
    ],
    "sample": "x",
}


class Turn(nn.Linear):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return super().forward(x + y).tanh()


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.turn, self.net = Turn(WIDTH, WIDTH), Net()

    def forward(self, x: Tensor, y: Tensor, time: Tensor) -> Any:
        x = x + time * self.turn(x, y)
        return x + self.net(x), (y + x).tanh()


class Net(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class Neck(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class Anybody(nn.Module):
    block: type[nn.Module] = Block

    def __init__(self, blocks: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Module()
        self.trunk.blocks = nn.ModuleList(self.block() for _ in range(blocks))
        self.neck = Neck(WIDTH, WIDTH)

    def forward(self, x: Tensor, time: Tensor) -> Any:
        y = x.flip(0)
        for block in self.trunk.blocks:
            x, y = block(x, y, time=time)
        return self.neck(x)


STEPS = 6


def pipeline(denoiser=None):
    scheduler = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    return SimpleNamespace(denoiser=denoiser or Anybody(), scheduler=scheduler)


def contract(**changes):
    """The contract with other words for its first stack."""
    data = copy.deepcopy(CONTRACT)
    data["stacks"][0] |= changes
    return Contract.from_dict(data)


def schedule(pipe, rules, own=None, **parts):
    model = model_part(pipe.denoiser, own or contract())
    plan = {"plan": {"rules": rules}}
    return Schedule.from_dict({"format": "schedule/1", "model": model, "steps": STEPS} | plan | parts)


@torch.no_grad()
def run(pipe, call=None):
    x = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(1))
    pipe.scheduler.set_timesteps(STEPS)
    for i, t in enumerate(pipe.scheduler.timesteps):
        time = t / 1000
        output = call(i, x, time) if call else pipe.denoiser(x, time=time)
        x = pipe.scheduler.step(output if isinstance(output, torch.Tensor) else output[0], t, x, return_dict=False)[0]
    return x
