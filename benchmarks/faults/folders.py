"""python -m benchmarks.faults.folders: 2,000 mutated run folders through every command that reads one.

A tiny search is made once. In each copy of its folder one file is changed: a value of front.json, config.yaml, a
checkpoint or a schedule, rows of a memo, a waiting mark; or it is cut off, or replaced by a pipe, a link, a folder.
`resume`, `report`, `export`, `budget`, `transfer`, `verify`, `promote` and `send` have to answer, or to refuse it in
our own words. Sockets and processes are refused meanwhile, and files outside; an alarm ends what hangs.
`--write` puts the counts into docs/reliability.md.
"""

import argparse
import contextlib
import copy
import hashlib
import importlib
import io
import itertools
import json
import os
import random
import shutil
import socket
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import safetensors.numpy
import yaml

from benchmarks.faults import reliability
from benchmarks.faults.fuzz import Escaped, Mutations, alarm
from benchmarks.faults.kills import config, ended, forked
from search.config.compose import compose_config
from search.loop import checkpoint
from search.results.result import Result

SECONDS = 300  # that one command may take, on a busy machine
WORDS = (
    "", "drift", "[/italic]", "[red]", "\x1b[2J", "é×図", "\ud800", "\0", "a\nb", "'", '"', "${oc.env:HOME}", "%s",
    "../../outside/secret.json", "OUTSIDE/secret.json", "schedules/../../x.json", "schedules/x.json", "pictures/x.png",
    "http://127.0.0.1:9/x", "sqlite:///OUTSIDE/secret.db", "nobody/nothing", "os.system", "search.loop.run.run",
    "sha256:" + "0" * 64, "C" * 5000, "x" * 1_000_000,
)  # fmt: skip
MAY_READ = tuple(map(os.path.realpath, (Path(__file__).parents[2], sys.prefix, sys.base_prefix))) + (
    "/proc/", "/sys/", "/usr/", "/lib", "/dev/null", "/dev/urandom", "/etc/localtime", "/etc/mime.types",
)  # fmt: skip
REFUSED = ("socket.connect", "socket.getaddrinfo", "socket.sendto", "socket.bind", "subprocess.", "os.exec", "os.fork",
           "os.posix_spawn", "os.spawn", "os.system", "pty.")  # fmt: skip


class Watch:
    """An audit hook that refuses processes, sockets, and files outside of these folders, while it is on."""

    def __init__(self, work: Path, models: Path) -> None:
        self.work, self.may_read = os.path.realpath(work), (*MAY_READ, os.path.realpath(models))
        self.on = False
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple) -> None:
        if not self.on:
            return
        if event.startswith(REFUSED):
            self._refuse(event, arguments)
        if event in ("open", "sqlite3.connect") and isinstance(arguments[0], str | bytes | os.PathLike):
            name = os.fsdecode(arguments[0])
            if name.startswith(("file::memory:", ":memory:")):
                return
            path = os.path.realpath(name)
            writing = event == "sqlite3.connect" or bool((arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR))
            if not path.startswith(self.work) and (writing or not path.startswith(self.may_read)):
                self._refuse(event, arguments)

    def _refuse(self, event: str, arguments: tuple) -> None:
        self.on = False  # what follows is the report
        raise Escaped(f"{event} {arguments[:3]!r:.300}")


# What is mutated

KINDS = ("front", "front", "front", "config", "config", "checkpoint", "checkpoint", "schedule", "memo", "mark", "any")
VALUES = (
    None,
    7,
    0.5,
    b"\xff",
    "[]",
    "[1e999]",
    "[NaN]",
    '["a"]',
    "{}",
    "[0]",
    "float99",
    "load",
    "[-1, 2]",
    "[" * 50_000,
)
ENDLESS = "with recursive n(i) as (select 1 union all select i + 1 from n) select i from n"


