"""python -m benchmarks.faults.soak: 10,000 generations, six schedules and none applied and removed in turn.

Random weights, 8x8 latents, six steps of the stock pipeline: what could leak is hooks, stores, patched methods and
schedulers, not large tensors. Every output is compared bit for bit with the first one of its schedule. Memory is looked
at twenty times: resident bytes, Python objects, tensors. `--write` puts the result into docs/reliability.md.
"""

import argparse
import gc
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.faults import reliability
from search import Schedule
from tests.helpers import pipelines

LOOKS = 20


@dataclass(frozen=True)
class Look:
    """The process at one moment, after a garbage collection."""

    generation: int
    resident: int  # bytes
    objects: int
    tensors: int

    @staticmethod
    def now(generation: int) -> "Look":
        gc.collect()
        objects = gc.get_objects()
        tensors = sum(1 for each in objects if type(each) in (Tensor, torch.nn.Parameter))
        return Look(generation, resident(), len(objects), tensors)


def resident() -> int:
    """Bytes of memory that are in use now; where the system does not tell, the most that were."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def schedules(pipe: Any) -> list[Schedule | None]:
    """None, and a schedule for each kind of thing that is put on a pipeline."""
    layers = [f"transformer_blocks.{i}.ff.net.0.proj" for i in range(3)]
    formats = {"w8a8d": {"weight": 8, "activation": 8}}
    gate = {"group": "transformer_blocks.[1-2]", "actions": "C G*5", "signal": "first_block_residual", "threshold": 0.3}
    corrected = pipelines.schedule(pipe, [["transformer_blocks.*:ff", "CRCRCR"]])
    tensors = {f"transformer_blocks.0:ff.{part}": torch.full((3, pipelines.WIDTH), 0.9) for part in ("scale", "shift")}
    return [
        None,
        pipelines.schedule(
            pipe, [["transformer_blocks.*:attn2", "CRCF1CF1"], ["transformer_blocks.1", "CCCCRC"]], axis="sigma"
        ),
        pipelines.schedule(pipe, gates=[gate | {"value": "residual"}]),
        pipelines.schedule(pipe, [["denoiser", "CCCRCR"]], guidance={"call": 3.0, "branch": "CCROOO"}),
        pipelines.schedule(pipe, bits={"formats": formats, "layers": dict.fromkeys(layers, "w8a8d")}),
        corrected.with_corrections(tensors),
        pipelines.schedule(pipe, [["transformer_blocks", "CCRCRC"]], sampler={"class": type(pipe.scheduler).__name__}),
    ]


def generate(count: int) -> Iterator[tuple[int, bool]]:
    """Generations by number, each with whether its output was that of the first one of its schedule."""
    pipe = pipelines.pixart()
    made = schedules(pipe)
    first: dict[int, Tensor] = {}
    for number in range(count):
        kind = number % len(made)
        with ExitStack() as applied:
            if (schedule := made[kind]) is not None:
                applied.enter_context(schedule.apply(pipe))
            output = pipelines.run(pipe, batch=1)
        yield number, torch.equal(first.setdefault(kind, output), output)
    assert pipelines.traces(pipe.transformer) == [
        t for t in pipelines.traces(pipe.transformer) if t.endswith(".forward")
    ]


def soak(count: int) -> tuple[int, list[Look]]:
    """How many outputs were not the first of their kind, and looks at the process on the way."""
    every = max(1, count // LOOKS)
    wrong, looks = 0, []
    for number, same in generate(count):
        wrong += not same
        if (number + 1) % every == 0:
            looks.append(Look.now(number + 1))
    return wrong, looks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    wrong, looks = soak(given.count)
    begin, end = looks[len(looks) // 10], looks[-1]
    text = (
        f"{given.count:,} generations, {given.count - wrong:,} bit for bit as the first of their schedule; from "
        f"generation {begin.generation:,} to the last {(end.resident - begin.resident) / 2**20:+.1f} MiB of "
        f"{begin.resident / 2**20:.0f} resident, {end.objects - begin.objects:+,} of {begin.objects:,} Python objects, "
        f"{end.tensors - begin.tensors:+} of {begin.tensors} tensors"
    )
    print(f"{text} ({time.monotonic() - began:.0f} s)")
    if given.write:
        reliability.write("soak", text)
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
