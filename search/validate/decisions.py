"""The single decisions that a schedule consists of, and the schedule without each and with each alone."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from search.schedule.parts.gaussian import GAUSSIAN

if TYPE_CHECKING:
    from search.evaluate.evaluator import Evaluator
    from search.schedule import Schedule


ACTION_WORDS = {"R": "reuse", "F": "forecast", "S": "skip"}
PART_WORDS = {
    "gates": "gates", "guidance": "guidance", "models": "smaller denoiser", "start": "start of the run", "bits": "bits",
}  # fmt: skip
Parts = dict[str, Any]


@dataclass(frozen=True)
class Decision:
    """A part of a schedule by its name.

    `without` is the schedule with this part undone, `alone` the schedule with this part only. Either is None if there
    is no such schedule, for example because it would need another number of steps.
    """

    group: str
    name: str
    without: "Schedule | None"
    alone: "Schedule | None"


def list_decisions(schedule: "Schedule", evaluator: "Evaluator") -> Iterator[Decision]:
    """The parts of a schedule; then the mechanisms in them, the kinds of nodes that it plans, and its steps."""
    from search.schedule import Schedule

    parts = {k: v for k, v in schedule.to_dict().items() if k not in ("digest", "scores", "certificate", "made")}
    plain = {k: v for k, v in parts.items() if k != "corrections"}
    if "corrections" in parts:
        yield Decision("part", "corrections", Schedule.from_dict(plain, schedule.tensors), None)
    if schedule.corrected_layers:
        yield Decision("part", "corrections of rounded layers", schedule.with_corrected_layers({}), None)
        plain = plain | {"bits": _less(plain["bits"], "corrected")}
    sampler = plain.get("sampler", {})
    if "coefficients" in sampler:
        table = {k: v for k, v in sampler.items() if k != "coefficients"}
        yield Decision("part", "fitted solver", Schedule.from_dict(plain | {"sampler": table}), None)
        plain = plain | {"sampler": table}  # it is fitted again for the other decisions
    bare = {k: v for k, v in plain.items() if k in ("format", "model", "steps", "sampler")}
    yield from _timestep_decisions(plain, bare, evaluator)
    yield from _part_decisions(plain, bare)
    if "plan" in plain:
        yield from _plan_decisions(schedule, plain, bare)


def kind_of(schedule: "Schedule", name: str) -> str:
    """The kind of a node: its component, else its stack, else its name."""
    node = schedule.tree.nodes[name]
    return node.component or (f"{node.stack}, whole blocks" if node.kind == "block" else name)


def _timestep_decisions(plain: Parts, bare: Parts, evaluator: "Evaluator") -> Iterator[Decision]:
    """The timesteps, if they are not the teacher's; without them if there are as many."""
    from search.models.base import to_schedule
    from search.schedule import Schedule

    teacher = to_schedule(evaluator.model, {}).to_dict()
    sampler, grid = bare.get("sampler", {}), teacher.get("sampler", {})
    if sampler.get("timesteps", []) == grid.get("timesteps"):
        return
    same_count = len(sampler.get("timesteps", ())) == len(grid.get("timesteps", ()))
    without = Schedule.from_dict(plain | {"sampler": grid}) if same_count and grid else None
    yield Decision("part", "timesteps", without, Schedule.from_dict(bare))


def _part_decisions(plain: Parts, bare: Parts) -> Iterator[Decision]:
    """Whole parts, and of the part `bits` every format."""
    for part, words in PART_WORDS.items():
        if part in plain:
            words = "first steps by a Gaussian" if part == "models" and _is_gaussian(plain[part]) else words
            yield Decision(
                "part", words, _schedule_or_none(_less(plain, part)), _schedule_or_none(bare | {part: plain[part]})
            )
    for form in sorted(set(plain.get("bits", {}).get("layers", {}).values())):
        without = _less(plain, "bits") | _bits_part(plain["bits"], form, keep=False)
        alone = bare | _bits_part(plain["bits"], form, keep=True)
        yield Decision("mechanism", f"bits {form}", _schedule_or_none(without), _schedule_or_none(alone))


