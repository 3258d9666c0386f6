"""Whether a run may begin, go on and end: what else happens to the pipeline meanwhile is refused."""

import threading
from collections.abc import Mapping, Sequence
from typing import Any

from search.schedule.apply.admission import BETWEEN
from search.schedule.apply.clock import Clock
from search.schedule.apply.planned_grid import check_steps
from search.schedule.apply.resolved_run import ResolvedRun
from search.schedule.errors import ScheduleError
from search.schedule.model.identity import experts_of


def check_run(run: ResolvedRun) -> None:
    """As a run begins: raise ScheduleError where the pipeline has another denoiser than the schedule."""
    pipe = run.pipe()
    changed = [now for now, then in zip(experts_of(pipe), run.experts, strict=False) if now is not then] if pipe else []
    if changed:
        raise ScheduleError(
            f"the pipeline's denoiser was replaced by a {type(changed[0]).__name__} after the schedule was applied; "
            "remove the schedule first (to compile, use schedule.apply(pipe, compile=True))"
        )


def check_ended(clock: Clock) -> None:
    """Raise ScheduleError while a call of the pipeline is in the middle of a run."""
    if clock.call is not None and clock.call.is_active():
        raise ScheduleError(
            f"the schedule cannot be removed in the middle of a run, at step {clock.step} of {clock.steps}; let it "
            "end, also by an error, and call remove() then"
        )


def check_call(run: ResolvedRun, arguments: Mapping[str, Any], reused_stacks: Sequence[str]) -> None:
    """As the denoiser is called: raise ScheduleError outside of a run, with another scheduler, or within another run.

    `arguments` are those of the call by name; `reused_stacks` the stacks that are reused as a whole.
    """
    added = next((name for name in BETWEEN if arguments.get(name) is not None), None)
    if added and reused_stacks:
        raise ScheduleError(
            f"this schedule reuses the whole of {reused_stacks[0]}, which would drop {added}, what a "
            "ControlNet adds between its blocks; plan single blocks or components instead"
        )
    pipe, clock = run.pipe(), run.clock
    if pipe is not None and pipe.scheduler is not run.scheduler:
        raise ScheduleError(
            f"the pipeline's scheduler was replaced by {type(pipe.scheduler).__name__} after the schedule "
            "was applied; remove the schedule, set the scheduler, apply again"
        )
    if clock.call is not None and clock.call.thread != threading.get_ident():
        raise ScheduleError(
            "the denoiser was called by another thread, in the middle of a run of the pipeline that a schedule is "
            "applied to; a schedule is for one run at a time: call it when that run has ended"
        )
    if clock.calls == 0:  # once a step: looking at the stack costs some microseconds
        clock.stop_if_abandoned(clock.runs)
    if clock.step < 0:
        raise ScheduleError(
            "the denoiser was called outside of a run; call the pipeline, or scheduler.set_timesteps "
            "before a loop of your own, or remove the schedule"
        )
    if clock.step == 0 and clock.calls == 0 and getattr(run.scheduler, "begin_index", None):
        clock.begin_at(run.scheduler.begin_index)
        if run.plan.steps:
            with clock.ended_by_refusal():
                check_steps(run.plan.steps, clock.steps, clock.begin)
