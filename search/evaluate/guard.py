"""Calls objectives so that a fault in one of them costs a candidate and never the search.

An objective is called in a thread of its own, so that a call that hangs can be abandoned.
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
from typing import Annotated, Any

import torch
from pydantic import Field, TypeAdapter, ValidationError
from torch import Tensor

from search.files import read_regular_file, write_atomically
from search.objectives.base import Cost, Objective, Quality
from search.profile.costs import Costs
from search.schedule import Schedule

ALIKE = 1e-4  # two calls of a deterministic objective differ by less, relative to the larger of 1 and the value
OURS = "search.objectives."
MAX_BYTES = 2**24  # of the file of failures
Text = Annotated[str, Field(max_length=2000)]


@dataclass(frozen=True)
class Failure:
    """A fault of an objective.

    Attributes:
        objective: Its name in the search.
        digest: The schedule that it failed on.
        reason: What happened, a verb first: "raises ValueError: …".
        split: On which prompts, calibration or held-out.
    """

    objective: Text
    digest: Text
    reason: Text
    split: Text = "calibration"


_FAILURES = TypeAdapter(Annotated[list[Failure], Field(max_length=100_000)])


class ObjectiveFailed(Exception):
    """An objective has no value for a candidate."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(f"objective {failure.objective} {failure.reason}")
        self.failure = failure


class Guard:
    """Calls objectives within limits, and records their failures.

    Args:
        seconds: The longest that one call may take; None for no limit.
        most: After failures of so many candidates objectives are no longer called; None for no limit.
        on_message: Called with a text for each failure.
        split: Which prompts the failures are recorded for.

    Attributes:
        failures: In the order in which they happened.
    """

    def __init__(
        self,
        seconds: float | None = None,
        most: int | None = None,
        on_message: Callable[[str], None] = lambda text: None,
        split: str = "calibration",
    ) -> None:
        self.seconds, self.most, self.on_message, self.split = seconds, most, on_message, split
        self.failures: list[Failure] = []
        self._caller: _Caller | None = None

    @property
    def exhausted(self) -> bool:
        """Whether as many candidates have failed as are allowed."""
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
        """Per-prompt values of a quality.

        Args:
            name: The objective's name in the search.
            objective: What is called.
            run: Latents or pictures of the schedule [P, ...].
            teacher: Those of the teacher [P, ...].
            prompts: The texts [P].
            digest: The schedule, for the record of a failure.

        Returns:
            One number per prompt [P].

        Raises:
            ObjectiveFailed: It raises, takes too long, or gives values that are not finite or not P of them.
        """
        values_given = self._call(name, digest, lambda: objective(run, teacher, prompts))
        if not isinstance(values_given, Tensor) or values_given.shape != (len(prompts),):
            tensor = isinstance(values_given, Tensor)
            given = f"shape {list(values_given.shape)}" if tensor else f"a {type(values_given).__name__}"
            self._fail(name, digest, f"gives {given} for {len(prompts)} prompts; a tensor [{len(prompts)}] is wanted")
        values = [float(value) for value in values_given]
        self._check_finite(name, digest, values)
        return values

    def cost(self, name: str, objective: Cost, schedule: Schedule, costs: Costs) -> float:
        """The cost of a schedule; ObjectiveFailed as for qualities."""
        if type(objective).__module__.startswith(OURS):
            return objective(schedule, costs)
        value = self._call(name, schedule.digest, lambda: objective(schedule, costs))
        if not isinstance(value, int | float):
            self._fail(name, schedule.digest, f"gives a {type(value).__name__}; a number is wanted")
        self._check_finite(name, schedule.digest, [float(value)])
        return float(value)

    def differs(
        self, name: str, objective: Quality, teacher: Tensor, prompts: Sequence[str], digest: str
    ) -> float | None:
        """The difference of two calls on the teacher's own results, None where they agree; ObjectiveFailed as above."""
        first, second = (self.quality(name, objective, teacher, teacher, prompts, digest) for _ in range(2))
        difference = max(abs(a - b) for a, b in zip(first, second, strict=True))
        return difference if difference > ALIKE * max(1.0, *map(abs, first)) else None

    def record(self, failure: Failure) -> ObjectiveFailed:
        """Add a failure to the list and send a message; returns the exception to raise."""
        if failure not in self.failures:
            self.failures.append(failure)
            self.on_message(f"objective {failure.objective} {failure.reason} (candidate {failure.digest[:19]})")
        return ObjectiveFailed(failure)

    def save(self, path: Path) -> None:
        """Add the failures to a JSON list of {objective, digest, reason, split}."""
        saved = [asdict(failure) for failure in _read_failures(path)]
        rows = saved + [row for failure in self.failures if (row := asdict(failure)) not in saved]
        if rows:
            write_atomically(path, json.dumps(rows, indent=1, ensure_ascii=False) + "\n")

    def _call(self, name: str, digest: str, work: Callable[[], Any]) -> Any:
        if self.exhausted:
            raise ObjectiveFailed(Failure(name, digest, "is no longer called"))
        if self._caller is None or self._caller.abandoned:
            self._caller = _Caller()
        try:
            return self._caller.call(work, self.seconds)
        except TimeoutError:
            self._fail(name, digest, f"took more than {self.seconds:g} s and was abandoned")
        except Exception as error:
            lines = str(error).strip().splitlines()
            self._fail(name, digest, f"raises {type(error).__name__}: {lines[0][:500] if lines else ''}")

    def _check_finite(self, name: str, digest: str, values: Sequence[float]) -> None:
        if bad := [value for value in values if not math.isfinite(value)]:
            self._fail(name, digest, f"gives {bad[0]} for {len(bad)} of {len(values)}")

    def _fail(self, name: str, digest: str, reason: str) -> None:
        raise self.record(Failure(name, digest, reason, self.split)) from None


