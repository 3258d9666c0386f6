"""A bit for each step, block and component of the tiny PixArt, and hooks by hand that do what the bits say."""

from typing import Any

import numpy as np
from torch import Tensor

from tests.helpers import pipelines


def bits(*shape: int) -> np.ndarray:
    """Random bits whose first step is all computed."""
    found = np.random.default_rng(0).random(shape) < 0.5
    found[0] = True
    return found


def by_hand(pipe: Any, given: np.ndarray) -> Tensor:
    """Every component is called, and where its bit is off its last output of a step that was on is taken instead."""
    removers, kept, step = [], {}, [-1]
    removers.append(pipe.transformer.register_forward_pre_hook(lambda *_: step.__setitem__(0, step[0] + 1)))
    for i, block in enumerate(pipe.transformer.transformer_blocks):
        for j, component in enumerate(("attn1", "attn2", "ff")):

            def after(module, inputs, output, i=i, j=j):
                if given[step[0], i, j]:
                    kept[i, j] = output.clone()
                return kept[i, j]

            removers.append(getattr(block, component).register_forward_hook(after))
    try:
        return pipelines.run(pipe)
    finally:
        for remover in removers:
            remover.remove()
