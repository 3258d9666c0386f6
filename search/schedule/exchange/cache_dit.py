"""Step masks: cache-dit's SCM, in its configuration or plain, where 1 computes a step and 0 reuses."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from search.schedule.errors import ScheduleError
from search.schedule.exchange import masks
from search.schedule.exchange.check import action_of, count_of, list_of, object_of, steps_of
from search.schedule.exchange.loss import first_lines, gate_words, plain, plan_words, refuse_losses, unsupported_parts
from search.schedule.exchange.masks import Parts
from search.schedule.model.nodes import ROOT, Tree
from search.schedule.parts.gates import ASK
from search.schedule.plan.block_groups import block_selector
from search.schedule.plan.gates import Gate
from search.schedule.plan.tokens import OFF, format_actions
from search.schedule.reading import MAX_BYTES
from search.schedule.schedule import Schedule

MASKS = ("steps_computation_mask", "scm_mask", "compute_bins")  # an object with one of these keys has a step mask
FIRST, LAST = 8, 0  # cache-dit's defaults: how many first and last blocks always compute
ALWAYS = 1.0  # from this threshold on cache-dit always reuses
FORECASTS = ("enable_taylorseer", "enable_dmd", "enable_foca")
REASON = "cache-dit masks whole steps of one run of blocks behind the first, and adds their residual"
BARE = "a mask has whole steps, nothing else"


@dataclass(frozen=True)
class Mask:
    """1 computes, 0 reuses [T]; the `first` and `last` blocks always compute."""

    bits: list[int]
    first: int
    last: int


def from_scm(data: Any, tree: Tree) -> Parts:
    """cache-dit's step mask: `[1, 1, 0]`, "1,1,0", or an object with one (`steps_computation_mask`) or with
    `compute_bins` and `cache_bins`, how many steps are computed and reused alternately. 1 computes.

    A bare mask reuses the whole denoiser's output. A configuration (`cache_config`, or an object with the numbers of
    blocks that always compute) is read as cache-dit does: the first `Fn_compute_blocks` (8) and the last
    `Bn_compute_blocks` (0) compute at all steps, and the residual of the blocks between them is reused.
    """
    wrapped = isinstance(data, Mapping) and "cache_config" in data
    config = data["cache_config"] if wrapped else data if isinstance(data, Mapping) else {MASKS[0]: data}
    config = object_of(config, "cache_config")
    if (policy := config.get("steps_computation_policy", "static")) != "static":
        raise ScheduleError(
            f"steps_computation_policy is {policy!r:.40}: what is reused is then decided in the run; "
            "set it to 'static' to reuse at every step of the mask"
        )
    if forecast := next((name for name in FORECASTS if config.get(name)), None):
        raise ScheduleError(f"{forecast} is set: cache-dit's own forecast, which no schedule holds; leave it out")
    mask = _bins(config) if "compute_bins" in config else _mask(next((config[k] for k in MASKS if k in config), None))
    actions = [action_of(bit, f"mask[{t}]") for t, bit in enumerate(mask)]
    if not wrapped and not {"Fn_compute_blocks", "Bn_compute_blocks"} & set(config):
        return masks.parts({ROOT: actions}, tree, "1")
    first = count_of(config.get("Fn_compute_blocks", FIRST), "Fn_compute_blocks")
    last = count_of(config.get("Bn_compute_blocks", LAST), "Bn_compute_blocks")
    if not first:
        raise ScheduleError("Fn_compute_blocks is 0; cache-dit computes the first block always: write 1 or more")
    order = _chain(tree)
    inner = order[first : len(order) - last]
    if not inner:
        raise ScheduleError(
            f"Fn_compute_blocks {first} and Bn_compute_blocks {last} leave no block of {tree.model_class} to reuse; "
            f"it has {', '.join(f'{size} {stack}' for stack, size in tree.stacks.items())}"
        )
    masks.check_first({block_selector(inner, tree): actions}, "1")
    if "R" not in actions:
        return {"steps": len(actions)}
    gate = {"group": block_selector(inner, tree), "actions": format_actions(actions), "value": "residual"}
    return {"steps": len(actions), "gates": [gate]}


def to_cache_dit(schedule: Schedule, lossy: bool = False) -> str:
    """YAML that cache-dit's `load_configs` reads; ScheduleError names what it would lose.

    A gate whose signal is the change of the first block's residual stays a gate (policy dynamic).
    """
    masks.need_steps(schedule, "cache-dit")
    refuse_losses("cache-dit", losses(schedule), lossy)
    gate = _asked(schedule)
    mask = _nearest(schedule) if gate is None else _of_gate(gate, schedule.tree)
    config: dict[str, Any] = {"Fn_compute_blocks": mask.first, "Bn_compute_blocks": mask.last}
    config |= {"max_warmup_steps": leading(mask.bits), "num_inference_steps": len(mask.bits)}
    config |= {"steps_computation_mask": mask.bits, "steps_computation_policy": "static" if gate is None else "dynamic"}
    if gate:
        config["residual_diff_threshold"] = plain(max(gate.threshold))
        config["max_continuous_cached_steps"] = gate.max_run or -1
    return "\n".join(["cache_config:", *(f"  {key}: {value}" for key, value in config.items()), ""])


def to_scm(schedule: Schedule, lossy: bool = False) -> str:
    """A plain mask, `1,1,0`; ScheduleError names what it would lose."""
    masks.need_steps(schedule, "mask")
    refuse_losses("scm", losses_of_mask(schedule), lossy)
    return ",".join(map(str, step_bits(schedule)))


def losses(schedule: Schedule) -> list[str]:
    """What a configuration of cache-dit would lose of this schedule, in words."""
    _chain(schedule.tree)
    if gate := _asked(schedule):
        lines = [f"gates: {gate.name} asks the largest change in the batch (cache-dit asks the mean of the batch)"]
    else:
        lines = [] if _exact(schedule) else _unlike(schedule, REASON)
    return lines + unsupported_parts(schedule, ("plan", "gates"), REASON)


def losses_of_mask(schedule: Schedule) -> list[str]:
    """What a plain mask would lose of this schedule, in words."""
    rules = schedule.plan.rules()
    of_steps = [rule for rule in rules if rule[0] == ROOT and not set(rule[1]) & set("FS")]
    lines = [] if of_steps == rules and not schedule.gates else _unlike(schedule, BARE)
    return lines + unsupported_parts(schedule, ("plan", "gates"), BARE)


def step_bits(schedule: Schedule) -> list[int]:
    """1 where at least half of all components compute, else 0 [T]; the first step computes."""
    lists = list(masks.component_bits(schedule).values())
    return [int(t == 0 or 2 * sum(column) >= len(lists)) for t, column in enumerate(zip(*lists, strict=True))]


def leading(mask: Sequence[int]) -> int:
    """How many steps compute before the first that reuses."""
    return [*mask, 0].index(0)


def _exact(schedule: Schedule) -> Mask | None:
    """The mask that means the same: one run of blocks whose residual is reused."""
    order, rules, gates = _chain(schedule.tree), schedule.plan.rules(), schedule.gates
    if not rules and not gates:
        return Mask([1] * schedule.plan.steps, 1, 0)
    if rules or len(gates) > 1 or not gates[0].residual or not set(gates[0].tokens) <= {OFF, "R"}:
        return None
    return _of_gate(gates[0], schedule.tree) if order.index(gates[0].blocks[0]) else None


def _asked(schedule: Schedule) -> Gate | None:
    """The gate that cache-dit has as well: its signal is the first block's residual, and a residual is reused."""
    if schedule.plan.rules() or len(schedule.gates) != 1:
        return None
    (gate,) = schedule.gates
    order = _chain(schedule.tree)
    same = gate.signal == "first_block_residual" and gate.residual and gate.then == "R" and gate.before == order[0]
    plainly = not gate.accumulate and not gate.poly and gate.most is None and set(gate.tokens) == {OFF, ASK}
    thresholds = {v for v, token in zip(gate.threshold, gate.tokens, strict=False) if token == ASK}
    return gate if same and plainly and len(thresholds) == 1 and max(thresholds) < ALWAYS else None


