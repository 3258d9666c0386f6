"""Objectives may be anybody's: what one of them does wrong costs a candidate, never the search.

An objective is called in a thread of its own, so that one that hangs can be left behind.
"""

import ctypes
import hashlib
import inspect
import json
import math
import queue
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from search.objectives.base import Cost, Objective, Quality
from search.profile.costs import Costs
from search.results.disk import write_atomically
from search.schedule import Schedule

ALIKE = 1e-4  # two calls of a deterministic objective differ by less, relative to the larger of 1 and the value
OURS = "search.objectives."


@dataclass(frozen=True)
class Failure:
    """What an objective did wrong: its name, the digest of the schedule, what happened, and on which prompts."""

    objective: str
    digest: str
    reason: str
    split: str = "calibration"


class ObjectiveFailed(Exception):
    """An objective has no value for a candidate."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(f"objective {failure.objective} {failure.reason}")
        self.failure = failure


class Guard:
    """Calls objectives: at most `seconds` for one candidate, and after `most` failures no longer.

    `failures` are in the order in which they happened; `told` hears of each. `most` counts candidates; None is no
    limit, and so for `seconds`.
    """

    def __init__(
        self,
        seconds: float | None = None,
        most: int | None = None,
        told: Callable[[str], None] = lambda text: None,
        split: str = "calibration",
    ) -> None:
        self.seconds, self.most, self.told, self.split = seconds, most, told, split
        self.failures: list[Failure] = []
        self._caller: _Caller | None = None

    @property
    def exhausted(self) -> bool:
        """Whether so many candidates have failed that to go on makes no sense."""
        return self.most is not None and len({failure.digest for failure in self.failures}) >= self.most

    @property
    def summary(self) -> str:
        """How many candidates have failed, and the last reason of each objective."""
        count = len({failure.digest for failure in self.failures})
        last = {failure.objective: failure.reason for failure in self.failures}
        return f"{count} candidates failed on {self.split} prompts: " + "; ".join(
            f"{name} {reason}" for name, reason in last.items()
        )

    def quality(
        self, name: str, objective: Quality, run: Tensor, teacher: Tensor, prompts: Sequence[str], digest: str
    ) -> list[float]:
        """Per-prompt values [P]; Failed where it raises, takes too long, or they are not finite or not P."""
        found = self._call(name, digest, lambda: objective(run, teacher, prompts))
        if not isinstance(found, Tensor) or found.shape != (len(prompts),):
            is_now = f"shape {list(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
            self._fail(name, digest, f"gives {is_now} for {len(prompts)} prompts; a tensor [{len(prompts)}] is wanted")
        values = [float(value) for value in found]
        self._finite(name, digest, values)
        return values

    def cost(self, name: str, objective: Cost, schedule: Schedule, costs: Costs) -> float:
        """The cost of a schedule; Failed as for qualities."""
        if type(objective).__module__.startswith(OURS):
            return objective(schedule, costs)
        found = self._call(name, schedule.digest, lambda: objective(schedule, costs))
        if not isinstance(found, int | float):
            self._fail(name, schedule.digest, f"gives a {type(found).__name__}; a number is wanted")
        self._finite(name, schedule.digest, [float(found)])
        return float(found)

    def differs(
        self, name: str, objective: Quality, teacher: Tensor, prompts: Sequence[str], digest: str
    ) -> float | None:
        """How far two calls on the teacher's own results are apart, None where they agree; Failed as for `quality`."""
        one, two = (self.quality(name, objective, teacher, teacher, prompts, digest) for _ in range(2))
        apart = max(abs(a - b) for a, b in zip(one, two, strict=True))
        return apart if apart > ALIKE * max(1.0, *map(abs, one)) else None

    def note(self, failure: Failure) -> ObjectiveFailed:
        """Put a failure down, and tell it."""
        if failure not in self.failures:
            self.failures.append(failure)
            self.told(f"objective {failure.objective} {failure.reason} (candidate {failure.digest[:19]})")
        return ObjectiveFailed(failure)

    def save(self, path: Path) -> None:
        """Add what failed to a JSON list of {objective, digest, reason, split}."""
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        found = known + [row for failure in self.failures if (row := asdict(failure)) not in known]
        if found:
            write_atomically(path, json.dumps(found, indent=1, ensure_ascii=False) + "\n")

    def _call(self, name: str, digest: str, work: Callable[[], Any]) -> Any:
        if self.exhausted:
            raise ObjectiveFailed(Failure(name, digest, "is no longer asked"))
        if self._caller is None or self._caller.left:
            self._caller = _Caller()
        try:
            return self._caller.call(work, self.seconds)
        except TimeoutError:
            self._fail(name, digest, f"took more than {self.seconds:g} s and was left behind")
        except Exception as error:
            lines = str(error).strip().splitlines()
            self._fail(name, digest, f"raises {type(error).__name__}: {lines[0][:500] if lines else ''}")

    def _finite(self, name: str, digest: str, values: Sequence[float]) -> None:
        if bad := [value for value in values if not math.isfinite(value)]:
            self._fail(name, digest, f"gives {bad[0]} for {len(bad)} of {len(values)}")

    def _fail(self, name: str, digest: str, reason: str) -> None:
        raise self.note(Failure(name, digest, reason, self.split)) from None


