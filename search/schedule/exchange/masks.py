"""Masks of ones (compute) and zeros (reuse), which most tools use: to the actions of a plan, and back."""

from collections.abc import Mapping, Sequence
from typing import Any

from search.schedule.errors import ScheduleError
from search.schedule.exchange.check import steps_of
from search.schedule.exchange.loss import plan_words
from search.schedule.model.nodes import Tree
from search.schedule.plan.plan import Plan
from search.schedule.plan.tokens import OFF
from search.schedule.schedule import Schedule

Parts = dict[str, Any]  # of a schedule file: `steps`, and other fields


def parts(tokens: Mapping[str, Sequence[str]], tree: Tree, computes: str) -> Parts:
    """`steps`, and `plan` where anything is reused, from one action per step of some nodes.

    `computes` is how the file writes "compute", for errors.
    """
    steps = steps_of(len(next(iter(tokens.values()), ())), "the file's number of steps")
    check_first(tokens, computes)
    rules = [(name, "".join(actions)) for name, actions in tokens.items()]
    plan = Plan.resolve(rules, tree, steps)
    return {"steps": steps} | ({"plan": {"rules": [list(rule) for rule in plan.rules()]}} if not plan.is_off else {})


def check_first(tokens: Mapping[str, Sequence[str]], computes: str) -> None:
    """Raise ScheduleError where a node is reused before it was computed."""
    for name, actions in tokens.items():
        if actions[0] != OFF:
            raise ScheduleError(
                f"{name} is not computed at step 0, where there is nothing to reuse yet; its entry has to be {computes}"
            )


def bits_of(tokens: Sequence[str]) -> list[int]:
    """1 where a node is computed or has nothing to reuse yet, else 0 [T]."""
    bits: list[int] = []
    for token in tokens:
        bits.append(int(token == OFF or not any(bits)))
    return bits


def component_bits(schedule: Schedule) -> dict[str, list[int]]:
    """Of every component by its name, 1 where it is computed [T]; components in a group that is not computed have 0."""
    tree = schedule.tree
    names, table = schedule.table()
    return {n: bits_of(t) for n, t in zip(names, table, strict=True) if tree.nodes[n].kind == "component"}


def component_losses(schedule: Schedule, reason: str) -> list[str]:
    """What a plan loses in a mask of components, in words."""
    lost = plan_words(schedule, lambda node, actions: not node.component or any(a[0] in "FS" for a in actions))
    return [f"{line} ({reason})" for line in lost]


def need_steps(schedule: Schedule, dialect: str) -> int:
    """T; ScheduleError where the schedule is for any number of steps."""
    if schedule.steps is None:
        raise ScheduleError(
            f"the schedule is for any number of steps, and {dialect} files have an entry for each; there is no plan in "
            "it to write"
        )
    return schedule.steps
