"""Denoisers of public checkpoints without weights: their contract by observation, MACs, and bytes of kept values.

They are built on the meta device as public_sizes.yaml describes them, with two blocks in each list, and counted with as
many as they have. `python -m tests.models.public_sizes` writes the table of docs/models.md.
"""

import math
import re
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import torch
import yaml
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from search.observe.stacks import LEAST_SHARE, find_stacks, parameters
from search.observe.trace import trace_call
from search.profile.costs import Costs
from search.profile.count import count_costs
from search.schedule.model.contracts import Contract, Stack
from search.schedule.model.nodes import Tree
from tests.helpers.repository import ROOT
from tests.models.test_real_size import SIZES, counted

PAGE = ROOT / "docs" / "models.md"
DATA: dict[str, dict[str, Any]] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text())
SHORT, BYTES, EXPERTS = 2, 2, 4
# Those of test_real_size.py, whose contracts are written by hand: what is in one call, and other options that run it.
BY_HAND = {
    "DiT-XL/2 256": ("dit_xl_256", "256 px"),
    "DiT-XL/2 512": ("dit_xl_512", "512 px"),
    "PixArt-XL 256": ("pixart_alpha_256, pixart_sigma_256", "256 px, 120 words"),
    "SD 1.5": ("sd15", "512 px"),
    "SD 2.1": ("sd21", "768 px"),
    "SDXL": ("sdxl", "1024 px"),
    "FLUX.1 dev": ("flux_dev, flux_schnell", "1024 px, 512 words"),
    "SD3 medium": ("sd3_medium", "1024 px, 256 words"),
    "SD3.5 medium": ("sd35_medium", "1024 px, 256 words"),
    "Wan 2.1 1.3B": ("wan21_1_3b", "832 x 480 px, 81 frames, 512 words"),
    "Wan 2.2 5B": ("wan22_5b", "1280 x 704 px, 121 frames, 512 words"),
}
HEAD = """# Models by name

Denoisers of public checkpoints on the meta device, as their configurations describe them: no weights, no arithmetic. Of
those in the upper part the contract is written by hand, of the others it was seen in one call, as `python -m
search.contract` does; MACs of each block and the shape of everything that is kept are compared with counts by hand.
Nothing was run on the weights themselves. Written by `python -m tests.models.public_sizes`.

- *nodes*: what a schedule can plan: the denoiser, stacks, blocks and components
- *MACs*: of one call for one picture or video; guidance makes it two calls a step, or four
- *all kept*: bytes in bfloat16 of what all components return, what a cache holds at most for one call
- *a block kept*: of what one block of the stack with most of the work returns

`model.steps=`, sizes and guidance of each option are those of its authors, in `conf/model/<name>.yaml`. Variants of one
denoiser at another size (`pixart_sigma_1024`, `sdxl_turbo`, `lcm_dreamshaper` …) are options as well:
[Choose](choose.md#models).

| `model=` | denoiser | one call | parameters | stacks: blocks x components | nodes | MACs | all kept | a block kept |
|---|---|---|---|---|---|---|---|---|
"""