class SafeCost(Cost):
    """A cost that has a value for every schedule: the worst one where it fails."""

    def __init__(self, name: str, cost: Cost, guard: Guard) -> None:
        self.name, self.cost, self.guard, self.better = name, cost, guard, cost.better  # type: ignore[misc]

    def __call__(self, schedule: Schedule, costs: Costs) -> float:
        try:
            return self.guard.cost(self.name, self.cost, schedule, costs)
        except ObjectiveFailed:
            return self.worst(costs)

    def worst(self, costs: Costs) -> float:
        return self.cost.worst(costs)


class _Caller:
    """One thread that calls what it is given, one after the other, until a call takes too long.

    Python cannot end a thread. One that is left behind is asked to stop at its next bytecode; one that waits inside of
    C code goes on until that returns. Code in C that keeps the interpreter's lock cannot be left behind at all.
    """

    def __init__(self) -> None:
        self.left = False
        self._calls: queue.SimpleQueue[Callable[[], Any]] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[tuple[Any, Exception | None]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="objective", daemon=True)
        self._thread.start()

    def call(self, work: Callable[[], Any], seconds: float | None) -> Any:
        """What `work` returns, or what it raises; TimeoutError where it does neither in time."""
        self._calls.put(work)
        try:
            value, error = self._results.get(timeout=seconds)
        except queue.Empty:
            self.left = True
            asked = ctypes.c_ulong(self._thread.ident or 0), ctypes.py_object(SystemExit)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(*asked)
            raise TimeoutError from None
        if error is not None:
            raise error
        return value

    def _work(self) -> None:
        torch.set_grad_enabled(False)  # a setting of each thread, as is the next one
        if torch.get_num_threads() > 1:  # a second team of OpenMP's makes the denoiser's sleep between its tasks
            torch.set_num_threads(1)
        while not self.left:
            work = self._calls.get()
            try:
                self._results.put((work(), None))
            except Exception as error:
                self._results.put((None, error))
            except BaseException as error:  # it was left behind, or an objective calls sys.exit()
                self._results.put((None, RuntimeError(repr(error))))


def objective_identity(objective: Objective) -> dict[str, Any]:
    """What an objective's values depend on: its arguments, and of a user's objective its source."""
    given: dict[str, Any] = {k: v for k, v in vars(objective).items() if not k.startswith("_")}
    kind = type(objective)
    if not kind.__module__.startswith(OURS):
        given["source"] = hashlib.sha256(_source(kind).encode()).hexdigest()[:16]
    return given


def _source(kind: type) -> str:
    """The file of a class, or where there is none (a notebook) the class; empty where that cannot be read either."""
    try:
        return inspect.getsource(sys.modules[kind.__module__])
    except (OSError, TypeError, KeyError):
        try:
            return inspect.getsource(kind)
        except (OSError, TypeError):
            return ""