def _is_gaussian(models: Parts) -> bool:
    return all(part["class"] == GAUSSIAN for part in models["names"].values())


def _plan_decisions(schedule: "Schedule", plain: Parts, bare: Parts) -> Iterator[Decision]:
    """What a plan leaves out: all of it, by kind of action, by kind of node, and by step."""
    tokens = {name: schedule.plan.tokens[name] for name in schedule.plan.planned()}
    steps = range(schedule.plan.steps)

    def decision(
        group: str,
        name: str,
        letters: Collection[str] = tuple(ACTION_WORDS),
        nodes: Collection[str] = tuple(tokens),
        steps: Collection[int] = steps,
    ) -> Decision:
        """The decision to do these actions at these nodes and steps."""

        def planned(keep: bool) -> "Schedule | None":
            actions = {node: _split(tokens[node], letters if node in nodes else (), steps, keep) for node in tokens}
            return _schedule_or_none(_with_plan(bare if keep else plain, schedule, actions))

        return Decision(group, name, planned(False), planned(True))

    letters = sorted({t[0] for actions in tokens.values() for t in actions} & set(ACTION_WORDS))
    if letters:
        yield decision("part", "plan")
    for letter in letters:
        yield decision("mechanism", ACTION_WORDS[letter], letters=(letter,))
    kinds: dict[str, set[str]] = {}
    for node in tokens:
        kinds.setdefault(kind_of(schedule, node), set()).add(node)
    for kind, nodes in kinds.items():
        yield decision("nodes", kind, nodes=nodes)
    for number in steps:
        if any(actions[number][0] in ACTION_WORDS for actions in tokens.values()):
            yield decision("step", f"step {number}", steps=(number,))


def _split(actions: Sequence[str], letters: Collection[str], steps: Collection[int], keep: bool) -> list[str]:
    """Actions [T] of a node: those of these letters at these steps computed, or with `keep` all others computed."""
    from search.schedule.plan.tokens import OFF

    return [
        action if action[0] in ACTION_WORDS and (action[0] in letters and step in steps) == keep else OFF
        for step, action in enumerate(actions)
    ]


def _with_plan(parts: Parts, schedule: "Schedule", tokens: Mapping[str, Sequence[str]]) -> Parts:
    """The parts with a plan of these actions [T] by node."""
    from search.schedule.plan.plan import Plan
    from search.schedule.plan.tokens import OFF

    off = (OFF,) * schedule.plan.steps
    full = {node.name: tuple(tokens.get(node.name, off)) for node in schedule.tree}
    rules = [list(rule) for rule in Plan(schedule.tree, schedule.plan.steps, full).rules()]
    return _less(parts, "plan") | {"plan": {**schedule.to_dict()["plan"], "rules": rules}}


def _bits_part(bits: Parts, form: str, keep: bool) -> Parts:
    """The part `bits` without the layers of a format, or with `keep` with no others; empty if no layer is left."""
    layers = {name: layer_form for name, layer_form in bits["layers"].items() if (layer_form == form) == keep}
    ranges = {name: spans for name, spans in bits.get("ranges", {}).items() if name in layers}
    remaining = {"layers": layers, "ranges": ranges} if ranges else {"layers": layers}
    return {"bits": _less(bits, "ranges") | remaining} if layers else {}


def _less(parts: Parts, name: str) -> Parts:
    return {k: v for k, v in parts.items() if k != name}


def _schedule_or_none(parts: Parts) -> "Schedule | None":
    """A schedule, or None if its parts need what was left out."""
    from search.schedule import Schedule
    from search.schedule.errors import ScheduleError

    try:
        return Schedule.from_dict(parts)
    except ScheduleError:
        return None
