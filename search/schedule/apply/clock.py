"""Which step of which run a denoiser call belongs to."""

import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from search.schedule.apply.finite_check import FiniteCheck
from search.schedule.apply.monitor import OutputMonitor
from search.schedule.apply.pipeline_call import PipelineCall
from search.schedule.errors import ScheduleError


def refuse_copy(protocol: Any) -> NoReturn:
    """In place of `__reduce_ex__`, which copying and pickling call: hooks of a copy would still act on the original."""
    raise ScheduleError(
        "a schedule is applied here; remove it before copying or pickling, then apply it to the copy as well"
    )


class Clock:
    """Where a run is: the step, and the coordinate of each step on the forecast axis.

    `find_call` gives the call of the pipeline that is being executed, None in a loop of the caller's own.
    `finite_check` is given the latents after each step; None for runs that may continue from a snapshot. `monitor` is
    given the denoiser's outputs, and may find that the rest of a run has to be computed in full.
    """

    def __init__(
        self,
        find_call: Callable[[], PipelineCall | None] = lambda: None,
        finite_check: FiniteCheck | None = None,
        monitor: OutputMonitor | None = None,
    ) -> None:
        self.find_call, self.finite_check, self.monitor = find_call, finite_check, monitor
        self.call: PipelineCall | None = None  # of the pipeline, that the run belongs to
        self.runs = 0  # that began
        self.removed = False  # whether the schedule was removed, so that nothing may begin
        self.step = -1  # -1: outside of a run
        self.steps = 0
        self.places: list[float] = []
        self.begin = 0  # index of the run's first step among the scheduler's timesteps
        self.calls = 0  # denoiser calls since the last scheduler step: the CFG branch
        self.full = (
            False  # whether the pipeline's own denoiser runs in the rest of this run, whatever the schedule says
        )
        self.span = 1  # steps that the running call computes, this one and those after it
        self.on_reset: list[Callable[[], None]] = []
        self.on_step: list[Callable[[int], None]] = []  # called with the step that begins, -1 outside of a run
        self._lock = threading.Lock()
        self._held: deque[weakref.ref[Any]] = deque(maxlen=2)  # what the call of the pipeline holds

    def prepare(self) -> None:
        """Make way for a new run; ScheduleError where the call of the running one has not ended."""
        if self.removed:
            raise ScheduleError(
                "this scheduler belongs to a schedule that was removed; take that of the pipeline the schedule was "
                "applied to: other_pipe.scheduler = pipe.scheduler"
            )
        with self._lock:
            call = self.find_call()
            if self.call is not None and self.call.is_active(beneath=call):
                here = self.call.thread == threading.get_ident()
                raise ScheduleError(
                    "this pipeline is in the middle of a run, and was called again "
                    f"{'from within that run, by a callback' if here else 'by another thread'}; a schedule is for one "
                    "run at a time: call the pipeline again when the run has ended"
                )
            if self.step >= 0:
                self.stop()
            self.call = call

    def start(self, steps: int, places: list[float]) -> None:
        """Begin a run of `steps` steps, with the place of each on the forecast axis."""
        self.runs += 1
        self.step, self.steps, self.places, self.begin, self.full = 0, steps, places, 0, False
        try:
            for reset in self.on_reset:
                reset()
        except BaseException:
            self.stop()
            raise
        self.go(0)

    def begin_at(self, index: int) -> None:
        """Leave out the first steps of the run, which is at its first one."""
        skipped = index - self.begin
        self.begin, self.steps, self.places = index, self.steps - skipped, self.places[skipped:]

    @contextmanager
    def ended_by_refusal(self) -> Iterator[None]:
        """End the run where what is done here refuses it, so that no values are kept while the error is handled."""
        try:
            yield
        except ScheduleError:
            self.stop()
            raise

    def advance(self) -> None:
        """Begin the next step, or end the run after the last one."""
        if self.step + 1 == self.steps:
            self.stop()
        else:
            self.go(self.step + 1)

    def stop(self) -> None:
        """End the run."""
        self.step, self.call, self.full = -1, None, False
        self._held.clear()
        for reset in self.on_reset:
            reset()
        self.go(-1)

    def follow(self, held: Any) -> None:
        """End the run also where the call of its pipeline ends before the last step, by an error or otherwise.

        `held` is what the call holds now: the denoiser's input, or the latents of the next step. It is freed when the
        call has ended and nothing holds its error any longer.
        """
        if self.call is not None:
            run = self.runs
            self._held.append(weakref.ref(held, lambda _: self.stop_if_abandoned(run)))

    def stop_if_abandoned(self, run: int) -> None:
        """End the run of this number if the call of the pipeline that it belongs to has ended before its last step."""
        if self.step >= 0 and self.runs == run and self.call is not None and not self.call.is_active():
            self.stop()

    def go(self, step: int) -> None:
        """Begin a step; the denoiser was not called in it yet."""
        self.step, self.calls = step, 0
        self._notify(-1 if self.full else step)

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Compute what the plan does not compute, for comparison: all modules run, and no values are stored."""
        self._notify(-1)
        try:
            yield
        finally:
            self._notify(-1 if self.full else self.step)

    def _notify(self, step: int) -> None:
        for on_step in self.on_step:
            on_step(step)
