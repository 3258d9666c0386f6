"""Steps whose denoiser calls run in one batch."""

from collections.abc import Sequence

from search.schedule.model.nodes import ROOT
from search.schedule.plan.guidance import FULL
from search.schedule.plan.plan import Plan
from search.schedule.plan.tokens import ABSENT, OFF, OWN

# By class: the stacks that depend on the denoiser's input.
ENCODERS = {"UNet2DConditionModel": ("conv_in", "down_blocks")}


def batched_steps(plan: Plan, most: int, branch: str | None) -> list[range]:
    """Runs of 2 to `most` steps that one call can take: the encoder reused, the same actions at each of them.

    At the steps of a run no node but the denoiser stores a value that is read later. `branch` is that of guidance; its
    narrow steps are not batched.
    """
    encoder = ENCODERS.get(plan.tree.model_class, ())
    input_blocks = [n.name for n in plan.tree if n.kind == "block" and n.stack in encoder]
    read = {step for name in plan.tokens if name != ROOT for step in plan.last_use(name)}
    columns = list(zip(*plan.tokens.values(), strict=True))
    runs: list[range] = []
    for step in range(plan.steps if input_blocks else 0):
        not_batched = (
            any(plan.tokens[name][step] != "R" for name in input_blocks)
            or set(columns[step]) - {OFF, "R", "S", ABSENT}
            or step in read
            or (branch or FULL * plan.steps)[step] != FULL
            or (plan.at or OWN * plan.steps)[step] != OWN
        )
        last = runs[-1] if runs else range(0)
        if not not_batched and last.stop == step and len(last) < most and last and columns[step - 1] == columns[step]:
            runs[-1] = range(last.start, step + 1)
        elif not not_batched:
            runs.append(range(step, step + 1))
    return [run for run in runs if len(run) > 1]


def plan_with_batches(plan: Plan, runs: Sequence[range]) -> Plan:
    """The plan for stored values: a batch of steps reads them at its first step, and not at the others."""
    later = {step for run in runs for step in run[1:]}
    tokens = {
        name: tuple(ABSENT if step in later and name != ROOT else t for step, t in enumerate(actions))
        for name, actions in plan.tokens.items()
    }
    return Plan(plan.tree, plan.steps, tokens, plan.at) if later else plan


def values_waiting(runs: Sequence[range], steps: int) -> list[int]:
    """How many outputs of batches wait for their step, after each step [steps]."""
    return [sum(run.stop - 1 - step for run in runs if step in run) for step in range(steps)]