class Folders:
    """Copies of a finished search's folder of runs, each with a mutated file."""

    def __init__(self, work: Path) -> None:
        self.original, self.runs = work / "original" / "runs", work / "tried" / "runs"
        self.original.parent.mkdir()
        output = work / "search.log"
        more = ("budget.evaluations=24", "prompts.calibration_count=2", "prompts.held_out_count=2", "guard=[ssim]")
        assert ended(forked(config(self.original, *more), output)) == 0, output.read_text()[-3000:]
        (self.folder,) = (path.parent for path in self.original.glob("*/config.yaml"))
        for name in ("report.html", "pareto.png", "overview.png"):  # never read, and large
            (self.folder / "figures" / name).write_text("")
        result = Result.load(self.folder)  # a few schedules of each kind are as good as forty
        result.entries = [*result.of("front")[:3], *result.of("preset")[:2], *result.of("teacher")]
        result.recommended = result.entries[0].name
        result.save()
        (self.folder / "unsent").write_text("http://127.0.0.1:9/x\n")
        with contextlib.closing(sqlite3.connect(self.original / "memo.sqlite")) as base:
            base.execute("pragma wal_checkpoint(truncate)")
        outside = work / "outside"  # where mutated names and links lead
        outside.mkdir()
        shutil.copy(next((self.folder / "schedules").glob("*.json")), outside / "secret.json")
        (outside / "secret.db").touch()
        self.outside = outside
        self.files = [path.relative_to(self.original) for path in sorted(self.original.rglob("*")) if path.is_file()]

    def fresh(self) -> Path:
        """A copy of the runs folder at the same place every time; returns the run folder in it."""
        shutil.rmtree(self.runs, ignore_errors=True)
        shutil.copytree(self.original, self.runs)
        return self.runs / self.folder.name

    def mutated(self, number: int, mutations: Mutations) -> str:
        """Make a copy and change one file in it; returns what was changed."""
        folder = self.fresh()
        drawn = mutations.random
        kind = KINDS[number % len(KINDS)]
        files = {
            "front": [folder / "front.json"],
            "config": [folder / "config.yaml"],
            "checkpoint": sorted(folder.glob("checkpoint*.bin")),
            "schedule": sorted((folder / "schedules").iterdir()),
            "memo": [self.runs / "memo.sqlite"],
            "mark": [folder / "unsent", folder / "unsent", folder / "lock", folder / "search.log"],
            "any": [self.runs / path for path in self.files],
        }
        file = drawn.choice(files[kind])
        if kind == "any" or drawn.random() < 0.15:
            return f"{file.name} {self._replaced(file, drawn)}"
        if kind == "memo":
            _change_memo(file, mutations)
        elif kind == "mark":
            file.write_bytes(mutations._word().encode("utf-8", "replace"))
        elif kind == "checkpoint" and drawn.random() < 0.8:
            _change_checkpoint(file, mutations)
        elif drawn.random() < 0.2 or file.suffix not in (".json", ".yaml"):
            file.write_bytes(mutations.text(file.read_bytes()))
        elif file.suffix == ".json":
            changed = mutations.data(json.loads(file.read_text(encoding="utf-8")))
            file.write_bytes(json.dumps(changed).encode("utf-8", "surrogatepass"))
        else:
            changed = mutations.data(yaml.safe_load(file.read_text(encoding="utf-8")))
            file.write_bytes(yaml.safe_dump(changed, sort_keys=False).encode("utf-8", "surrogatepass"))
        return file.name

    def _replaced(self, file: Path, drawn: random.Random) -> str:
        kind = drawn.choice(("gone", "empty", "cut", "pipe", "link", "device", "folder", "loop", "socket"))
        content = file.read_bytes()
        file.unlink()
        match kind:
            case "empty":
                file.touch()
            case "cut":
                file.write_bytes(content[: drawn.randrange(len(content) + 1)])
            case "pipe":
                os.mkfifo(file)
            case "link":
                file.symlink_to(self.outside / "secret.json")
            case "device":
                file.symlink_to("/dev/zero")
            case "folder":
                file.mkdir()
            case "loop":
                file.symlink_to(file.name)
            case "socket":
                with contextlib.chdir(file.parent), socket.socket(socket.AF_UNIX) as made:
                    made.bind(file.name[:90])
        return kind


def _change_memo(file: Path, mutations: Mutations) -> None:
    """Other values in some rows, or other tables."""
    drawn = mutations.random
    with contextlib.closing(sqlite3.connect(file)) as base, base:
        column = drawn.choice(("memo.value", "latents.dtype", "latents.shape", "latents.data", "memo.name", "view"))
        if column == "view":
            base.execute("alter table memo rename to other")
            base.execute(
                f"create view memo as select 'c' as context, i as digest, i as name, i as value from ({ENDLESS})"
            )
            return
        table, name = column.split(".")
        share = drawn.choice((1, 2, 5))
        base.execute(f"update or ignore {table} set {name} = ? where rowid % {share} = 0", (drawn.choice(VALUES),))


