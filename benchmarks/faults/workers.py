"""python -m benchmarks.faults.workers: a search on two Ray workers, of which one is killed again and again.

`kill -9` of a random worker that has its pipeline loaded, at random moments, 20 times in one search, whose front has to
be that of a search in one process. `--write` puts the count into docs/reliability.md.
"""

import argparse
import os
import random
import re
import signal
import sys
import threading
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.faults import reliability
from benchmarks.faults.kills import config, front
from search.loop.run import run

PLACE = re.compile(r"loaded: WorkerInfo\(pid=(\d+)")


class Killer(threading.Thread):
    """Kills workers that the log of a search names, so many in all, each some moments after it has loaded."""

    def __init__(self, runs: Path, count: int, seed: int = 0) -> None:
        super().__init__(daemon=True)
        self.runs, self.count, self.drawn = runs, count, random.Random(seed)
        self.killed: list[int] = []
        self.over = threading.Event()

    def run(self) -> None:
        while len(self.killed) < self.count and not self.over.is_set():
            log = "".join(path.read_text() for path in self.runs.glob("*/search.log"))
            alive = [pid for pid in map(int, PLACE.findall(log)) if pid not in self.killed]
            if alive:
                time.sleep(self.drawn.uniform(0.2, 2.0))
                pid = self.drawn.choice(alive)
                self.killed.append(pid)
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    self.killed.pop()
                    return
            time.sleep(0.05)


def killed(work: Path, count: int, evaluations: int) -> tuple[int, bool]:
    """How many workers were killed, and whether the front is that of a search without any."""
    for name in ("plain", "workers"):
        (work / name).mkdir()
    more = f"budget.evaluations={evaluations}"
    expected = front(run(config(work / "plain" / "runs", more)).folder)
    runs = work / "workers" / "runs"
    killer = Killer(runs, count)
    killer.start()
    found = front(run(config(runs, more, "compute=ray", "compute.workers=2")).folder)
    killer.over.set()
    killer.join()
    return len(killer.killed), found == expected


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--evaluations", type=int, default=960)
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    with TemporaryDirectory() as work:
        count, same = killed(Path(work), given.count, given.evaluations)
    text = f"{count} kills in one search on two workers: {'the same' if same else 'ANOTHER'} front"
    print(text)
    if given.write:
        reliability.write("workers", text)
    sys.exit(not (same and count == given.count))


if __name__ == "__main__":
    main()
