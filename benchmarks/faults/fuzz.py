"""python -m benchmarks.faults.fuzz: 10,000 mutated schedule files and 2,000 mutated configurations.

Each has to be a valid load, or our own error, which names a field. Meanwhile an audit hook refuses every file but the
given one, imports, processes and sockets; an alarm ends what hangs; the address space is bounded. `--write` puts the
counts into docs/reliability.md.
"""

import argparse
import contextlib
import json
import random
import re
import resource
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel

from benchmarks.faults import reliability
from search.config.compose import compose_config, normalise_overrides
from search.config.settings import CONF, Config, all_keys
from search.schedule import Schedule, ScheduleError
from search.schedule.document import Document
from tests.helpers import pipelines

SECONDS = 20  # that one file may take, on a busy machine
ROOM = 512 * 2**20  # bytes of address space beyond what is in use at the beginning
WATCHED = (
    "open",
    "exec",
    "import",
    "compile",
    "socket.",
    "subprocess.",
    "os.",
    "shutil.",
    "pickle.",
    "ctypes.",
    "urllib.",
)
HARMLESS = ("os.scandir", "os.listdir", "os.putenv")
NUMBERS = (0, 1, -1, 6, 7, 0.5, 10**9, 2**63 - 1, 2**63, 10**400, -(10**30), 1e308, 5e-324, float("inf"), float("nan"))
WORDS = (
    "", "denoiser", "C*6", "CRCRCR", "C*1000000000", "((C*9999)*9999)*9999", "transformer_blocks.*:ff", "schedule/1",
    "schedule/2", "sha256:" + "0" * 64, "122111", "\ud800", "\0", "../../../../etc/passwd", "/etc/passwd", "{}", "null",
    "file:///etc/passwd", "https://example.org/x.safetensors", "${oc.env:HOME}", "__import__('os')", "[0-9]", "(a+)+$",
    "!!python/object/apply:os.system [id]", "*" * 2000, "A" * 200_000, "S" * 6, "F9" * 6,
)  # fmt: skip


class Escaped(BaseException):
    """Something was touched that a schedule or a configuration has no business with."""


class Watch:
    """An audit hook that allows files of these folders, while it is on."""

    def __init__(self, *folders: Path) -> None:
        self.folders, self.on = tuple(map(str, folders)), False
        self.seen: Counter[str] = Counter()
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple) -> None:
        if not self.on or not event.startswith(WATCHED) or event in HARMLESS:
            return
        if event == "open" and str(arguments[0]).startswith(self.folders):
            return
        self.seen[event] += 1
        raise Escaped(f"{event} {arguments[:2]!r:.200}")


