"""python -m benchmarks.faults.kills: kill -9 at random moments of a search, resume, compare with an uninterrupted one.

A tiny model of random weights, so that a search takes seconds and a kill can hit any part of it: loading, preparing,
a generation, a checkpoint, the held-out prompts, the figures. All modules are imported once, in a process of which
every search is a fork, and schedules are not timed. `--twice` kills the resumed search too. `--write` puts the count
into docs/reliability.md.
"""

import argparse
import contextlib
import importlib
import json
import os
import random
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.faults import reliability
from search.config.compose import compose_config, normalise_overrides
from search.config.settings import Config
from search.loop import finish, held_out
from search.loop.run import run
from search.testing.models import tiny_folder

PROMPTS = ("red apple\nblue boat\nred boat\n", "blue apple\n3d boat\nflat apple\n")
GIVEN = (
    "model=pixart",
    "model.steps=6",
    "model.max_sequence_length=8",
    "compute.threads=1",
    "tracking.enabled=false",
    "certify=off",
)
OVER = "over"  # before it was killed


def config(runs: Path, *more: str) -> Config:
    """A small search on the tiny model."""
    texts = [runs.parent / f"{name}.txt" for name in ("calibration", "held_out")]
    for path, text in zip(texts, PROMPTS, strict=True):
        path.write_text(text)
    own = [f"prompts.{path.stem}={path}" for path in texts]
    raw = compose_config(normalise_overrides([*GIVEN, *own, f"model.path={tiny_folder()}", f"runs={runs}", *more]))
    return Config.check(raw)


def forked(config: Config, output: Path, figures: bool = True) -> int:
    """The process of a search, whose output goes to a file; its exit code is 0 where it ends well, else 3.

    Without `figures` it writes the schedules and front.json only, which saves half of the time.
    """
    if number := os.fork():
        return number
    code = 3
    try:
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        held_out.time_schedules = lambda model, schedules, *_, **__: [[1.0, 1.1, 1.2] for _ in schedules]
        if not figures:
            finish.write_result = lambda result, *_: result.save()
        run(config)
        output.with_suffix(".modules").write_text("\n".join(sys.modules))
        code = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def ended(number: int, seconds: float | None = None) -> int | None:
    """Wait for a process and return its exit code; where it is there after `seconds`, kill it and return None."""
    began = time.monotonic()
    while seconds is None or time.monotonic() - began < seconds:
        found, status = os.waitpid(number, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(number, signal.SIGKILL)
    os.waitpid(number, 0)
    return None


def front(folder: Path) -> Any:
    """What must not depend on interruptions: entries with their scores, every candidate, the history."""
    data = json.loads((folder / "front.json").read_text())
    entries = [[e["role"], e["calibration"], {k: e["held_out"][k] for k in ("drift", "macs")}] for e in data["entries"]]
    points = [(p["digest"], p["drift"], p["macs"]) for p in data["points"]]
    history = [{k: v for k, v in h.items() if k != "seconds"} for h in data["history"]]
    return [entries, points, history]


@dataclass
class Kill:
    """One killed search: what it was doing, and whether the resumed one ended in the same front."""

    seconds: float
    phase: str
    same: bool
    output: str


class Kills:
    """Searches that are killed; `expected` is the front of one that is not, `seconds` how long it takes."""

    def __init__(self, work: Path, generations: int = 3) -> None:
        torch.set_num_threads(1)
        self.work, self.generations = work, generations
        self.more = (f"budget.evaluations={24 * generations}",)
        output = work / "uninterrupted.log"
        for name in ("first", "second"):  # the first one imports all modules
            runs = self._runs(name)
            began = time.monotonic()
            code = ended(forked(config(runs, *self.more), output))
            self.seconds = time.monotonic() - began
            assert code == 0, output.read_text()
            for module in output.with_suffix(".modules").read_text().splitlines():
                with contextlib.suppress(Exception):
                    importlib.import_module(module)
        self.expected = front(_folder(runs))

    def kill(self, number: int, seconds: float, again: float | None = None) -> Kill:
        """Kill a search after `seconds`, the resumed one after `again`, and resume it to its end."""
        runs, output = self._runs(f"{number}"), self.work / f"{number}.log"
        code = ended(forked(config(runs, *self.more), output), seconds)
        phase = OVER if code == 0 else self._phase(runs)
        if again is not None:
            ended(forked(self._resumed(runs), output), again)
        code = ended(forked(self._resumed(runs), output, figures=False))
        return Kill(seconds, phase, code == 0 and front(_folder(runs)) == self.expected, output.read_text())

    def many(
        self,
        count: int,
        seed: int = 0,
        twice: bool = False,
        done: Callable = lambda kill: None,
        minutes: float = 1e9,
    ) -> list[Kill]:
        """So many kills at moments drawn evenly from the whole time that a search takes; one that was over is none."""
        drawn = random.Random(seed)
        kills: list[Kill] = []
        number, end = 0, time.monotonic() + 60 * minutes
        while len(kills) < count and time.monotonic() < end:
            moments = [drawn.uniform(0, self.seconds) for _ in range(2)]
            kill = self.kill(number, moments[0], moments[1] if twice else None)
            number += 1
            if kill.phase != OVER or not kill.same:
                kills.append(kill)
            done(kill)
        return kills

    def _resumed(self, runs: Path) -> Config:
        """As a user goes on: where the search had no folder yet, by the same command."""
        there = any(runs.glob("*/config.yaml"))
        return config(runs, *self.more, *(["resume=latest"] if there else []))

    def _phase(self, runs: Path) -> str:
        """What a killed search was doing, by what it left."""
        (folder,) = list(runs.glob("*_*/")) or [None]
        if folder is None:
            return "loading"
        if not list(folder.glob("checkpoint*.bin")):
            return "preparing"
        if list(folder.glob("schedules/*")):
            return "writing the result"
        closed = (folder / "search.log").read_text().count("generation {")
        return "searching" if closed < self.generations else "held-out prompts"

    def _runs(self, name: str) -> Path:
        runs = self.work / name / "runs"
        runs.parent.mkdir()
        return runs


def _folder(runs: Path) -> Path:
    (found,) = {path.parent for path in runs.glob("*/config.yaml")}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--generations", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=1e9, help="after which no further search is killed")
    parser.add_argument("--twice", action="store_true")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    with TemporaryDirectory() as work:
        kills = Kills(Path(work), given.generations)
        print(f"uninterrupted: {kills.seconds:.1f} s", flush=True)
        done = kills.many(
            given.count, given.seed, given.twice, lambda kill: print(_line(kill), flush=True), given.minutes
        )
    same, phases = sum(kill.same for kill in done), Counter(kill.phase for kill in done)
    text = f"{same} of {len(done)} ({', '.join(f'{phase} {count}' for phase, count in phases.most_common())})"
    print(text)
    if given.write:
        reliability.write("kills twice" if given.twice else "kills", text)
    sys.exit(same < len(done))


def _line(kill: Kill) -> str:
    return f"{kill.seconds:6.2f} s  {kill.phase:20} {'same front' if kill.same else kill.output}"


if __name__ == "__main__":
    main()
