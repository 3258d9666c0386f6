"""python -m benchmarks.faults.disks: what a power cut, a full and a read-only disk leave, and a search that goes on.

Checkpoints cut off, empty or of garbage, a memo of garbage, half written or cut off; file systems of a few sizes that
run full (mounted in memory, which takes root on Linux), and one that is read-only. Every search is killed or stopped on
the way, and has to end in the front of an uninterrupted one. `--write` puts the counts into docs/reliability.md.
"""

import argparse
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.faults import reliability
from benchmarks.faults.kills import Kills, _folder, config, ended, forked, front
from search.loop.checkpoint import previous_checkpoint

SIZES = (256, 384, 512, 768, 1024, 1536)  # KiB: a search of this size needs some 2 MiB


def cut(path: Path, share: float) -> None:
    os.truncate(path, int(path.stat().st_size * share))


def garbage(path: Path) -> None:
    path.write_bytes(os.urandom(path.stat().st_size))


def half_written(path: Path) -> None:
    """The head is whole; every page behind it is zeros."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(3 * 4096)
        file.write(bytes(max(0, size - 3 * 4096)))


def memo(folder: Path) -> Path:
    """The memo beside a run folder, its log folded into it: else the log alone would restore what is damaged."""
    path = folder.parent / "memo.sqlite"
    with closing(sqlite3.connect(path)) as base:
        base.execute("pragma wal_checkpoint(truncate)")
    return path


OLDER, ASIDE = "going on from the generation before", "it is now memo.broken.sqlite"
DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {  # on a run folder, and what is told
    "checkpoint cut in half": (lambda folder: cut(folder / "checkpoint.bin", 0.5), OLDER),
    "checkpoint empty": (lambda folder: cut(folder / "checkpoint.bin", 0), OLDER),
    "checkpoint of garbage": (lambda folder: garbage(folder / "checkpoint.bin"), OLDER),
    "checkpoint gone": (lambda folder: (folder / "checkpoint.bin").unlink(), ""),
    "memo of garbage": (lambda folder: garbage(memo(folder)), ASIDE),
    "memo half written": (lambda folder: half_written(memo(folder)), ASIDE),
    "memo cut in half": (lambda folder: cut(memo(folder), 0.5), ASIDE),
    "memo gone": (lambda folder: memo(folder).unlink(), ""),
}


class Disks:
    """Searches on bad disks; each answer is whether the message came, and the front was that of a good disk."""

    def __init__(self, work: Path, generations: int = 3) -> None:
        self.kills = Kills(work, generations)
        self.work, self.more = work, self.kills.more

    def damaged(self, name: str) -> bool:
        """Kill a search after its second generation, damage a file, resume."""
        damage, told = DAMAGES[name]
        runs, output = self._place(name)
        self._stopped(runs, output)
        damage(_folder(runs))
        return self._goes_on(runs, output) and " ".join(told.split()) in _words(output)

    def both_checkpoints(self) -> bool:
        """No checkpoint is sound: it is told what to type, which begins again and ends in the same front."""
        runs, output = self._place("both")
        self._stopped(runs, output)
        files = [_folder(runs) / "checkpoint.bin", previous_checkpoint(_folder(runs) / "checkpoint.bin")]
        for file in files:
            cut(file, 0.5)
        refused = not self._goes_on(runs, output) and "Delete checkpoint*.bin there and type" in _words(output)
        for file in files:
            file.unlink()
        return refused and self._goes_on(runs, output)

    def full(self, kib: int) -> bool:
        """A disk of so many KiB runs full; it is made larger, and the search goes on."""
        runs, output = self._place(f"full {kib}")
        with mounted(runs, f"size={kib}k"):
            code = ended(forked(config(runs, *self.more), output))
            stopped = code != 0 and "there is no room left on the disk" in _words(output)
            _mount("-o", "remount,size=256m", str(runs))
            return stopped and self._goes_on(runs, output)

    def read_only(self) -> bool:
        """Refused before anything is computed, a new search and a resumed one."""
        runs, output = self._place("read only")
        with mounted(runs, "size=256m"):
            self._stopped(runs, output)
            _mount("-o", "remount,ro", str(runs))
            output.write_text("")
            new = ended(forked(config(runs, *self.more), output))
            again = ended(forked(config(runs, *self.more, "resume=latest"), output))
            said = _words(output)
            refused = (
                new != 0
                and again != 0
                and said.count(f"ValueError: runs={runs}: nothing can be written to") == 2
                and "teacher" not in said
            )
            _mount("-o", "remount,rw", str(runs))
            return refused and self._goes_on(runs, output)

    def _place(self, name: str) -> tuple[Path, Path]:
        place = self.work / name.replace(" ", "-")
        (place / "runs").mkdir(parents=True)
        return place / "runs", place / "output.log"

    def _stopped(self, runs: Path, output: Path) -> None:
        """A search that was killed when its second generation was over."""
        process = forked(config(runs, *self.more), output)
        while "generation {'generation': 1" not in "".join(p.read_text() for p in runs.glob("*/search.log")):
            if os.waitpid(process, os.WNOHANG)[0]:
                raise AssertionError(output.read_text())
        ended(process, 0.0)

    def _goes_on(self, runs: Path, output: Path) -> bool:
        there = ["resume=latest"] if any(runs.glob("*/config.yaml")) else []
        code = ended(forked(config(runs, *self.more, *there), output, figures=False))
        return code == 0 and front(_folder(runs)) == self.kills.expected


def _words(output: Path) -> str:
    return " ".join(output.read_text().split())


def _mount(*given: str) -> None:
    subprocess.run(["mount", *given], check=True, capture_output=True)


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    """A file system in memory at this folder."""
    _mount("-t", "tmpfs", "-o", options, "tmpfs", str(folder))
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def can_mount() -> bool:
    with (
        TemporaryDirectory() as folder,
        suppress(OSError, subprocess.CalledProcessError),
        mounted(Path(folder), "size=64k"),
    ):
        return True
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    with TemporaryDirectory() as work:
        disks = Disks(Path(work))
        tried: dict[str, list[tuple[str, Callable[[], bool]]]] = {
            "damage": [(name, lambda name=name: disks.damaged(name)) for name in DAMAGES],  # type: ignore[misc]
            "both": [("both checkpoints", disks.both_checkpoints)],
            "full": [(f"{size} KiB", lambda size=size: disks.full(size)) for size in SIZES],  # type: ignore[misc]
            "read only": [("read only", disks.read_only)],
        }
        wrong = 0
        for row, attempts in tried.items():
            if row in ("full", "read only") and not can_mount():
                print(f"{row}: no file system can be mounted here")
                continue
            found = {}
            for name, attempt in attempts:
                found[name] = attempt()
                print(f"{row:10} {name:25} {'same front' if found[name] else 'WRONG'}", flush=True)
            wrong += len(found) - sum(found.values())
            if given.write:
                reliability.write(row, f"{sum(found.values())} of {len(found)} ({', '.join(found)})")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
