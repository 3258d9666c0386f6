"""Out of memory: recognising it, and running a batch in halves."""

from collections.abc import Iterator, Sequence

import torch

from search.evaluate.execute.jobs import Batch, Outcome, mean_shares

# Messages of devices in a plain RuntimeError: torch's allocator of host memory, and Apple's.
MESSAGES = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "MPS backend out of",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error means that memory was short; after any other error a second try is useless."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in MESSAGES)


def split_batch(batch: Batch) -> Iterator[Batch]:
    """The first and the second half of a batch, each picture with its own prompt and noise."""
    middle = len(batch) // 2
    for part in (slice(0, middle), slice(middle, None)):
        yield type(batch)(batch.prompts[part], batch.seeds[part])


def join_outcomes(sizes: Sequence[int], parts: Sequence[Outcome]) -> Outcome:
    """One outcome from parts of so many pictures each: latents concatenated, shares of gates averaged."""
    decided = mean_shares([(size, part.decided) for size, part in zip(sizes, parts, strict=True)])
    smallest = min(part.batch or size for size, part in zip(sizes, parts, strict=True))
    return type(parts[0])(torch.cat([p.latents for p in parts]), parts[0].schedule, decided, smallest)


def free_memory(device: torch.device) -> None:
    """Release the memory that torch has cached."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
