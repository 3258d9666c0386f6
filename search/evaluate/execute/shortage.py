"""Out of memory: how it is known, and a batch that is run in halves and put together again."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from search.evaluate.execute.jobs import Batch, Outcome


# What devices say in a plain RuntimeError: torch's allocator of host memory, and Apple's.
SAID = ("DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory", "MPS backend out of")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was short; anything else is no reason to try again."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in SAID)


def split_batch(batch: "Batch") -> Iterator["Batch"]:
    """The first and the second half of a batch, each picture with its own prompt and noise."""
    middle = len(batch) // 2
    for part in (slice(0, middle), slice(middle, None)):
        yield type(batch)(batch.prompts[part], batch.seeds[part])


def join_outcomes(sizes: Sequence[int], parts: Sequence["Outcome"]) -> "Outcome":
    """One outcome of parts of so many pictures each: latents one after the other, shares of gates weighted."""
    decided = {
        name: [
            sum(n * s for n, s in zip(sizes, shares, strict=True)) / sum(sizes) for shares in zip(*found, strict=True)
        ]
        for name in parts[0].decided
        if (found := [part.decided[name] for part in parts])
    }
    smallest = min(part.batch or size for size, part in zip(sizes, parts, strict=True))
    return type(parts[0])(torch.cat([p.latents for p in parts]), parts[0].schedule, decided, smallest)


def free_memory(device: torch.device) -> None:
    """Give back what torch holds without use."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
