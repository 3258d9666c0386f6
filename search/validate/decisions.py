"""The single decisions that a schedule consists of, and the schedule with and without each."""

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from search.evaluate.evaluator import Evaluator
    from search.schedule import Schedule


WORDS = {"R": "reuse", "F": "forecast", "S": "skip"}
PARTS = {
    "gates": "gates", "guidance": "guidance", "models": "smaller denoiser", "start": "start of the run",
}  # fmt: skip
Parts = dict[str, Any]


@dataclass(frozen=True)
class Decision:
    """A part of a schedule by a name, what is left when it is undone, and what it is without all others.

    Either is None where there is no such schedule: of another number of steps for example.
    """

    group: str
    name: str
    without: "Schedule | None"
    alone: "Schedule | None"


def list_decisions(schedule: "Schedule", evaluator: "Evaluator") -> Iterator[Decision]:
    """The parts of a schedule; its mechanisms, the kinds of nodes that it plans, and its steps."""
    from search.models.base import to_schedule
    from search.schedule import Schedule
    from search.schedule.plan.tokens import MAX_STEPS, OFF

    whole = {k: v for k, v in schedule.to_dict().items() if k not in ("digest", "scores", "made")}
    plain = {k: v for k, v in whole.items() if k != "corrections"}
    if "corrections" in whole:
        yield Decision("mechanism", "corrections", Schedule.from_dict(plain), None)
    own = plain.get("sampler", {})
    if "coefficients" in own:
        table = {k: v for k, v in own.items() if k != "coefficients"}
        yield Decision("mechanism", "fitted solver", Schedule.from_dict(plain | {"sampler": table}), None)
        plain = plain | {"sampler": table}  # fitted anew for the others
    bare = {k: v for k, v in plain.items() if k in ("format", "model", "steps", "sampler")}
    teacher = to_schedule(evaluator.model, {}).to_dict()
    if (mine := bare.get("sampler", {})).get("timesteps", []) != (grid := teacher.get("sampler", {})).get("timesteps"):
        same = len(mine.get("timesteps", ())) == len(grid.get("timesteps", ()))
        back = Schedule.from_dict(plain | {"sampler": grid}) if same and grid else None
        yield Decision("mechanism", "timesteps", back, Schedule.from_dict(bare))
    for part, words in PARTS.items():
        if part in plain:
            yield Decision("mechanism", words, _try(_less(plain, part)), _try(bare | {part: plain[part]}))
    for form in sorted(set(plain.get("bits", {}).get("layers", {}).values())):
        left = _less(plain, "bits") | _bits(plain["bits"], form, keep=False)
        only = bare | _bits(plain["bits"], form, keep=True)
        yield Decision("mechanism", f"bits {form}", _try(left), _try(only))
    if "plan" not in plain:
        return
    tokens = {name: schedule.plan.tokens[name] for name in schedule.plan.planned()}

    def split(
        group: str,
        name: str,
        letters: str = "".join(WORDS),
        nodes: Container[str] = tokens,
        steps: Container[int] = range(MAX_STEPS),
    ) -> Decision:
        """The decision to do these actions at these nodes and steps."""

        def planned(keep: bool) -> "Schedule | None":
            kept = {
                node: [
                    t if t[0] in WORDS and (t[0] in letters and node in nodes and step in steps) == keep else OFF
                    for step, t in enumerate(actions)
                ]
                for node, actions in tokens.items()
            }
            return _try(_with_plan(bare if keep else plain, schedule, kept))

        return Decision(group, name, planned(False), planned(True))

    for letter in sorted({t[0] for actions in tokens.values() for t in actions} & set(WORDS)):
        yield split("mechanism", WORDS[letter], letters=letter)
    kinds: dict[str, set[str]] = {}
    for node in tokens:
        kinds.setdefault(kind_of(schedule, node), set()).add(node)
    for kind, nodes in kinds.items():
        yield split("nodes", kind, nodes=nodes)
    for number in range(schedule.plan.steps):
        if any(actions[number][0] in WORDS for actions in tokens.values()):
            yield split("step", f"step {number}", steps=(number,))


def _with_plan(parts: Parts, schedule: "Schedule", tokens: Mapping[str, Sequence[str]]) -> Parts:
    from search.schedule.plan.plan import Plan
    from search.schedule.plan.tokens import OFF

    off = (OFF,) * schedule.plan.steps
    full = {node.name: tuple(tokens.get(node.name, off)) for node in schedule.tree}
    rules = [list(rule) for rule in Plan(schedule.tree, schedule.plan.steps, full).rules()]
    return _less(parts, "plan") | {"plan": {**schedule.to_dict()["plan"], "rules": rules}}


def _bits(bits: Parts, form: str, keep: bool) -> Parts:
    """The part with the layers of this format, or with all others; nothing where there are none."""
    layers = {name: own for name, own in bits["layers"].items() if (own == form) == keep}
    ranges = {name: spans for name, spans in bits.get("ranges", {}).items() if name in layers}
    kept = {"layers": layers, "ranges": ranges} if ranges else {"layers": layers}
    return {"bits": _less(bits, "ranges") | kept} if layers else {}


def _less(parts: Parts, name: str) -> Parts:
    return {k: v for k, v in parts.items() if k != name}


def _try(parts: Parts) -> "Schedule | None":
    """A schedule, or nothing where its parts need what was left out."""
    from search.schedule import Schedule
    from search.schedule.errors import ScheduleError

    try:
        return Schedule.from_dict(parts)
    except ScheduleError:
        return None


def kind_of(schedule: "Schedule", name: str) -> str:
    node = schedule.tree.nodes[name]
    return node.component or (f"{node.stack}, whole blocks" if node.kind == "block" else name)
