"""What a schedule loses in another tool's file, in words, and the error where that is not allowed."""

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

MAX_LINES = 8  # about one part
ALL = ("sampler", "plan", "gates", "guidance", "models", "start", "bits", "corrections")


def refuse_losses(dialect: str, lost: Sequence[str], lossy: bool) -> None:
    """Raise ScheduleError where a file would lose something, unless `lossy`."""
    if lost and not lossy:
        raise ScheduleError(
            f"a file for {dialect} would lose:\n"
            + "\n".join(f"  - {line}" for line in lost)
            + "\ntype lossy=true (in Python lossy=True) to write the nearest file"
        )


def unsupported_parts(schedule: Schedule, supported: Iterable[str], reason: str) -> list[str]:
    """The parts of a schedule that a dialect cannot hold, in words; `supported` are those that it can."""
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
    lines = []
    for part in ALL:
        if part in data and part not in supported:
            lines += [f"{line} ({reason})" for line in first_lines(words[part]())]
    return lines


def first_lines(lines: Sequence[str]) -> list[str]:
    """The first lines, and how many more there are."""
    part = lines[0].partition(":")[0] if lines else ""
    return (
        [*lines]
        if len(lines) <= MAX_LINES
        else [*lines[: MAX_LINES - 1], f"{part}: {len(lines) - MAX_LINES + 1} more like these"]
    )


def plan_words(schedule: Schedule, which: Callable[[Node, Tokens], bool] = lambda node, actions: True) -> list[str]:
    """The plan, or its part for some nodes, in the plan notation: `plan: attn2@3-7: C*4 R R`."""
    nodes = schedule.tree.nodes
    chosen = {name: actions for name, actions in schedule.plan.tokens.items() if which(nodes[name], actions)}
    return [f"plan: {places}: {actions}" for places, actions in notation_rules(chosen, schedule.tree)]


def gate_words(gate: Gate, schedule: Schedule) -> str:
    """A gate of the schedule, its group and its actions in the plan notation."""
    value = "the residual of " if gate.residual else ""
    text = f"gates: {value}{gate.text(schedule.tree)}"
    return f"{text}, decided while it runs, by {gate.signal}" if ASK in gate.tokens else text


def sampler_words(schedule: Schedule) -> list[str]:
    """Timesteps and solver of the sampler part that the scheduler does not use by itself."""
    sampler = schedule.sampler or {}
    lines = []
    if (timesteps := sampler.get("timesteps")) and not has_own_grid(sampler):
        lines.append(f"sampler: {len(timesteps)} timesteps of its own, {' '.join(f'{t:.4g}' for t in timesteps[:4])} …")
    return lines + solver_words(schedule)


def solver_words(schedule: Schedule) -> list[str]:
    """Orders and table of the sampler part that the scheduler does not use by itself."""
    sampler = schedule.sampler or {}
    lines = []
    if order := sampler.get("order"):
        lines.append(f"sampler: an order of the solver per step, {order[:40]}")
    if "coefficients" in sampler:
        lines.append("sampler: coefficients of a fitted solver")
    return lines


def guidance_words(guidance: dict[str, Any]) -> list[str]:
    """A guidance part of the normal form, in words."""
    lines = []
    scale = guidance.get("scale", [])
    if scale:
        lines.append(f"guidance: scales from {max(scale):g} to {min(scale):g} in place of {guidance['call']:g}")
    what = {"O": "run the conditional half alone", "R": "reuse the unconditional half"}
    what |= {"A": "approximate the unconditional half", "M": "run one merged pass"}
    for kind in dict.fromkeys(guidance.get("branch", "")):
        if kind in what:
            steps = (t for t, other in enumerate(guidance["branch"]) if other == kind)
            lines.append(f"guidance: {steps_words(steps)} {what[kind]}")
    return lines


def bits_words(part: dict[str, Any]) -> list[str]:
    """A bits part of the normal form, in words."""
    count: dict[str, int] = {}
    for name in part["layers"].values():
        count[name] = count.get(name, 0) + 1
    corrected = [f"bits: corrections of {len(part['corrected']['layers'])} layers"] if "corrected" in part else []
    return [f"bits: {n} layers at {name}" for name, n in count.items()] + corrected


def _models_words(schedule: Schedule) -> list[str]:
    if schedule.models is None:
        return []
    switched = (t for t, letter in enumerate(schedule.models.at) if letter != OWN)
    return [f"models: {steps_words(switched)} run another denoiser"]


def steps_words(steps: Iterable[int]) -> str:
    """`step 3`, or `steps 2-5, 9`."""
    listed = list(steps)
    runs: list[list[int]] = []
    for step in listed:
        if runs and runs[-1][-1] + 1 == step:
            runs[-1].append(step)
        else:
            runs.append([step])
    text = ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    return f"step{'s' if len(listed) > 1 else ''} {text}"


def constant_scale(schedule: Schedule) -> float | None:
    """The guidance scale, where it is one number for all steps and every step computes both halves; else None."""
    part = schedule.guidance
    if part is None:
        return None
    normal = part.normal()
    scales = set(normal.get("scale", [part.call]))
    return scales.pop() if len(scales) == 1 and "branch" not in normal else None


def plain(number: float) -> str:
    """All digits of a number without an exponent, which ComfyUI would read as two numbers and YAML as text."""
    return format(Decimal(repr(float(number))), "f")
