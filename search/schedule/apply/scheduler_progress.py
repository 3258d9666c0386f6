"""What the steps of a run change in a scheduler: taken between two steps, and given to another run."""

from collections.abc import Mapping
from typing import Any


def scheduler_attributes(scheduler: Any) -> dict[str, Any]:
    """The attributes that a run may change; lists and dicts are copied, as steps write into them."""
    grid = ("num_inference_steps", "timesteps")
    attributes = {k: v for k, v in vars(scheduler).items() if not callable(v) and k not in grid}
    return {k: _copied(v) for k, v in attributes.items()}


def solver_progress(scheduler: Any, fresh: Mapping[str, Any]) -> dict[str, Any]:
    """What a run has changed since its attributes were `fresh`: the memory of the solver, without the grid."""
    return {k: v for k, v in scheduler_attributes(scheduler).items() if k not in fresh or not _same(v, fresh[k])}


def resume_scheduler(scheduler: Any, fresh: Mapping[str, Any], changed: Mapping[str, Any]) -> None:
    """Bring a scheduler whose attributes were `fresh` to where another one has got to."""
    for name in scheduler_attributes(scheduler).keys() - fresh.keys():
        delattr(scheduler, name)
    for name, value in {**fresh, **changed}.items():
        setattr(scheduler, name, _copied(value))


def _copied(value: Any) -> Any:
    return value.copy() if type(value) in (list, dict) else value


def _same(a: Any, b: Any) -> bool:
    if type(a) is list and type(b) is list:
        return len(a) == len(b) and all(map(_same, a, b))
    return a is b or (isinstance(a, bool | int | float | str) and type(a) is type(b) and a == b)
