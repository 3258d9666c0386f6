"""Time whole runs of schedules side by side, in rounds."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from search.models.base import Model
from search.schedule import Schedule


def time_schedules(
    model: Model,
    schedules: Sequence[Schedule | None],
    repeats: int = 5,
    decode: bool = True,
    on_done: Callable[[int, int], None] = lambda count, total: None,
) -> list[list[float]]:
    """Milliseconds to denoise and decode one picture.

    The schedules take turns within every round, so that slow phases of the machine affect all of them.

    Args:
        model: The model that runs.
        schedules: What is timed; None is the bare pipeline.
        repeats: The number of rounds.
        decode: Whether the time to decode a picture is added.
        on_done: Called after each run with the number of runs so far and of all.

    Returns:
        Times [S][repeats].
    """
    inputs = [model.example], [0]
    latents = model.sample(*inputs)
    # decoding is the same whatever the schedule is
    decoding = (
        statistics.median(time_call(model, lambda: model.decode(latents, *inputs)) for _ in range(repeats))
        if decode
        else 0.0
    )

    def once() -> float:
        return time_call(model, lambda: model.sample(*inputs)) + decoding

    times: list[list[float]] = [[] for _ in schedules]
    for _ in range(repeats):
        for schedule, measured in zip(schedules, times, strict=True):
            if schedule is None:
                measured.append(once())
            else:
                with model.apply(schedule):
                    measured.append(once())
            on_done(sum(map(len, times)), repeats * len(times))
    return times


def time_call(model: Model, work: Callable[[], Any]) -> float:
    """Milliseconds of a call, until the work that it starts on the model's device is finished."""
    _wait(model)
    start = time.perf_counter()
    work()
    _wait(model)
    return 1000 * (time.perf_counter() - start)


def _wait(model: Model) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