def _of_gate(gate: Gate, tree: Tree) -> Mask:
    """The mask of a gate's blocks; a step at which the gate decides counts as reused."""
    order = _chain(tree)
    first = order.index(gate.blocks[0])
    return Mask(masks.bits_of(gate.tokens), first, len(order) - first - len(gate.blocks))


def _nearest(schedule: Schedule) -> Mask:
    """The mask that means the same, or else one that reuses the steps at which most components are reused."""
    if exact := _exact(schedule):
        return exact
    always = [True] * len(order := _chain(schedule.tree))
    for name, bits in masks.component_bits(schedule).items():
        node = schedule.tree.nodes[name]
        always[order.index(f"{node.stack}.{node.block}")] &= all(bits)
    first, last = max(leading(always), 1), leading(always[::-1])
    return Mask(step_bits(schedule), *((first, last) if first + last < len(order) else (1, 0)))


def _unlike(schedule: Schedule, reason: str) -> list[str]:
    rules = plan_words(schedule, lambda node, actions: not node.component)
    if schedule.to_dict().get("plan", {}).get("value") == "out":
        rules = [line.replace("plan: ", "plan: the output of ", 1) for line in rules]
    rules += plan_words(schedule, lambda node, actions: bool(node.component))
    gates = [gate_words(gate, schedule) for gate in schedule.gates]
    return first_lines([f"{line} ({reason})" for line in rules]) + [f"{line} ({reason})" for line in gates]


def _chain(tree: Tree) -> list[str]:
    """The blocks in the order of execution; ScheduleError where they are not a chain."""
    for stack in tree.stacks:
        if not tree.stack(stack).outputs:
            raise ScheduleError(
                f"Fn_compute_blocks and Bn_compute_blocks are for blocks that run one after another, which {stack} of "
                f"{tree.model_class} does not; leave them out, or use a plain mask (dialect=scm), to reuse whole steps"
            )
    return [node.name for node in tree if node.kind == "block"]


def _mask(value: Any) -> Sequence[Any]:
    if isinstance(value, str):
        value = [int(bit) if bit in ("0", "1") else bit for bit in re.split(r"[\s,]+", value[:MAX_BYTES].strip(" \n,"))]
    return list_of(value, "mask")


def _bins(config: Mapping[str, Any]) -> list[int]:
    compute, cache = ([count_of(n, k) for n in list_of(config.get(k), k)] for k in ("compute_bins", "cache_bins"))
    steps_of(sum(compute) + sum(cache), "compute_bins and cache_bins together")
    mask: list[int] = []
    for i in range(max(len(compute), len(cache))):
        mask += [1] * sum(compute[i : i + 1]) + [0] * sum(cache[i : i + 1])
    total = steps_of(config.get("total_steps", len(mask)), "total_steps")
    if total > len(mask):
        raise ScheduleError(f"total_steps is {total}, but compute_bins and cache_bins have {len(mask)} steps together")
    return mask[:total]