class Answered(TorchFunctionMode):
    """Answers to questions about values, which tensors on the meta device do not have.

    Masks are full and inverted masks empty, there is no picture to begin with, and experts get as many tokens each.
    """

    def __init__(self) -> None:
        super().__init__()
        self.empty: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, first = kwargs or {}, args[0] if args else None
        if isinstance(first, Tensor) and first.is_meta:
            whole = not first.is_floating_point()
            if func is Tensor.__bool__:
                return True
            if func is Tensor.bincount:
                return torch.full((EXPERTS,), first.numel() // EXPERTS, device="cpu")
            if func is Tensor.sum and whole and kwargs.get("dim") == 1:
                return torch.full((len(first),), first.shape[1], device="cpu")
            if func is Tensor.__getitem__ and isinstance(args[1], Tensor) and args[1].dtype == torch.bool:
                return first[:0] if any(mask is args[1] for mask in self.empty) else first[:]
            if func is Tensor.__invert__:
                self.empty.append(func(*args, **kwargs))
                return self.empty[-1]
        return func(*args, **kwargs)


@dataclass(frozen=True, eq=False)
class Measured:
    """What was seen and counted of a denoiser with `SHORT` blocks in each list."""

    stacks: dict[str, Stack]  # those that a search would plan
    costs: Costs
    blocks: dict[str, int]  # how many each stack has in the whole denoiser
    lists: dict[str, int]  # how many more than here
    sizes: dict[str, int]  # parameters of one element of each; "" for all of the short denoiser
    by_shape: Counter[str]  # MACs of linear layers and convolutions, by block; "" for those in none
    more: int  # MACs that the whole denoiser has beside

    def block(self, stack: str) -> str:
        """The name of a block with others before it; all are alike."""
        return f"{stack}.{SHORT - 1 if stack in self.lists else 0}"

    def whole(self, parts: Any) -> int:
        """A sum over the whole denoiser: `parts` gives that of a list's element, and of all that there is for ""."""
        return parts("") + sum(more * parts(name) for name, more in self.lists.items())

    @property
    def parameters(self) -> int:
        return self.whole(self.sizes.__getitem__)

    @property
    def macs(self) -> int:
        """MACs of one call."""
        return self.whole(lambda name: self.block_macs(name) if name else self.costs.call_macs) + self.more

    @property
    def kept(self) -> int:
        """Bytes of what all components return."""
        return self.whole(lambda name: sum(self.values(name).values()) if name else self.costs.all_bytes)

    def block_macs(self, stack: str) -> int:
        """MACs of one block by the cost tables."""
        tables = self.costs.component_macs.items()
        return sum(macs for key, macs in tables if key.partition(":")[0] == self.block(stack))

    def values(self, stack: str) -> dict[str, int]:
        """Bytes of what each component of a block returns, lists within it together."""
        found: Counter[str] = Counter()
        for key, count in self.costs.value_bytes.items():
            block, _, path = key.partition(":")
            if path and block == self.block(stack):
                found[re.sub(r"(?<=\.)\d+", "*", path)] += count
        return dict(found)


@cache
def measured(name: str) -> Measured:
    """Build, observe and count one denoiser."""
    spec = DATA[name]
    blocks = {stack: each["blocks"] for stack, each in spec["stacks"].items() if "blocks" in each}
    with torch.device("meta"):
        short = {argument: SHORT for _, *arguments in blocks.values() for argument in arguments}
        denoiser = getattr(diffusers, spec["class"])(**spec.get("config", {}) | short).eval()
        given = {key: _input(value) for key, value in spec["inputs"].items()}
    for parameter in denoiser.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    lengths = {stack: count for stack, (count, *_) in blocks.items()}
    lists = {stack: count - len(denoiser.get_submodule(stack)) for stack, count in lengths.items()}
    sizes = {stack: parameters(denoiser.get_submodule(stack)[0]) for stack in lists}
    sizes[""] = sum(p.numel() for p in denoiser.parameters())
    with Answered():
        found, _ = find_stacks(denoiser, trace_call(denoiser, (), given))
    least = LEAST_SHARE * max(size * lengths[stack] for stack, size in sizes.items() if stack)
    stacks = {  # without those that are large here only
        stack.name: stack
        for stack in (each.stack for each in found)
        if stack.name in lists or parameters(denoiser.get_submodule(stack.name)) >= least
    }
    tree = Tree.of(denoiser, Contract(tuple(stacks.values())))
    by_shape: Counter[str] = Counter()
    for path, module in denoiser.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d):
            stack = next((each for each in stacks if path.startswith(f"{each}.")), "")
            number = path[len(stack) + 1 :].split(".")[0] if stack in lists else "0"
            module.register_forward_hook(_multiplies(by_shape, f"{stack}.{number}" if stack else ""))
    with Answered():
        costs = count_costs(denoiser, tree, 1, lambda: denoiser(**given))
    whole = {stack: lengths.get(stack, 1) for stack in stacks}
    return Measured(stacks, costs, whole, lists, sizes, by_shape, round(1e6 * spec.get("more_macs", 0)))


def _multiplies(by_shape: Counter[str], block: str) -> Any:
    def hook(module: Any, _: Any, output: Tensor) -> None:
        by_shape[block] += output.numel() * module.weight[0].numel()

    return hook


def _input(value: Any) -> Any:
    if isinstance(value, list):
        return [_input(each) for each in value]
    if not isinstance(value, str):
        return value
    *kind, shape = value.split()
    return torch.zeros([int(n) for n in shape.split("x")], dtype=getattr(torch, kind[0] if kind else "bfloat16"))


def elements(shapes: str) -> int:
    """4096x3072+512x3072: of both."""
    return sum(math.prod(int(n) for n in shape.split("x")) for shape in shapes.split("+"))


def row(name: str) -> str:
    """The row of one denoiser of public_sizes.yaml."""
    spec, found = DATA[name], measured(name)
    stacks = {stack: (found.blocks[stack], len(each.components)) for stack, each in found.stacks.items()}
    largest = max(stacks, key=lambda stack: stacks[stack][0] * found.block_macs(stack))
    names = ", ".join([name, *spec.get("also", [])])
    block = found.costs.value_bytes[found.block(largest)]
    return _line(names, spec["class"], spec["what"], found.parameters, stacks, found.macs, found.kept, block)


def row_by_hand(name: str) -> str:
    """The row of one denoiser of test_real_size.py."""
    size, denoiser, tree, costs, _ = counted(name)
    names, what = BY_HAND[name]
    stacks = {stack: (count, len(tree.components(stack))) for stack, count in tree.stacks.items()}
    largest = max(stacks, key=lambda stack: stacks[stack][0])
    total = sum(p.numel() for p in denoiser.parameters())
    nodes = len(tree.nodes)
    block = costs.value_bytes[f"{largest}.1"]
    return _line(names, size.model.__name__, what, total, stacks, costs.call_macs, costs.all_bytes, block, nodes)


def _line(
    names: str, kind: str, what: str, total: int, stacks: dict[str, tuple[int, int]],
    macs: int, kept: int, block: int, nodes: int = 0,
) -> str:  # fmt: skip
    nodes = nodes or 1 + sum(1 + blocks * (1 + components) for blocks, components in stacks.values())
    listed = "; ".join(f"{stack}: {blocks} x {components}" for stack, (blocks, components) in stacks.items())
    shown = ", ".join(f"`{each}`" for each in names.split(", "))
    figures = f"{total / 1e9:.2f} B | {listed} | {nodes:,} | {_short(macs / 1e12)} T | {_short(kept / 1e9)} GB"
    return f"| {shown} | {kind} | {what} | {figures} | {_short(block / 1e6)} MB |"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def main() -> None:
    """Write docs/models.md."""
    rows = [*map(row_by_hand, SIZES), *map(row, DATA)]
    PAGE.write_text(HEAD + "\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
