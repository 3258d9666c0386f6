"""What was observed, as a table for a person and as YAML for a file."""

from collections.abc import Mapping
from typing import Any

import yaml
from rich.console import Group
from rich.table import Table
from rich.text import Text

from search.observe.contract import Observation, ObservedContract
from search.observe.proofs import Proof


def observation_table(observation: Observation) -> Group:
    """Denoisers, their calls and branches, and for each stack and component what can be planned, or why not."""
    run = observation.run
    parts: list[Any] = [Text(f"{type(run.pipe).__name__}: {run.steps} steps of {run.scheduler}")]
    parts += [
        Text(f"also called at the steps, and never planned: {name}, {calls} times")
        for name, calls in run.companions.items()
    ]
    for each in observation.contracts:
        parts += [Text(""), Text(describe_denoiser(each, observation)), _table(each)]
        parts += [Text(line) for line in _reasons(each)]
    return Group(*parts)


def describe_denoiser(each: ObservedContract, observation: Observation) -> str:
    """One line: name, class, steps, calls at a step, guidance."""
    seen, run = each.denoiser, observation.run
    steps = seen.steps
    counts = sorted(set(seen.calls.values()))
    text = f"{seen.name}, a {type(seen.module).__name__}: steps {steps[0]} to {steps[-1]}, "
    text += f"{' or '.join(map(str, counts))} call{'s' if counts != [1] else ''} at each"
    contexts = [call.context for call in seen.recorded if call.step == seen.recorded[0].step and call.context]
    text += f" ({', '.join(contexts)})" if contexts else ""
    if run.guidance and run.denoisers[0] is seen:
        weights = " and ".join(f"{weight:.3g}" for weight in run.guidance)
        what = "halves of the batch" if run.halves else "calls"
        text += f"; guided by {what} with weights {weights}"
    return text


def contracts_yaml(observation: Observation) -> str:
    """The contract as YAML, as `Contract.from_dict` reads it; of several denoisers by their names."""
    contracts = {each.denoiser.name: each.contract.to_dict() for each in observation.contracts}
    data: Mapping[str, Any] = contracts if len(contracts) > 1 else next(iter(contracts.values()))
    return str(yaml.safe_dump(data, sort_keys=False, default_flow_style=None, width=120))


def _table(each: ObservedContract) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in ("node", "blocks", "share", "reuse, forecast", "skip"):
        table.add_column(title, overflow="fold", no_wrap=title == "node")
    proofs = {(proof.node, proof.action): proof for proof in each.proofs}
    for seen in each.found:
        stack = next(stack for stack in each.contract.stacks if stack.name == seen.stack.name)
        blocks = f"{stack.name}.*"
        skip = f"passes on {', '.join(stack.outputs)}" if stack.outputs else "no"
        reuse = "blocks, whole stack" if stack.outputs else _mark(proofs.get((blocks, "reuse")), "blocks")
        table.add_row(Text(stack.name), str(seen.blocks), f"{seen.share:.0%}", reuse, Text(skip))
        for path in seen.stack.components:
            node = f"{blocks}:{path}"
            kind = "passes its input on" if path in stack.passes else "adds nothing"
            reuse, skip = (_mark(proofs.get((node, action)), yes) for action, yes in (("reuse", "yes"), ("skip", kind)))
            table.add_row(Text(f"  {path}"), "", "", reuse, skip)
    return table


def _reasons(each: ObservedContract) -> list[str]:
    """Why something cannot be planned, a line each."""
    lines = [f"{name}: not a stack; {why}" for name, why in each.refused.items()]
    lines += [
        f"{seen.stack.name}: blocks are not skipped nor the stack reused whole; {seen.chain}"
        for seen in each.found
        if not seen.stack.outputs
    ]
    return lines + [f"{proof.node}: {proof.action} left out; {proof.failure}" for proof in each.proofs if proof.failure]


def _mark(proof: Proof | None, yes: str) -> str:
    return "no" if proof is None or proof.failure else yes
