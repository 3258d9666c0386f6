"""DeepCache's settings (arXiv:2312.00858): which part of a UNet runs at which step."""

import math
from collections.abc import Sequence
from typing import Any

from search.schedule.errors import ScheduleError
from search.schedule.exchange import masks
from search.schedule.exchange.check import count_of, object_of, steps_of
from search.schedule.exchange.masks import Parts
from search.schedule.model.nodes import Tree
from search.schedule.plan.tokens import MAX_STEPS, OFF

LAYERS = 3  # of every up block, as DeepCache numbers branches


def from_deepcache(data: Any, tree: Tree) -> Parts:
    """DeepCache's settings: `cache_interval`, `cache_branch_id` and `num_inference_steps`.

    All is computed at every `cache_interval`-th step, or with `uniform` false at as many steps about `center`, by the
    power `pow`. At the others a UNet runs down to the branch only: see `below`.
    """
    config = object_of(data, "file")
    steps = steps_of(config.get("num_inference_steps"), "num_inference_steps")
    interval = count_of(config.get("cache_interval"), "cache_interval")
    if not 1 <= interval <= MAX_STEPS:
        raise ScheduleError(f"cache_interval is {interval}; admissible are 1 to {MAX_STEPS}")
    if config.get("uniform", True):
        computed: Sequence[int] = range(0, steps, interval)
    else:
        center, power = count_of(config.get("center"), "center"), config.get("pow", 1.2)
        if isinstance(power, bool) or not isinstance(power, int | float) or not 1 < power <= 10:
            raise ScheduleError(f"pow is {power!r:.40}; admissible are numbers above 1 up to 10")
        computed = centred(steps, math.ceil(steps / interval), center, power)
    actions = [OFF if t in set(computed) else "R" for t in range(steps)]
    nodes = below(tree, count_of(config.get("cache_branch_id", 0), "cache_branch_id"))
    return masks.parts(dict.fromkeys(nodes, actions), tree, "0")


def centred(steps: int, count: int, center: int, power: float = 1.2) -> list[int]:
    """DeepCache's `count` uneven steps: evenly spaced where steps from `center` on are bent by 1/power.

    The power is lowered until there are so many distinct ones. Below the center the base is negative; the published
    lists take the real part of its complex power.
    """
    if not 0 <= center < steps:
        raise ScheduleError(f"center is {center}; admissible are 0 to {steps - 1}, one of the steps")
    bent = power
    while bent > 1:
        low, high = complex(-center) ** (1 / bent), (steps - center) ** (1 / bent)
        bases = [low + (high - low) * i / count for i in range(count + 1)]
        places = sorted({int((base**bent).real) for base in bases})
        if len(places) == count + 1:
            return [0, *(center + place for place in places[1:-1])]
        bent -= 0.02
    raise ScheduleError(f"no power from {power} down gives {count} distinct steps of {steps} about {center}")


def below(tree: Tree, branch: int) -> list[str]:
    """The nodes of a UNet that DeepCache reuses: those deeper than a branch.

    Branches count the layers of the up blocks from the output on, three a block as DeepCache does, whatever a block
    has: branch 0 computes the last layer of the last up block, on top of what enters it, and each further one a layer
    more and the layer of the down blocks across.
    """
    if not {"down_blocks", "mid_block", "up_blocks"} <= set(tree.stacks):
        raise ScheduleError(f"DeepCache is for UNets; this is a {tree.model_class}")
    ups = tree.stacks["up_blocks"]
    if not 0 <= branch < LAYERS * ups:
        raise ScheduleError(f"cache_branch_id is {branch}; admissible are 0 to {LAYERS * ups - 1}")
    block, layer = divmod(branch, LAYERS)
    up = ups - 1 - block
    layers = sum(name.startswith("resnets.") for name in tree.components("up_blocks", up))
    layer = min(layer, layers - 1)
    names = [f"down_blocks.{i}" for i in range(block + (layer > 0), tree.stacks["down_blocks"])]
    names += ["mid_block.0", *(f"up_blocks.{i}" for i in range(up))]
    for node in tree:
        if node.kind == "component" and not node.nested:
            kind, _, index = node.component.partition(".")
            if node.stack == "down_blocks" and node.block == block and layer > 0:
                names += [node.name] * (kind == "downsamplers" or int(index) >= layer)
            if node.stack == "up_blocks" and node.block == up:
                names += [node.name] * (kind != "upsamplers" and int(index) < layers - 1 - layer)
    return names
