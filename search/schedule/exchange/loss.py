"""What of a schedule another tool's file cannot say, in words; and the refusal to leave it out unasked."""

from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from typing import Any

from search.schedule.errors import ScheduleError
from search.schedule.exchange.grid import has_own_grid
from search.schedule.model.nodes import Node
from search.schedule.parts.gates import ASK
from search.schedule.plan.gates import Gate
from search.schedule.plan.notation import notation_rules
from search.schedule.plan.tokens import OWN, Tokens
from search.schedule.schedule import Schedule

MOST = 8  # sentences about one part
ALL = ("sampler", "plan", "gates", "guidance", "models", "start", "bits", "corrections")


def admit(dialect: str, lost: Sequence[str], lossy: bool) -> None:
    """ScheduleError where a file would lose something and nobody has agreed to that."""
    if lost and not lossy:
        raise ScheduleError(
            f"a file for {dialect} would lose:\n"
            + "\n".join(f"  - {line}" for line in lost)
            + "\ntype lossy=true (in Python lossy=True) to write the nearest that it can say"
        )


def unsaid(schedule: Schedule, said: Iterable[str], reason: str) -> list[str]:
    """The parts of a schedule that a dialect has no words for at all; `said` are those that it has some for."""
    data = schedule.to_dict()
    words = {
        "sampler": lambda: sampler_words(schedule),
        "plan": lambda: plan_words(schedule),
        "gates": lambda: [gate_words(gate, schedule) for gate in schedule.gates],
        "guidance": lambda: guidance_words(data["guidance"]),
        "models": lambda: _models_words(schedule),
        "start": lambda: ["start: noise is injected after steps"],
        "bits": lambda: bits_words(data["bits"]),
        "corrections": lambda: ["corrections: reused values are corrected by channel"],
    }
    found = []
    for part in ALL:
        if part in data and part not in said:
            found += [f"{line} ({reason})" for line in few(words[part]())]
    return found


def few(lines: Sequence[str]) -> list[str]:
    """The first lines, and how many more there are."""
    part = lines[0].partition(":")[0] if lines else ""
    return [*lines] if len(lines) <= MOST else [*lines[: MOST - 1], f"{part}: {len(lines) - MOST + 1} more like these"]


def plan_words(schedule: Schedule, which: Callable[[Node, Tokens], bool] = lambda node, actions: True) -> list[str]:
    """The plan, or its part for some nodes, in the plan notation: `plan: attn2@3-7: C*4 R R`."""
    nodes = schedule.tree.nodes
    chosen = {name: actions for name, actions in schedule.plan.tokens.items() if which(nodes[name], actions)}
    return [f"plan: {places}: {actions}" for places, actions in notation_rules(chosen, schedule.tree)]


def gate_words(gate: Gate, schedule: Schedule) -> str:
    """A gate of the schedule, its group and its actions in the plan notation."""
    kept = "the residual of " if gate.residual else ""
    text = f"gates: {kept}{gate.text(schedule.tree)}"
    return f"{text}, decided while it runs, by {gate.signal}" if ASK in gate.tokens else text


def sampler_words(schedule: Schedule) -> list[str]:
    """What of the sampler is not the scheduler's own doing."""
    sampler = schedule.sampler or {}
    found = []
    if (own := sampler.get("timesteps")) and not has_own_grid(sampler):
        found.append(f"sampler: {len(own)} timesteps of its own, {' '.join(f'{t:.4g}' for t in own[:4])} …")
    return found + solver_words(schedule)


def solver_words(schedule: Schedule) -> list[str]:
    """What of the solver is not the scheduler's own doing."""
    sampler = schedule.sampler or {}
    found = []
    if order := sampler.get("order"):
        found.append(f"sampler: an order of the solver per step, {order[:40]}")
    if "coefficients" in sampler:
        found.append("sampler: coefficients of a fitted solver")
    return found


def guidance_words(guidance: dict[str, Any]) -> list[str]:
    """A guidance part of the normal form."""
    found = []
    scale = guidance.get("scale", [])
    if scale:
        found.append(f"guidance: scales from {max(scale):g} to {min(scale):g} in place of {guidance['call']:g}")
    what = {"O": "run the conditional half alone", "R": "reuse the unconditional half"}
    what |= {"A": "approximate the unconditional half", "M": "run one merged pass"}
    for kind in dict.fromkeys(guidance.get("branch", "")):
        if kind in what:
            steps = (t for t, other in enumerate(guidance["branch"]) if other == kind)
            found.append(f"guidance: {steps_words(steps)} {what[kind]}")
    return found


def bits_words(part: dict[str, Any]) -> list[str]:
    """A bits part of the normal form."""
    count: dict[str, int] = {}
    for name in part["layers"].values():
        count[name] = count.get(name, 0) + 1
    return [f"bits: {n} layers at {name}" for name, n in count.items()]


def _models_words(schedule: Schedule) -> list[str]:
    if schedule.models is None:
        return []
    others = (t for t, letter in enumerate(schedule.models.at) if letter != OWN)
    return [f"models: {steps_words(others)} run another denoiser"]


def steps_words(steps: Iterable[int]) -> str:
    """`step 3`, or `steps 2-5, 9`."""
    found = list(steps)
    runs: list[list[int]] = []
    for step in found:
        if runs and runs[-1][-1] + 1 == step:
            runs[-1].append(step)
        else:
            runs.append([step])
    text = ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    return f"step{'s' if len(found) > 1 else ''} {text}"


def constant_scale(schedule: Schedule) -> float | None:
    """The one scale that guides all steps in full; None where nothing is said, or more than that."""
    part = schedule.guidance
    if part is None:
        return None
    normal = part.normal()
    scales = set(normal.get("scale", [part.call]))
    return scales.pop() if len(scales) == 1 and "branch" not in normal else None


def plain(number: float) -> str:
    """All digits of a number, without an exponent, which ComfyUI would read as two numbers and YAML as text."""
    return format(Decimal(repr(float(number))), "f")