def _change_checkpoint(file: Path, mutations: Mutations) -> None:
    """Other values with a digest that fits: the digest detects damage, and proves nothing of who wrote the file."""
    content = file.read_bytes()
    start = len(checkpoint.HEAD) + checkpoint.SIZE
    arrays = safetensors.numpy.load(content[start:])
    drawn, name = mutations.random, mutations.random.choice(sorted(arrays))
    if name == checkpoint.JSON or drawn.random() < 0.7:
        changed = mutations.data(json.loads(arrays[checkpoint.JSON].tobytes()))
        text = json.dumps(changed).encode("utf-8", "surrogatepass")
        arrays[checkpoint.JSON] = np.frombuffer(text, dtype=np.uint8)
    else:
        array = arrays[name]
        kinds = [array[:0], array * 0 - 1, array * np.nan, array.reshape(-1), array[None], array + 10**6]
        arrays[name] = np.ascontiguousarray(drawn.choice(kinds))
    data = safetensors.numpy.save(arrays)
    file.write_bytes(checkpoint.HEAD + hashlib.sha256(data).digest() + data)


# What is tried


def main_of(name: str) -> Callable[[list[str]], int]:
    """The command `python -m search.<name>`; `from search import <name>` would be the function."""
    return importlib.import_module(f"search.{name}").main


def commands(runs: Path, folder: Path, out: Path) -> dict[str, Callable[[], int]]:
    """Every command by name, as it is typed; each returns its exit code."""
    from search.__main__ import main as search
    from search.testing.models import tiny_folder

    where = f"runs={runs}"
    model = [f"model.path={tiny_folder()}", "model.steps=6", "model.max_sequence_length=8"]
    schedule = next(iter(sorted(p for p in (folder / "schedules").glob("*.json"))), folder / "schedules" / "none.json")
    few = ["criterion=drift<=1", "samples=8", "prompts.batch=8"]
    given = [
        "budget.evaluations=24",
        "compute.threads=1",
        "tracking.enabled=false",
        "certify=off",
        "compute.states=0.1",
    ]
    return {
        "report": lambda: main_of("report")([where, f"out={out / 'report.html'}"]),
        "export": lambda: main_of("export")([where, "pick=all", f"out={out / 'schedules'}"]),
        "budget": lambda: main_of("budget")([where, "macs<=95%"]),
        "promote": lambda: main_of("promote")([where]),
        "send": lambda: main_of("send")([where]),
        "verify": lambda: main_of("verify")([str(schedule), *model, *few]),
        "transfer": lambda: main_of("transfer")([str(schedule), *model, *few, "runs=1", f"out={out / 't.json'}"]),
        "resume": lambda: search([where, f"resume={folder.name}", *given]),
    }


def answer(command: Callable[[], int]) -> str:
    """`answered`, or `refused` where it is one error of ours; AssertionError where it is neither."""
    said, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(errors), alarm(SECONDS):
        code = command()
    told = errors.getvalue()
    if code == 2:
        text = told[told.rindex("error: ") :]
        text.encode("utf-8", "backslashreplace")
        assert len(text) < 5000 and text.count("\n") <= 12, f"a long error: {text[:500]!r}"
        assert "Traceback" not in told, told[-2000:]
        return "refused"
    assert code in (0, 1, 3), f"exit code {code}"
    return "answered"


