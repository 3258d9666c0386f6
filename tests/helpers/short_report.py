"""Searches that report little: to score, time and draw forty schedules takes longer than a small search.

`python -m tests.helpers.short_report search +space=cache` is `python -m search +space=cache` with a short report.
"""

import contextlib
import runpy
import sys
from collections.abc import Iterator
from unittest import mock

from search.loop import finish, held_out


@contextlib.contextmanager
def short_report(front: int = 4) -> Iterator[None]:
    """So many schedules of the front and two presets are reported, each timed once."""
    presets = held_out._preset_schedules
    few = {
        "MOST_ON_FRONT": front,
        "REPEATS": 1,
        "_preset_schedules": lambda finished: dict(list(presets(finished).items())[:2]),
    }
    with mock.patch.multiple(held_out, **few):
        yield


@contextlib.contextmanager
def untimed_report() -> Iterator[None]:
    """All are reported, with an invented time and without figures."""
    times = lambda model, schedules, *_, **__: [[1.0, 1.1, 1.2] for _ in schedules]  # noqa: E731
    with (
        mock.patch.object(held_out, "time_schedules", times),
        mock.patch.object(finish, "write_result", lambda result: result.save()),
    ):
        yield


if __name__ == "__main__":
    del sys.argv[0]
    with short_report():
        runpy.run_module(sys.argv[0], run_name="__main__")
