"""What ran since a schedule was applied, as counts."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from search.schedule.apply.monitor import RunGuard
from search.schedule.model.nodes import ROOT
from search.schedule.plan.tokens import ABSENT, OFF, OWN

if TYPE_CHECKING:
    from search.schedule.apply.handle import Handle


def count_runs(handle: "Handle") -> dict[str, Any]:
    """The content of `Handle.stats`."""
    run, full = handle.run, sum(handle.root.full_calls.values())
    nodes = {name: _count_actions(handle, tokens, full) for name, tokens in run.plan.tokens.items()}
    for group in handle.groups:
        computed = {OFF: group.counts.get(OFF, 0) + full}
        within = {*group.gate.blocks}
        nodes |= {node.name: computed for node in run.tree if {node.name, node.parent} & within}
    other_calls = dict(run.stitch.calls) if run.stitch else {}
    own_calls = nodes[ROOT].get(OFF, 0) - sum(other_calls.values())
    touched = {name: nodes[name] for name in (ROOT, *run.plan.planned())}
    touched |= {group.gate.name: dict(group.counts) for group in handle.groups}
    counts = {
        "runs": handle.runs,
        "denoiser_calls": sum(nodes[ROOT].values()),
        "models": {OWN: own_calls} | other_calls,
        "nodes": touched,
        "gates": [group.stats() for group in handle.groups],
        "block_executions": sum(nodes[n.name].get(OFF, 0) for n in run.tree if n.kind == "block"),
        "peak_bytes": handle.memory.peak,
    }
    if isinstance(monitor := handle.clock.monitor, RunGuard):
        counts |= {"unusual_runs": monitor.unusual_runs, "full_calls": full}
    return counts


def _count_actions(handle: "Handle", tokens: Sequence[str], full: int) -> dict[str, int]:
    """How often a node of these actions did each of them: by the denoiser's calls at each step, and `full` beside."""
    times: dict[str, int] = {}
    for step, calls in handle.root.calls.items():
        token = tokens[step] if tokens else OFF  # no plan: everything, at any number of steps
        if token != ABSENT:
            times[token] = times.get(token, 0) + calls
    if full:
        times[OFF] = times.get(OFF, 0) + full
    return times
