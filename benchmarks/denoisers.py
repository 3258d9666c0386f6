"""Denoisers of public checkpoints with random weights and inputs, as subjects of benchmarks/overhead.py.

They have the width and the inputs of the real ones (tests/models/public_sizes.yaml, tests/models/test_real_size.py) and
so many blocks in each list. A step is one call of the denoiser, without guidance.
"""

import inspect
from dataclasses import dataclass
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import diffusers
import torch

from search.observe.stacks import find_stacks
from search.observe.trace import trace_call
from search.schedule.model.contracts import CONTRACTS, Contract
from search.schedule.model.nodes import Tree
from tests.models.public_sizes import BY_HAND, DATA
from tests.models.test_real_size import SIZES

LENGTHS = ("num_layers", "num_single_layers")  # arguments of those that test_real_size.py describes
TINY = {  # of the tests
    "class": "ZImageTransformer2DModel",
    "config": {"dim": 32, "n_heads": 2, "n_kv_heads": 2, "cap_feat_dim": 16, "axes_dims": [8, 4, 4], "in_channels": 4},
    "inputs": {"x": ["4x1x8x8"], "t": "1", "cap_feats": ["32x16"]},
    "stacks": DATA["z_image_turbo"]["stacks"],
}
NAMES = ("tiny", *DATA, *(names.split(", ")[0] for names, _ in BY_HAND.values()))


@dataclass(eq=False)
class Denoiser:
    """A denoiser with a scheduler, and a run of it."""

    name: str
    pipe: Any
    given: dict[str, Any]
    steps: int
    contract: Contract | None

    @cached_property
    def tree(self) -> Tree:
        return Tree.of(self.pipe.transformer, self.contract)

    @torch.no_grad()
    def __call__(self) -> torch.Tensor:
        scheduler, sample = self.pipe.scheduler, torch.zeros(1, device=self.pipe.transformer.device)
        scheduler.set_timesteps(self.steps, device=sample.device)
        for timestep in scheduler.timesteps:
            self.pipe.transformer(**self.given)
            sample = scheduler.step(torch.zeros_like(sample), timestep, sample, return_dict=False)[0]
        return sample


def denoiser(name: str, blocks: int, device: str, dtype: torch.dtype, steps: int) -> Denoiser:
    """Build one on its device; nothing is downloaded."""
    by_hand = {names.split(", ")[0]: key for key, (names, _) in BY_HAND.items()}
    if name in by_hand:
        size = SIZES[by_hand[name]]()
        taken = inspect.signature(size.model.__init__).parameters
        kind, config = size.model, size.config | {key: blocks for key in LENGTHS if key in taken}
        shapes: dict[str, Any] = {key: "x".join(map(str, shape)) for key, shape in size.inputs.items()}
    else:
        spec = TINY if name == "tiny" else DATA[name]
        lengths = {key: blocks for each in spec["stacks"].values() for key in each.get("blocks", [])[1:]}
        kind, config, shapes = getattr(diffusers, spec["class"]), spec.get("config", {}) | lengths, spec["inputs"]
    torch.manual_seed(0)
    with torch.device(device):
        module = kind(**config).to(dtype).eval()
        given = {key: _random(value, dtype) for key, value in shapes.items()}
    pipe = SimpleNamespace(transformer=module, scheduler=diffusers.FlowMatchEulerDiscreteScheduler())
    contract = None
    if kind.__name__ not in CONTRACTS:
        found, _ = find_stacks(module, trace_call(module, (), given))
        contract = Contract(tuple(each.stack for each in found))
    return Denoiser(f"{name}, {blocks} blocks in each list, random weights", pipe, given, steps, contract)


def _random(value: Any, dtype: torch.dtype) -> Any:
    """Ones for what is not of the denoiser's own type, such as masks; positions are numbers like others."""
    if isinstance(value, list):
        return [_random(each, dtype) for each in value]
    if not isinstance(value, str):
        return value
    *other, shape = value.split()
    sizes = [int(n) for n in shape.split("x") if n]
    return torch.ones(sizes, dtype=getattr(torch, other[0])) if other else torch.randn(sizes).to(dtype)
