"""A schedule on another grid: every step takes the actions of the old step nearest in log-SNR.

What a denoiser does at a step depends on how much noise is left, not on the step's number. So of a grid with any
other number of steps, shift or solver class

- step j takes the column of the old step i that is nearest in log-SNR, log(alpha / sigma), for flow matching
  log((1 - sigma) / sigma); of two as near the earlier one. A column is what every node and gate does there, the
  guidance's branch, scale and weights, the denoiser that runs, and the solver's order,
- what then reads more values than were computed before it is lowered, F2 to F1 to R to C, as far as needed: so the
  first step computes. A guidance branch R or A before both halves have run becomes C,
- `max_run` and `most` of a gate grow with the number of steps, rounded up; its thresholds are about changes since
  the group was last computed and stay, and so do poly, axis, `ahead`, the start part and bits. Ranges of static bits
  are over a whole run, or at timesteps that the new grid must not leave: between them they are interpolated,
- guidance scales keep their place between 1, no guidance, and the call's scale. Without guidance the part is dropped,
- a fitted solver's table and corrections belong to the old grid and are dropped: `search.transfer` fits both anew.

On its own grid, and for its own model and guidance, a schedule stays what it is, table and corrections included.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from search.schedule import Schedule
from search.schedule.apply.step_ranges import check_covered
from search.schedule.errors import ScheduleError
from search.schedule.noise import Noise
from search.validate.step_columns import StepColumns

Sampler = Mapping[str, Any]  # a schedule's sampler part, with its timesteps


@dataclass(frozen=True)
class Reindexed:
    """A schedule on its new grid.

    Attributes:
        schedule: The new schedule, without scores where anything changed.
        at: The old step of each new one, [T'].
        lost: In words what could not be carried over.
    """

    schedule: Schedule
    at: tuple[int, ...]
    lost: tuple[str, ...] = ()


def nearest_steps(old: Sequence[float] | np.ndarray, new: Sequence[float] | np.ndarray) -> tuple[int, ...]:
    """For every value of `new` [T'] the index of the nearest value in `old` [T], the first of several as near.

    Example:
        >>> from search.validate.reindex import nearest_steps
        >>> nearest_steps([-2.0, 0.0, 2.0], [-3.0, -0.5, 1.0])
        (0, 1, 1)
    """
    values = np.asarray(old, dtype=float)
    return tuple(int(np.abs(values - value).argmin()) for value in new)


def reindex(
    schedule: Schedule,
    old: Sampler,
    new: Sampler,
    guidance: float | None = None,
    model: Mapping[str, Any] | None = None,
) -> Reindexed:
    """The schedule on another grid.

    Args:
        schedule: The schedule to carry over.
        old: The grid that it runs on now, its own or the pipeline's: a sampler part with `timesteps`.
        new: The grid that it will run on.
        guidance: The scale that the pipeline will be called with; None keeps the old one.
        model: The schedule's part `model` for the new denoiser, of the same class and stacks; None keeps the old one.

    Returns:
        The new schedule, and in words what could not be carried over.

    Raises:
        ScheduleError: The schedule cannot run on the new grid or model.
    """
    parts, columns = schedule.to_dict(), StepColumns.of(schedule)
    lost: list[str] = []
    new_model = _checked_model(parts["model"], model)
    called = columns.guidance.get("call") if columns.guidance and guidance is not None else guidance
    same = schedule.steps is None or _same_grid(old, new)
    at = tuple(range(columns.steps))
    if same and called == guidance and new_model == parts["model"]:
        return Reindexed(schedule, at)
    parts["model"] = new_model
    if called != guidance and guidance is not None:
        lost += ["the guidance part: the pipeline runs without guidance"] if guidance <= 1 else []
        columns = columns.guided(guidance)
    if not same:
        at = nearest_steps(Noise.of(old).grid_logsnr(old), Noise.of(new).grid_logsnr(new))
        columns, parts["steps"] = columns.taken(at), len(at)
        if parts.get("bits", {}).get("at"):
            check_covered(parts["bits"]["at"], new["timesteps"])
        parts["sampler"], dropped = _reindexed_sampler(schedule, new, at)
        lost += dropped
        if "corrections" in parts:
            lost.append("corrections of reused values: they belong to the steps of the old grid")
    try:
        return Reindexed(_built(schedule, parts | columns.parts(), keep=same), at, tuple(lost))
    except ScheduleError as error:
        raise ScheduleError(
            f"this schedule does not carry over to {len(at)} steps: {error}; search there: "
            f"python -m search +space=cache model=<name> model.steps={len(at)}"
        ) from None


def with_steps_computed(schedule: Schedule, steps: Iterable[int]) -> Schedule:
    """The same schedule with everything computed at these steps: all nodes, groups and both halves of guidance."""
    return _built(schedule, schedule.to_dict() | StepColumns.of(schedule).computing(set(steps)).parts())


def saving_steps(schedule: Schedule) -> list[int]:
    """The steps at which a schedule leaves anything out, or has a gate that may decide to."""
    columns = StepColumns.of(schedule)
    return [step for step in range(columns.steps) if not columns.full(step)]


def _checked_model(old: Mapping[str, Any], new: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The part `model` for the new denoiser; ScheduleError if its architecture is another one."""
    if new is None:
        return old
    for name in ("class", "stacks"):
        if old[name] != new[name]:
            raise ScheduleError(
                f"model.{name} is {str(old[name])[:120]}, but the pipeline's is {str(new[name])[:120]}: a schedule "
                "can be carried over between checkpoints of one architecture only; search on this one"
            )
    return {**old, **new}


def _reindexed_sampler(schedule: Schedule, new: Sampler, at: Sequence[int]) -> tuple[dict[str, Any] | None, list[str]]:
    """The sampler part on the new grid, and in words what of the old one is lost."""
    old = schedule.sampler
    if old is None:
        return None, []
    lost = ["the fitted solver: its table belongs to the old grid"] if "coefficients" in old else []
    part = {k: new[k] for k in ("class", "config", "timesteps", "sigmas") if k in new and (k in old or k != "sigmas")}
    if not old.get("timesteps"):
        part = {k: part[k] for k in ("class", "config")}
    if order := old.get("order"):
        if old["class"] == new["class"]:
            taken = [str(min(int(order[i]), j + 1)) for j, i in enumerate(at)]
            part["order"] = "".join([*taken[:-1], order[-1]])
        else:
            lost.append(f"sampler.order: {new['class']} is another solver than {old['class']}")
    return part, lost


def _same_grid(old: Sampler, new: Sampler) -> bool:
    same = all(old.get(name) == new.get(name) for name in ("class", "config"))
    return same and all(_close(old.get(name), new.get(name)) for name in ("timesteps", "sigmas"))


def _close(a: Sequence[float] | None, b: Sequence[float] | None) -> bool:
    """Whether two lists are equal up to the rounding of another device."""
    if not a or not b:
        return not a and not b
    return len(a) == len(b) and bool(np.allclose(a, b, rtol=1e-5, atol=1e-6))


def _built(schedule: Schedule, parts: Mapping[str, Any], keep: bool = False) -> Schedule:
    """The schedule of these parts, without scores; with `keep` it has the old corrections."""
    dropped = ("digest", "scores", "certificate", *(() if keep else ("corrections",)))
    return Schedule.from_dict({k: v for k, v in parts.items() if v is not None and k not in dropped}, schedule.tensors)
