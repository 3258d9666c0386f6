"""A denoiser of no known class: two streams, blocks deep in the module, a bare tensor out."""

from typing import Any

import torch
from torch import Tensor, nn

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
