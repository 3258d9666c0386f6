"""python -m benchmarks.faults.results: kill -9 while a finished result is written, and written anew, 50 times.

A process writes two results of one search in turn, without an end, and is killed at a random moment. Whatever it leaves
has to be one of the two: every schedule that front.json names is there, is that of the result, and has its pictures.
`--write` puts the count into docs/reliability.md.
"""

import argparse
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from benchmarks.faults import reliability
from search.results.result import Result
from tests.helpers.finished_search import made_result


def two_results(runs: Path) -> tuple[Result, Result]:
    """Results of one search as it is resumed: the second has other schedules under the same numbers and names."""
    first, second = made_result(runs), Result.load(next(runs.iterdir()))
    for entry, other in zip(second.entries[:2], reversed(first.entries[:2]), strict=True):
        entry.schedule, entry.held_out, entry.images = other.schedule, other.held_out, other.images
    second.stopped = "resumed"
    return first, second


def is_whole(folder: Path, results: tuple[Result, Result]) -> bool:
    """Whether a folder holds one of the results, with all that belongs to it."""
    found = Result.load(folder)
    wanted = results[found.stopped == "resumed"]
    return len(found.entries) == len(wanted.entries) and all(
        a.name == b.name
        and a.schedule == b.schedule
        and a.held_out == b.held_out
        and np.array_equal(a.images, b.images)
        for a, b in zip(found.entries, wanted.entries, strict=True)
    )


def written_until_killed(results: tuple[Result, Result], seconds: float) -> None:
    """Write the results in turn in a process of its own, and kill it after so many seconds."""
    if not (process := os.fork()):
        try:
            while True:
                for result in results:
                    result.save()
        finally:
            os._exit(3)
    time.sleep(seconds)
    os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL, "it ended before it was killed"


def kill_many(
    runs: Path, count: int, seed: int = 0, on_done: Callable[[str], None] = lambda text: None
) -> tuple[int, Counter[str]]:
    """How many of so many kills left a whole result, and which of the two."""
    results, drawn = two_results(runs), random.Random(seed)
    began = time.monotonic()
    results[0].save()
    seconds = time.monotonic() - began
    whole, left = 0, Counter[str]()
    for _ in range(count):
        written_until_killed(results, drawn.uniform(0, 4 * seconds))
        same = is_whole(results[0].folder, results)
        whole += same
        left[Result.load(results[0].folder, pictures=False).stopped or "first"] += 1
        on_done("whole" if same else "DAMAGED")
    return whole, left


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    with TemporaryDirectory() as work:
        whole, left = kill_many(Path(work), given.count, given.seed, lambda text: print(text, flush=True))
    text = (
        f"{whole} of {given.count} ({', '.join(f'the {name} result {count}' for name, count in sorted(left.items()))})"
    )
    print(text)
    if given.write:
        reliability.write("results", text)
    sys.exit(whole < given.count)


if __name__ == "__main__":
    main()