@contextlib.contextmanager
def quick_computation() -> Iterator[None]:
    """Left out is what takes time: measured times, figures, MLflow, the results of 39 resumed searches in 40.

    A model is loaded once, and so is the configuration of each command, which is no file of a run folder.
    """
    import search.__main__ as command_line
    from search.config import load
    from search.loop import finish, held_out
    from search.loop import run as running
    from search.loop import search as loop
    from search.tracking import notes, writing

    loaded: dict[str, Any] = {}
    composed: dict[str, Any] = {}
    turns = itertools.count()
    load_model, finish_search = load.model_from_config, running.finish_search

    def model(config: Any) -> Any:
        key = json.dumps(config.model, sort_keys=True, default=str)
        if key not in loaded:
            loaded.clear()
            loaded[key] = load_model(config)
        return loaded[key]

    def configuration(*given: Any) -> Any:
        key = json.dumps(given)
        if key not in composed:
            composed[key] = compose_config(*given)
        return copy.deepcopy(composed[key])

    def log_result(result: Any, *_: Any) -> dict[str, str]:
        dict(writing._flat(result.config))
        return {"page": notes.describe_search(result)[:0]}

    patches = (
        (held_out, "time_schedules", lambda model, schedules, *_, **__: [[1.0, 1.1, 1.2] for _ in schedules]),
        (finish, "write_result", lambda result, *_: result.save()),
        (running, "finish_search", lambda *given: None if next(turns) % 40 else finish_search(*given)),
        (load, "model_from_config", model),
        (load, "compose_config", configuration),
        (command_line, "compose_config", configuration),
        (loop, "model_from_config", model),
        (writing, "log_result", log_result),
    )
    with contextlib.ExitStack() as patched:
        for module, name, value in patches:
            patched.enter_context(mock.patch.object(module, name, value))
        yield


def tried(number: int, what: str) -> list[str]:
    """The commands that a mutated folder is given to: all that read the file, and in turn one of the others."""
    quick = ["report", "export", "budget", "promote", "send"]
    if what.startswith(("config", "checkpoint", "memo")):
        return [quick[number % len(quick)], "resume"]
    if what.startswith(("front.json", "unsent")):
        return quick + ["resume"] * (number % 20 == 0)
    return [*quick, "resume", *(("verify", "transfer")[number % 2 :][:1] if ".json" in what else ())]


def fuzz(
    work: Path, count: int, seed: int = 0, done: Callable[[str], None] = lambda text: None, minutes: float = 1e9
) -> Counter[str]:
    """How often each command answered, refused, or was wrong because it did neither; and the number of folders."""
    from search.testing.models import tiny_folder

    folders = Folders(work)
    out, temporary = work / "out", work / "temporary"
    temporary.mkdir()
    failures, tempfile.tempdir = Path(tempfile.gettempdir()), str(temporary)
    mutations = Mutations(seed, tuple(word.replace("OUTSIDE", str(folders.outside)) for word in WORDS))
    watch, found = Watch(work, Path(tiny_folder())), Counter[str]()
    end = time.monotonic() + 60 * minutes
    secret = (folders.outside / "secret.json").read_bytes(), (folders.outside / "secret.db").read_bytes()
    with quick_computation():
        folder = folders.fresh()
        for name, command in commands(folders.runs, folder, out).items():  # whole, and nothing is imported later
            assert name in ("promote", "send") or answer(command) == "answered", name
        for number in range(count):
            if time.monotonic() > end:
                break
            what = folders.mutated(number, mutations)
            for name, command in commands(folders.runs, folder, out).items():
                if name not in tried(number, what):
                    continue
                watch.on = True
                try:
                    found[f"{name} {answer(command)}"] += 1
                except BaseException as error:
                    watch.on = False
                    kept = failures / f"folder-{seed}-{number}"
                    shutil.copytree(folders.runs, kept, symlinks=True, dirs_exist_ok=True, copy_function=_copy_regular)
                    done(f"WRONG: {number} {name}, {what} (kept in {kept}): {error!r:.600}")
                    found["wrong"] += 1
                    if isinstance(error, KeyboardInterrupt):
                        raise
                finally:
                    watch.on = False
            assert secret == tuple((folders.outside / name).read_bytes() for name in ("secret.json", "secret.db")), what
            found["folders"] += 1
            done(f"{number} {what}" if number % 50 == 49 else "")
    return found


def _copy_regular(source: str, target: str) -> None:
    if Path(source).is_file():
        shutil.copy(source, target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=1e9, help="after which no further folder is tried")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        found = fuzz(
            Path(work), given.count, given.seed, lambda text: print(text, flush=True) if text else None, given.minutes
        )
    names = ("resume", "report", "export", "budget", "transfer", "verify", "promote", "send")
    counts = ", ".join(f"{n} {found[f'{n} refused']:,} refused and {found[f'{n} answered']:,} answered" for n in names)
    text = f"{found['folders']:,} folders: {counts} (`--seed {given.seed}`)"
    print(text)
    if given.write:
        reliability.write("folders", text)
    sys.exit(found["wrong"] > 0)


if __name__ == "__main__":
    main()
