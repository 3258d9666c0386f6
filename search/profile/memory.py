"""How many bytes of values a schedule keeps for later steps."""

from collections.abc import Mapping, Sequence

from search.schedule import Schedule
from search.schedule.model.nodes import ROOT, Node, Tree
from search.schedule.plan.batches import plan_with_batches, values_waiting
from search.schedule.plan.gates import Gate
from search.schedule.plan.guidance import STORED, branch_reads, is_narrow, last_use
from search.schedule.plan.tokens import values_read

Held = list[tuple[int, list[int]]]  # of each kind of value: bytes of one, and how many there are after each step


def peak_bytes(schedule: Schedule, value_bytes: Mapping[str, int]) -> int:
    """Peak bytes of kept values for a batch of one picture.

    Args:
        schedule: Of groups whose gates are asked it is a bound: as if they had computed at every step at which that
            is possible, and kept all streams of a signal. A signal of the denoiser's input is taken to be as large
            as its output.
        value_bytes: The size of each node's value.

    Returns:
        The largest sum of bytes that are kept at one time; 0 where nothing is reused.
    """
    held = _held_values(schedule, value_bytes)
    now = peak = 0
    for step in range(schedule.plan.steps):
        for size, counts in held:
            now += (counts[step] - (counts[step - 1] if step else 0)) * size
            peak = max(peak, now)
    return peak


def _held_values(schedule: Schedule, value_bytes: Mapping[str, int]) -> Held:
    """All that is kept, in the order of execution.

    Where some steps compute one half of the batch, the halves and their difference are kept apart.
    """
    plan, branch = schedule.plan, schedule.guidance.branch if schedule.guidance else None
    plan = plan_with_batches(plan, schedule.batched_steps)
    narrow = branch if is_narrow(branch) else None
    names = {*plan.planned(), *([ROOT] if narrow else [])}
    gates = {gate.blocks[-1]: gate for gate in schedule.gates}
    held: Held = []
    for name in _execution(plan.tree):
        size = value_bytes.get(name, 0)
        if name == ROOT and schedule.batched_steps:
            held.append((size, values_waiting(schedule.batched_steps, plan.steps)))
        if name in names and narrow:
            uses = last_use(plan, name, narrow)
            held += [(size // 2, _counts(uses[h], branch_reads(name, plan.tokens[name], narrow, h)[1])) for h in STORED]
        elif name in names:
            held.append((size, _counts(plan.last_use(name), [values_read(t) for t in plan.tokens[name]])))
        if name in gates:
            held += _group_values(gates[name], plan.steps, narrow, value_bytes)
    return held


def _group_values(gate: Gate, steps: int, narrow: str | None, value_bytes: Mapping[str, int]) -> Held:
    """The measured signal and the output of a group with a gate."""
    measured = value_bytes[ROOT if gate.signal == "model_input" else gate.blocks[0]]
    sizes = (measured, value_bytes[gate.blocks[-1]])
    lanes = [[True] * steps] + ([[kind == "C" for kind in narrow]] if narrow else [])
    held = [(size // len(lanes), gate.most_values_held(there)) for there in lanes for size in sizes]
    return [(size, counts[i % 2 == 0]) for i, (size, counts) in enumerate(held)]


def _counts(uses: Mapping[int, int], needs: Sequence[int]) -> list[int]:
    """How many values are kept after each step: `uses` are their last uses, `needs` the values that steps read."""
    values: list[int] = []
    counts = []
    for step, reads in enumerate(needs):
        if reads:
            values = [source for source in values if uses[source] > step]
        values += [step] if step in uses else []
        counts.append(len(values))
    return counts


def _execution(tree: Tree) -> list[str]:
    """Names in the order in which nodes finish: components, their block, the stack, the denoiser."""
    names: list[str] = []
    open_nodes: list[Node] = []
    for node in tree:  # ancestors come before descendants
        while open_nodes and node.parent != open_nodes[-1].name:
            names.append(open_nodes.pop().name)
        open_nodes.append(node)
    return names + [node.name for node in reversed(open_nodes)]
