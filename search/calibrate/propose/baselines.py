"""The baseline without a schedule: the same sampler with fewer steps."""

from collections.abc import Callable, Mapping, Sequence

from search.profile.target import Target
from search.schedule import Schedule


def shorter_runs(
    target: Target, shorter: Callable[[int], Mapping[str, object]], counts: Sequence[int]
) -> dict[str, Schedule]:
    """Schedules of the same sampler with fewer steps, by name; counts that are not below the teacher's are left out."""
    return {
        f"{n} steps": Schedule.from_dict(target.schedule({}) | {"steps": n, "sampler": dict(shorter(n))})
        for n in counts
        if n < target.steps
    }
