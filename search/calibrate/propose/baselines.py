"""The baseline without a schedule: the same sampler with fewer steps."""

from collections.abc import Callable, Mapping, Sequence

from search.profile.target import Target
from search.schedule import Schedule


def shorter_runs(
    target: Target, shorter: Callable[[int], Mapping[str, object]], counts: Sequence[int]
) -> dict[str, Schedule]:
    """Schedules of the same sampler with fewer steps, by name.

    Counts that are not below the teacher's are left out; where none is below it, there is one for every count that is.
    There are none where the scheduler runs no timesteps but its own, or the call begins from a picture.
    """
    if not target.sampler or target.left_out:
        return {}
    below = [n for n in counts if n < target.steps] or range(target.steps - 1, 0, -1)
    return {
        f"{n} steps" if n > 1 else "1 step": Schedule.from_dict(
            target.schedule({}) | {"steps": n, "sampler": dict(shorter(n))}
        )
        for n in below
    }