def _read_failures(path: Path) -> list[Failure]:
    """What `Guard.save` wrote, none where there is no file; ValueError where it is not such a list."""
    try:
        return _FAILURES.validate_json(read_regular_file(path, MAX_BYTES, inside=path.parent))
    except FileNotFoundError:
        return []
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))[:100] or "its content"
        raise ValueError(f"{path} is not a list of failures: {place}: {first['msg']}; delete it") from None


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
    """One thread that makes calls, one after the other, until a call takes too long.

    Python cannot end a thread. An abandoned thread gets an exception at its next bytecode; inside of C code that is
    when the code returns. A call of C code that keeps the interpreter's lock cannot be abandoned at all.
    """

    def __init__(self) -> None:
        self.abandoned = False
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
            self.abandoned = True
            request = ctypes.c_ulong(self._thread.ident or 0), ctypes.py_object(SystemExit)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(*request)
            raise TimeoutError from None
        if error is not None:
            raise error
        return value

    def _work(self) -> None:
        torch.set_grad_enabled(False)  # a setting of each thread, as is the next one
        if torch.get_num_threads() > 1:  # a second team of OpenMP's makes the denoiser's sleep between its tasks
            torch.set_num_threads(1)
        while not self.abandoned:
            work = self._calls.get()
            try:
                self._results.put((work(), None))
            except Exception as error:
                self._results.put((None, error))
            except BaseException as error:  # it was abandoned, or an objective calls sys.exit()
                self._results.put((None, RuntimeError(repr(error))))


def objective_identity(objective: Objective) -> dict[str, Any]:
    """What an objective's values depend on: its arguments, and of a user's objective its source."""
    identity: dict[str, Any] = {k: v for k, v in vars(objective).items() if not k.startswith("_")}
    kind = type(objective)
    if not kind.__module__.startswith(OURS):
        identity["source"] = hashlib.sha256(_source(kind).encode()).hexdigest()[:16]
    return identity


def _source(kind: type) -> str:
    """The file of a class, or where there is none (a notebook) the class; empty where that cannot be read either."""
    try:
        return inspect.getsource(sys.modules[kind.__module__])
    except (OSError, TypeError, KeyError):
        try:
            return inspect.getsource(kind)
        except (OSError, TypeError):
            return ""
