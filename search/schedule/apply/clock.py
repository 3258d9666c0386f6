"""Which step of which run a denoiser call belongs to."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from search.schedule.errors import ScheduleError


class Clock:
    """Where a run is: the step, and the coordinate of each step on the forecast axis."""

    def __init__(self) -> None:
        self.step = -1  # -1: outside of a run
        self.steps = 0
        self.places: list[float] = []
        self.calls = 0  # denoiser calls since the last scheduler step: the CFG branch
        self.span = 1  # steps that the running call computes, this one and those after it
        self.on_reset: list[Callable[[], None]] = []
        self.on_step: list[Callable[[int], None]] = []  # called with the step that begins, -1 outside of a run

    def __deepcopy__(self, memo: Any) -> NoReturn:
        """Refuse: hooks and scheduler of a copy would still act on the original."""
        raise ScheduleError("a schedule is applied here; remove it before copying, then apply it to the copy as well")

    def start(self, steps: int, places: list[float]) -> None:
        """Begin a run of `steps` steps, with the place of each on the forecast axis."""
        self.step, self.steps, self.places = 0, steps, places
        for reset in self.on_reset:
            reset()
        self.go(0)

    def advance(self) -> None:
        """Begin the next step, or end the run after the last one."""
        if self.step + 1 == self.steps:
            self.stop()
        else:
            self.go(self.step + 1)

    def stop(self) -> None:
        """End the run."""
        self.step = -1
        for reset in self.on_reset:
            reset()
        self.go(-1)

    def go(self, step: int) -> None:
        """Begin a step; the denoiser was not called in it yet."""
        self.step, self.calls = step, 0
        self._notify(step)

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Compute what the plan does not compute, for comparison: all modules run, and no values are stored."""
        self._notify(-1)
        try:
            yield
        finally:
            self._notify(self.step)

    def _notify(self, step: int) -> None:
        for on_step in self.on_step:
            on_step(step)
