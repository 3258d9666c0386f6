"""The contract of a denoiser by observation: what was seen in one call of a pipeline, and what of it was proved."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch.utils._pytree import tree_leaves

from search.observe.proofs import Proof, prove
from search.observe.run import DenoiserCall, ObservedDenoiser, ObservedRun, observe_run
from search.observe.stacks import Found, find_stacks
from search.observe.trace import trace_call
from search.schedule.apply.calls import arguments_by_name, parameter_names
from search.schedule.errors import ScheduleError
from search.schedule.model.contracts import Contract

TEXT = ("encoder_hidden_states", "prompt_embeds", "context", "txt")  # what denoisers call the states of a prompt


@dataclass(frozen=True, eq=False)
class ObservedContract:
    """The contract of one denoiser of a pipeline, with what was seen and tried.

    Attributes:
        denoiser: Its name in the pipeline, its module, and how often it was called at each step.
        contract: What can be planned; it holds on this denoiser.
        found: The stacks as they were seen.
        refused: By list of modules, why it is not a stack.
        proofs: Everything that was tried.
    """

    denoiser: ObservedDenoiser
    contract: Contract
    found: tuple[Found, ...]
    refused: Mapping[str, str]
    proofs: tuple[Proof, ...]


@dataclass(frozen=True, eq=False)
class Observation:
    """One call of a pipeline, and the contract of each of its denoisers."""

    run: ObservedRun
    contracts: tuple[ObservedContract, ...]


def observe(pipe: Any, call: Mapping[str, Any]) -> Observation:
    """Watch one call of a pipeline, find the contract of each of its denoisers, and prove it.

    Args:
        pipe: A pipeline of diffusers, or any callable object with a scheduler and a denoiser.
        call: Keyword arguments of the call; two steps are enough.

    Raises:
        ScheduleError: The call fails, or there is nothing in it that a schedule could plan.
    """
    run = observe_run(pipe, call)
    return Observation(run, tuple(contract_of(seen, run) for seen in run.denoisers))


def short_call(pipe: Any, call: Mapping[str, Any]) -> dict[str, Any]:
    """A call with two steps that ends at the latents, unless the call says otherwise or the pipeline has no such."""
    parameters = inspect.signature(pipe.__call__).parameters
    short = {"num_inference_steps": 2, "output_type": "latent"}
    return {name: value for name, value in short.items() if name in parameters} | dict(call)


def contract_of(seen: ObservedDenoiser, run: ObservedRun) -> ObservedContract:
    """The proved contract of one observed denoiser."""
    calls = _calls_to_prove(seen)
    first = calls[0][0]
    trace = trace_call(seen.module, first.args, first.kwargs)
    found, refused = find_stacks(seen.module, trace)
    if not found:
        listed = "; ".join(f"{name}: {why}" for name, why in refused.items()) or "it has no lists of blocks"
        raise ScheduleError(
            f"{type(seen.module).__name__} has no blocks that could be planned ({listed}); write a contract yourself, "
            "as Contract.from_dict reads it"
        )
    given = arguments_by_name(seen.module, first.args, first.kwargs)
    contract = Contract(
        stacks=tuple(each.stack for each in found),
        conditional=max(range(2), key=lambda half: run.guidance[half]) if run.halves and run.guidance else None,
        text=next((name for name in TEXT if given.get(name) is not None), None),
        sample=parameter_names(type(seen.module))[0],
        copies=trace.written or bool(trace.skips),  # a skip is read again after the next block
    )
    Contract.from_dict(contract.to_dict())  # the checks of a written one
    proved, proofs = prove(seen.module, contract, calls)
    return ObservedContract(seen, proved, tuple(found), refused, tuple(proofs))


def _calls_to_prove(seen: ObservedDenoiser) -> list[list[DenoiserCall]]:
    """The calls at two steps; the first step's twice where a second one is unlike it, or where there is none."""
    steps = sorted({call.step for call in seen.recorded})
    by_step = [[call for call in seen.recorded if call.step == step] for step in steps]
    if len(by_step) < 2 or _shapes(by_step[0]) != _shapes(by_step[1]):
        return [by_step[0], [replace(call, step=steps[0] + 1) for call in by_step[0]]]
    return by_step[:2]


def _shapes(calls: list[DenoiserCall]) -> list[Any]:
    return [getattr(leaf, "shape", None) for call in calls for leaf in tree_leaves((call.args, dict(call.kwargs)))]
