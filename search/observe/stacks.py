"""Find the stacks of a denoiser in a trace: lists of blocks that ran in turn, and what passes between them."""

import ast
import inspect
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from search.observe.components import find_components
from search.observe.trace import SEEN, Link, ModuleCall, Trace
from search.schedule.model.contracts import Stack

LEAST_SHARE = 0.02  # of the parameters of the largest list of blocks, below which one is not worth planning
NOT_PLANNED = "computed at every step"


@dataclass(frozen=True, eq=False)
class Found:
    """A stack that was found: its contract, and what the table says of it."""

    stack: Stack
    blocks: int
    block_class: str
    share: float  # of the denoiser's parameters
    chain: str  # how the arguments that outputs replace were seen: identity, value, shape; else why there are none


def find_stacks(denoiser: nn.Module, trace: Trace) -> tuple[list[Found], dict[str, str]]:
    """Stacks in the order of execution, and by name why other lists of modules are not among them."""
    counts = Counter(call.name for call in trace.calls)
    calls = {call.name: call for call in trace.calls}
    total = max(parameters(denoiser), 1)
    lists = [parameters(m) for m in denoiser.modules() if isinstance(m, nn.ModuleList)]
    least = LEAST_SHARE * max(lists, default=0)
    taken: dict[str, list[ModuleCall]] = {}
    refused: dict[str, str] = {}
    singles = {name for name, module in denoiser.named_children() if _is_single(name, module, counts, calls)}
    for name, module in denoiser.named_modules():
        if not name or any(name.startswith(f"{outer}.") for outer in taken):
            continue
        if name in singles or name in trace.skips:
            taken[name] = [calls[name]]
        elif isinstance(module, nn.ModuleList) and len(module):
            names = [f"{name}.{i}" for i in range(len(module))]
            runs = [counts[each] for each in names]
            if all(not list(block.children()) for block in module):
                continue  # a list of plain layers
            if any(count != 1 for count in runs):
                if any(runs):
                    refused[name] = f"its blocks ran {sorted(set(runs))} times in one call; {NOT_PLANNED}"
                continue
            if parameters(module) < least:
                if not any(name.startswith(f"{outer}.") for outer in refused):
                    refused[name] = f"{parameters(module) / total:.1%} of the parameters; {NOT_PLANNED}"
                continue
            taken[name] = [calls[each] for each in names]
    found = [
        _describe(name, denoiser.get_submodule(name), runs, trace, total)
        for name, runs in sorted(taken.items(), key=lambda item: item[1][0].order)
    ]
    return found, refused


def parameters(module: nn.Module) -> int:
    """How many parameters a module has, without embeddings."""
    own = (p for m in module.modules() if not isinstance(m, nn.Embedding) for p in m.parameters(recurse=False))
    return sum(p.numel() for p in own)


def _is_single(name: str, module: nn.Module, counts: Counter[str], calls: Mapping[str, ModuleCall]) -> bool:
    """Whether a child of the denoiser is one block by itself: the modules of two lists in it take turns.

    Such are the middle blocks of UNets: resnets.0, attentions.0, resnets.1.
    """
    if isinstance(module, nn.ModuleList) or counts[name] != 1:
        return False
    lists = [f"{name}.{key}" for key, child in module.named_children() if isinstance(child, nn.ModuleList)]
    orders = sorted((calls[each].order, which) for which in lists for each in calls if each.rpartition(".")[0] == which)
    turns = [which for (_, which), (_, before) in zip(orders[1:], orders, strict=False) if which != before]
    return len(turns) > 1


def _describe(name: str, module: nn.Module, runs: Sequence[ModuleCall], trace: Trace, total: int) -> Found:
    single = not isinstance(module, nn.ModuleList)
    outputs, chain = _chain(runs, [] if single else trace.links.get(name, []))
    components = find_components(runs, trace)
    stack = Stack(
        name,
        components.paths,
        outputs,
        single,
        components.uniform and not (single and not components.paths),
        components.zeros,
        components.passes,
    )
    return Found(stack, len(runs), type(runs[0].module).__name__, parameters(module) / total, chain)


def _chain(runs: Sequence[ModuleCall], links: Sequence[object]) -> tuple[tuple[str, ...], str]:
    """The arguments that a block's outputs replace in the next block, and how that was seen, or why there are none."""
    for run in runs:
        if run.outputs is None:
            return (), "a block returns something else than tensors"
        if not run.single and len(run.outputs) == 1:
            return (), "a block returns a tuple of one"
    if len(runs) == 1:
        lone = _names_of_lone_block(runs[0])
        return (lone, "shape") if lone else ((), "its output has the shape of no argument")
    if len(links) != len(runs) - 1 or not all(isinstance(link, Link) for link in links):
        return (), "an output of a block is not an argument of the next"
    names: tuple[str, ...] | None = None
    worst = 0
    for run, link in zip(runs, links, strict=False):
        assert isinstance(link, Link)
        chosen = _choose(link.arguments, type(run.module))
        worst = max(worst, SEEN.index(link.seen))
        if names is not None and chosen != names:
            return (), f"outputs become {', '.join(names)} in one block and {', '.join(chosen)} in another"
        names = chosen
    assert names is not None
    for run in runs:
        for argument, output in zip(names, run.outputs or (), strict=False):
            if output is not None and run.given.get(argument) != output:
                return (), f"{run.name} returns another shape than its {argument}"
    return names, SEEN[worst]


def _choose(arguments: Sequence[Sequence[str]], block: type) -> tuple[str, ...]:
    """One argument for each output; where several are equal, the one that the block's return statement names."""
    returned, chosen = returned_names(block), []
    for i, names in enumerate(arguments):
        free = [name for name in names if name not in chosen] or list(names)
        if len(free) > 1 and len(returned) == len(arguments) and returned[i] in free:
            chosen.append(returned[i])
        else:
            chosen.append("hidden_states" if "hidden_states" in free and len(free) > 1 else free[0])
    return tuple(chosen)


def _names_of_lone_block(run: ModuleCall) -> tuple[str, ...]:
    """The argument that each output is like, one each; () where one is like none."""
    chosen: list[str] = []
    returned, outputs = returned_names(type(run.module)), run.outputs or ()
    for i, output in enumerate(outputs):
        free = run.arguments_like(output, chosen)
        if not free:
            return ()
        chosen.append(returned[i] if len(returned) == len(outputs) and returned[i] in free else free[0])
    return tuple(chosen)


def returned_names(block: type) -> list[str]:
    """The names in the last return statement of a module class's forward; [] where they are not plain names."""
    try:
        source = textwrap.dedent(inspect.getsource(block.forward))  # type: ignore[attr-defined]
        statements = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Return) and n.value is not None]
    except (OSError, TypeError, SyntaxError):
        return []
    if not statements:
        return []
    value = statements[-1].value
    items = value.elts if isinstance(value, ast.Tuple) else [value]
    names = [item.id for item in items if isinstance(item, ast.Name)]
    return names if len(names) == len(items) else []