@contextlib.contextmanager
def bounded(room: int = ROOM) -> Iterator[None]:
    """No more address space than now and `room` bytes; a MemoryError where it is asked for."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    kept = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + room, kept[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, kept)


@contextlib.contextmanager
def alarm(seconds: int = SECONDS) -> Iterator[None]:
    def ring(*_: Any) -> None:
        raise Escaped(f"hangs for {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# What is mutated


def schedules() -> list[dict[str, Any]]:
    """Valid schedule files that have, together, every part of the format."""
    pipe = pipelines.pixart()
    rules = [
        ["transformer_blocks.*:attn2", "CRCRF1C"],
        ["transformer_blocks.[0,2]:ff", "C*4 R*2"],
        ["denoiser", "C*5 R"],
    ]
    grid = {"timesteps": [900, 700, 500.5, 300, 100, 10], "sigmas": [9.0, 5.0, 3.0, 1.0, 0.2, 0.1, 0.0]}
    solver = {"class": "DPMSolverMultistepScheduler", "config": {"solver_order": 2, "flow_shift": 1.5}} | grid
    table = {"state": [1.0] * 6, "outputs": [[0.1] * (i + 1) for i in range(6)]}
    gate = {"group": "transformer_blocks.[1-2]", "actions": "C G*5", "signal": "first_block_residual", "threshold": 0.3}
    layer = "transformer_blocks.0.ff.net.0.proj"
    static = {"weight": 8, "activation": 8, "static": True}
    formats = {"w8": {"weight": 8}, "w8a8s": static, "w8a8t": static | {"per_step": True}}
    layers, at = {layer: "w8a8s", "transformer_blocks.1.ff.net.2": "w8a8t"}, [999.0, 0.0]
    ranges = {layer: [[-1.0, 1.0]], "transformer_blocks.1.ff.net.2": [[-1.0, 1.0], [-2.0, 0.5]]}
    bits = {"formats": formats, "layers": layers, "ranges": ranges, "at": at}
    scores = {"drift": {"value": 0.1, "ci": [0.05, 0.2], "split": "held_out", "unit": "ratio"}}
    guidance = {"call": 3.0, "scale": [3.0] * 5 + [2.0], "branch": "CCRACO", "approximate": {"low": 1.1, "radius": 0.2}}
    other = pipelines.content(pipelines.pixart(blocks=2))["model"] | {"name": "small"}
    return [
        pipelines.content(
            pipe, rules, sampler=solver | {"order": "122321"}, scores=scores, axis="logsnr", made={"seed": 1}
        ),
        pipelines.content(
            pipe, sampler=solver | {"coefficients": table}, gates=[gate | {"value": "residual"}], bits=bits
        ),
        pipelines.content(pipe, rules[1:2], guidance=guidance, made={"call": {"a": [1, "b"]}}),
        pipelines.content(pipe, rules[1:2], models={"names": {"S": other}, "at": "LLLLSS"}),
    ]


def configurations() -> list[dict[str, Any]]:
    """Whole configurations, as the command line composes them."""
    said = (
        ["+space=cache"],
        ["+space=[timesteps,solver,cache,bits]", "engine=unsga3"],
        ["+experiment=ecad", "model=dit"],
    )
    return [compose_config(normalise_overrides(list(overrides))) for overrides in said]


class Mutations:
    """Mutations of nested data and of bytes, drawn from a seed."""

    def __init__(self, seed: int, words: tuple = WORDS) -> None:
        self.random, self.words = random.Random(seed), words

    def data(self, base: Any) -> Any:
        """A copy, changed at one to four places."""
        made = json.loads(json.dumps(base))
        for _ in range(self.random.choice((1, 1, 2, 4))):
            self._change(made)
        return made

    def text(self, base: bytes) -> bytes:
        """Bytes replaced, doubled, taken away, or cut off."""
        made = bytearray(base)
        for _ in range(self.random.choice((1, 1, 2, 4, 16))):
            at, length = self.random.randrange(len(made) + 1), self.random.choice((0, 1, 1, 2, 10, 1000))
            piece = bytes(made[at : at + length])
            kind = self.random.randrange(5)
            new = (b"", piece * 2, piece * 500, self.random.randbytes(length), self._word().encode("utf-8", "replace"))[
                kind
            ]
            made[at : at + length] = new
        return bytes(made if self.random.random() > 0.1 else made[: self.random.randrange(len(made) + 1)])

    def _change(self, made: Any) -> None:
        places = list(_containers(made))
        at = self.random.choice(places)
        keys: list[Any] = list(at) if isinstance(at, dict) else list(range(len(at)))
        kind = self.random.randrange(6)
        if kind == 0 or not keys:
            if isinstance(at, dict):
                at[self._word()] = self._value()
            else:
                at.insert(self.random.randrange(len(at) + 1), self._value())
            return
        key = self.random.choice(keys)
        if kind == 1:
            del at[key]
        elif kind == 2:
            at[key] = at[self.random.choice(keys)]
        elif kind == 3 and isinstance(at[key], str):
            at[key] = self.text(at[key].encode()).decode("utf-8", "replace")
        else:
            at[key] = self._value()

    def _value(self, depth: int = 0) -> Any:
        kind = self.random.randrange(9)
        if kind < 3:
            return self.random.choice(NUMBERS)
        if kind < 6 or depth > 3:
            return self._word()
        if kind == 6:
            return self.random.choice((None, True, False))
        if kind == 7:
            if depth == 0 and self.random.random() < 0.3:
                return [self.random.choice(NUMBERS)] * 30_000
            return [self._value(depth + 1) for _ in range(self.random.randrange(4))]
        return {self._word(): self._value(depth + 1) for _ in range(self.random.randrange(4))}

    def _word(self) -> str:
        return self.random.choice(self.words)


def _containers(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list):
        yield value
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _containers(inner)


# What is tried


def fields(model: type[BaseModel] = Document) -> set[str]:
    """Names of all fields of the format."""
    found: set[str] = set()
    for name, field in model.model_fields.items():
        found.add(field.alias or name)
        left = [field.annotation]
        while left:
            part = left.pop()
            left.extend(get_args(part))
            if isinstance(part, type) and issubclass(part, BaseModel):
                found |= fields(part)
    return found


FIELDS = fields()
NO_JSON = "this is no complete JSON file|its JSON is nested too deep|has more than the|a schedule is a JSON object"


def try_schedule(path: Path) -> str:
    """`valid`, or `refused` where it is our error and names a field or says that it is no JSON."""
    try:
        schedule = Schedule.load(path)
        content = schedule.to_dict()
        names, rows = schedule.table()
        assert len(names) == len(rows) and all(len(row) == (schedule.steps or 0) for row in rows)
        assert Schedule.from_dict(content).digest == schedule.digest
        return "valid"
    except ScheduleError as error:
        told = str(error).removeprefix(f"{path}: ")
        told.encode()
        if len(told) < 2000 and (
            re.search(NO_JSON, told) or any(re.search(rf"\b{f}\b", told) for f in FIELDS | {"file"})
        ):
            return "refused"
        raise AssertionError(f"no field is named: {told[:300]!r}") from None


KEYS = sorted({part for key in all_keys() for part in key.split(".")} | set(Config.model_fields))


def try_configuration(path: Path) -> str:
    """`valid`, or `refused` where it is a ValueError whose every line names a key."""
    try:
        Config.load(path)
        return "valid"
    except ValueError as error:
        told = str(error)
        if type(error) is not ValueError or not told:
            raise AssertionError(f"not our own error: {error!r:.300}") from None
        told.encode("utf-8", "backslashreplace")
        if not any(key in told for key in (*KEYS, "there is no ", "is not a configuration")):
            raise AssertionError(f"no key is named: {told[:300]!r}") from None
        return "refused"


def fuzz(kind: str, count: int, seed: int = 0, done: Callable[[int], None] = lambda number: None) -> Counter[str]:
    """How many were valid and refused; AssertionError with the file's content where neither."""
    mutations = Mutations(seed)
    bases = schedules() if kind == "schedules" else configurations()
    attempt = try_schedule if kind == "schedules" else try_configuration
    written = json.dumps if kind == "schedules" else lambda data: yaml.safe_dump(data, sort_keys=False)
    found: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        path, watch = (
            Path(folder) / "mutated",
            Watch(Path(folder), CONF),
        )  # a mistyped key is compared with those that there are
        for base in bases:  # nothing is imported later
            path.write_text(written(base))
            assert attempt(path) == "valid", base
            path.write_text("{")
            attempt(path)
            path.write_text("{}")
            attempt(path)
        with bounded():
            for number in range(count):
                base = bases[number % len(bases)]
                text = (
                    mutations.text(written(base).encode())
                    if number % 3 == 0
                    else _encoded(written(mutations.data(base)))
                )
                path.write_bytes(text)
                watch.on = True
                try:
                    with alarm():
                        found[attempt(path)] += 1
                except BaseException as error:
                    watch.on = False
                    kept = Path(tempfile.gettempdir()) / f"fuzz-{kind}-{number}"
                    kept.write_bytes(text)
                    raise AssertionError(f"{kind} {number} (kept in {kept}): {error!r:.500}") from error
                finally:
                    watch.on = False
                done(number)
    return found


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--schedules", type=int, default=10_000)
    parser.add_argument("--configurations", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    for kind in ("schedules", "configurations"):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found = fuzz(kind, getattr(given, kind), given.seed)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        text = f"{sum(found.values()):,} {kind}: {found['refused']:,} refused with a name, {found['valid']:,} valid; "
        text += f"the process grew by {grown:.0f} MiB at most"
        print(text, flush=True)
        if given.write:
            reliability.write(kind, text)


if __name__ == "__main__":
    main()
