"""A schedule on another grid: every step takes the actions of the old step nearest in log-SNR.

What a denoiser does at a step depends on how much noise is left, not on the step's number. So of a grid with any
other number of steps, shift or solver class

- step j takes the column of the old step i that is nearest in log-SNR, log(alpha / sigma), for flow matching
  log((1 - sigma) / sigma); of two as near the earlier one. A column is what every node and gate does there, the
  guidance's branch, scale and weights, the denoiser that runs, and the solver's order,
- what then reads more values than were computed before it is lowered, F2 to F1 to R to C, as far as needed: so the
  first step computes. A guidance branch R or A before both halves have run becomes C,
- `max_run` and `most` of a gate grow with the number of steps, rounded up; its thresholds are about changes since
  the group was last computed and stay, and so do poly, axis, `ahead`, the start part and bits. Ranges of static bits
  are over a whole run,
- guidance scales keep their place between 1, no guidance, and the call's scale. Without guidance the part is dropped,
- a fitted solver's table and corrections belong to the old grid and are dropped: `search.transfer` fits both anew.

On its own grid, and for its own model and guidance, a schedule stays what it is, table and corrections included.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from search.schedule import Schedule
from search.schedule.errors import ScheduleError
from search.schedule.model.nodes import ROOT, Tree
from search.schedule.noise import Noise
from search.schedule.parts.gates import ASK
from search.schedule.plan.guidance import FULL, is_narrow, settle_branches
from search.schedule.plan.tokens import ABSENT, OFF, OWN, denoiser_switches, format_actions, parse_actions, values_read

Sampler = Mapping[str, Any]  # a schedule's sampler part, with its timesteps


@dataclass(frozen=True)
class Reindexed:
    """A schedule on its new grid; `at` [T'] is the old step of each new one, `lost` what did not carry over."""

    schedule: Schedule
    at: tuple[int, ...]
    lost: tuple[str, ...] = ()


def nearest_steps(old: Sequence[float] | np.ndarray, new: Sequence[float] | np.ndarray) -> tuple[int, ...]:
    """For every place of `new` [T'] the index of the nearest in `old` [T], the first of several as near."""
    places = np.asarray(old, dtype=float)
    return tuple(int(np.abs(places - place).argmin()) for place in new)


def reindex(
    schedule: Schedule,
    old: Sampler,
    new: Sampler,
    guidance: float | None = None,
    model: Mapping[str, Any] | None = None,
) -> Reindexed:
    """The schedule on the grid `new`; `old` is the one that it runs now, its own or the pipeline's.

    `guidance` is the scale that the pipeline will be called with, `model` the part of the denoiser that it will run,
    of the same class and stacks; None leaves both as they are. ScheduleError says what does not carry over.
    """
    parts, columns = schedule.to_dict(), StepColumns.of(schedule)
    lost: list[str] = []
    given = _model(parts["model"], model)
    called = columns.guidance.get("call") if columns.guidance and guidance is not None else guidance
    same = schedule.steps is None or _same_grid(old, new)
    at = tuple(range(columns.steps))
    if same and called == guidance and given == parts["model"]:
        return Reindexed(schedule, at)
    parts["model"] = given
    if called != guidance and guidance is not None:
        lost += ["the guidance part: the pipeline runs without guidance"] if guidance <= 1 else []
        columns = columns.guided(guidance)
    if not same:
        at = nearest_steps(Noise.of(old).grid_logsnr(old), Noise.of(new).grid_logsnr(new))
        columns, parts["steps"] = columns.taken(at), len(at)
        parts["sampler"], dropped = _sampler(schedule, new, at)
        lost += dropped
        if "corrections" in parts:
            lost.append("corrections of reused values: they belong to the steps of the old grid")
    try:
        return Reindexed(_built(schedule, parts | columns.parts(), keep=same), at, tuple(lost))
    except ScheduleError as error:
        raise ScheduleError(
            f"this schedule does not carry over to {len(at)} steps: {error}; search there: "
            f"python -m search +space=cache model=<name> model.steps={len(at)}"
        ) from None


def with_steps_computed(schedule: Schedule, steps: Iterable[int]) -> Schedule:
    """The same schedule with everything computed at these steps: all nodes, groups and both halves of guidance."""
    return _built(schedule, schedule.to_dict() | StepColumns.of(schedule).computing(set(steps)).parts())


def saving_steps(schedule: Schedule) -> list[int]:
    """The steps at which a schedule leaves anything out, or may."""
    columns = StepColumns.of(schedule)
    return [step for step in range(columns.steps) if not columns.full(step)]


@dataclass(frozen=True)
class StepColumns:
    """What a schedule says step by step. `tokens` [T] by node, `-` written as C; `gates` and `guidance` as in a file,
    with every entry per step; `at` has the letter of each step's denoiser, "" where there is one.
    """

    tree: Tree
    steps: int
    plan: Mapping[str, Any] | None
    tokens: Mapping[str, Sequence[str]]
    gates: Sequence[Mapping[str, Any]] = ()
    guidance: Mapping[str, Any] = field(default_factory=dict)
    models: Mapping[str, Any] | None = None
    at: str = ""

    @classmethod
    def of(cls, schedule: Schedule) -> "StepColumns":
        parts, steps = schedule.to_dict(), schedule.steps or 0
        tokens = {}
        for name in schedule.plan.planned():
            tokens[name] = [OFF if token == ABSENT else token for token in schedule.plan.tokens[name]]
        gates = []
        for part in parts.get("gates", ()):
            given = part.get("threshold")
            spread = {} if given is None else {"threshold": given if isinstance(given, list) else [given] * steps}
            gates.append(part | {"actions": parse_actions(part["actions"], steps, "gates", "CRG")} | spread)
        guidance = dict(parts.get("guidance", {}))
        if "approximate" in guidance:
            weights = guidance["approximate"]
            wide = {k: v if isinstance(v, list) else [v] * steps for k, v in weights.items() if k in ("low", "high")}
            guidance["approximate"] = weights | wide
        models = parts.get("models")
        at = models["at"] if models else ""
        return cls(schedule.tree, steps, parts.get("plan"), tokens, gates, guidance, models, at)

    def taken(self, at: Sequence[int]) -> "StepColumns":
        """The columns of these steps, one after another."""
        share = len(at) / self.steps
        gates = [_each(part, at, ("actions", "threshold")) | _grown(part, share) for part in self.gates]
        guidance = _each(self.guidance, at, ("scale", "branch"))
        if "approximate" in guidance:
            guidance["approximate"] = _each(guidance["approximate"], at, ("low", "high"))
        tokens = {name: [own[i] for i in at] for name, own in self.tokens.items()}
        letters = "".join(self.at[i] for i in at) if self.at else ""
        return replace(self, steps=len(at), tokens=tokens, gates=gates, guidance=guidance, at=letters)

    def guided(self, call: float) -> "StepColumns":
        """For a pipeline that is called with another scale: 1 stays 1, the old call's becomes the new one's."""
        if call <= 1:
            return replace(self, guidance={})
        old = self.guidance["call"]
        if old == call:
            return self
        found = dict(self.guidance) | {"call": call}
        if "scale" in found:
            found["scale"] = [1 + (s - 1) * (call - 1) / (old - 1) if old != 1 else call for s in found["scale"]]
        return replace(self, guidance=found)

    def computing(self, steps: set[int]) -> "StepColumns":
        """The same with nothing left out at these steps."""

        def off(values: Sequence[str], letter: str = OFF) -> list[str]:
            return [letter if step in steps else value for step, value in enumerate(values)]

        tokens = {name: off(own) for name, own in self.tokens.items()}
        gates = [dict(part) | {"actions": off(part["actions"])} for part in self.gates]
        guidance = dict(self.guidance)
        if "branch" in guidance:
            guidance["branch"] = "".join(off(guidance["branch"], FULL))
        return replace(self, tokens=tokens, gates=gates, guidance=guidance, at="".join(off(self.at, OWN)))

    def full(self, step: int) -> bool:
        """Whether all is computed at a step."""
        actions = [own[step] for own in self.tokens.values()] + [part["actions"][step] for part in self.gates]
        kinds = self.guidance.get("branch", FULL * self.steps)[step] + (self.at or OWN * self.steps)[step]
        return set(actions) <= {OFF} and kinds == FULL + OWN

    def parts(self) -> dict[str, Any]:
        """The parts of a file: every action has what it reads. None for a part that is not there."""
        tokens, branch = self._settled()
        barriers = denoiser_switches(self.at)
        guidance = dict(self.guidance) | ({"branch": branch} if branch else {})
        plan = {k: v for k, v in (self.plan or {}).items() if k != "rules"}
        rules = [[name, format_actions(own)] for name, own in tokens.items()]
        runs = [token == OFF for token in tokens.get(ROOT, [OFF] * self.steps)]
        if self.at:
            runs = [run and letter == OWN for run, letter in zip(runs, self.at, strict=True)]
        narrow = branch if is_narrow(branch) else None
        gates = []
        for part in self.gates:
            settled = _settled_gate(part, runs, narrow, barriers)
            gates.append(dict(part) | {"actions": format_actions(settled)})
        return {
            "plan": plan | {"rules": rules} if self.plan is not None else None,
            "gates": gates or None,
            "guidance": guidance or None,
            "models": dict(self.models) | {"at": self.at} if self.models else None,
        }

    def _settled(self) -> tuple[dict[str, list[str]], str]:
        """Actions and branch, lowered until each has what it reads: fewer and fewer reads, so it ends."""
        branch, barriers = self.guidance.get("branch", ""), denoiser_switches(self.at)
        while True:
            tokens = settle_branches(self.tokens, self.tree, branch or None, self.at)
            root = tokens.get(ROOT, [OFF] * self.steps)
            found, full = "", False
            for step, kind in enumerate(branch):
                full &= step not in barriers
                kind = FULL if kind in "RA" and not full else kind
                full |= kind == FULL and root[step] == OFF
                found += kind
            if found == branch:
                return tokens, branch
            branch = found


def _settled_gate(
    part: Mapping[str, Any], runs: Sequence[bool], branch: str | None, barriers: Iterable[int]
) -> list[str]:
    """A group's actions, lowered to what it has computed for certain before, of both halves or the conditional one."""
    reads, bounded = values_read(part.get("then", "R")), part.get("most") is not None
    least, found = [0, 0], []
    for step, token in enumerate(part["actions"]):
        least = [0, 0] if step in barriers else least
        full = branch is None or branch[step] == FULL
        known = least[not full]
        if runs[step]:
            if token == ASK and bounded and known < reads:
                token = OFF
            elif token != ASK and values_read(token) > known:
                token = OFF if known == 0 else "R" if known == 1 else f"F{known - 1}"
            if token == OFF or (token == ASK and known < reads):
                least = [least[0] + full, least[1] + 1]
        found.append(token)
    return found


def _grown(part: Mapping[str, Any], share: float) -> dict[str, int]:
    """Bounds on steps of a gate for so many times the steps."""
    return {name: math.ceil(part[name] * share - 1e-9) for name in ("max_run", "most") if part.get(name) is not None}


def _each(part: Mapping[str, Any], at: Sequence[int], names: Sequence[str]) -> dict[str, Any]:
    """A part with these entries, lists or letters per step, taken at other steps."""
    found = dict(part)
    for name in names:
        if name in found:
            values = [found[name][i] for i in at]
            found[name] = "".join(values) if isinstance(found[name], str) else values
    return found


def _model(own: Mapping[str, Any], given: Mapping[str, Any] | None) -> Mapping[str, Any]:
    if given is None:
        return own
    for name in ("class", "stacks"):
        if own[name] != given[name]:
            raise ScheduleError(
                f"model.{name} is {str(own[name])[:120]}, but the pipeline's is {str(given[name])[:120]}: a schedule "
                "carries over between checkpoints of one architecture; search on this one"
            )
    return {**own, **given}


def _sampler(schedule: Schedule, new: Sampler, at: Sequence[int]) -> tuple[dict[str, Any] | None, list[str]]:
    """The sampler part on the new grid, and what of the old one is lost."""
    own = schedule.sampler
    if own is None:
        return None, []
    lost = ["the fitted solver: its table belongs to the old grid"] if "coefficients" in own else []
    found = {k: new[k] for k in ("class", "config", "timesteps", "sigmas") if k in new and (k in own or k != "sigmas")}
    if not own.get("timesteps"):
        found = {k: found[k] for k in ("class", "config")}
    if order := own.get("order"):
        if own["class"] == new["class"]:
            taken = [str(min(int(order[i]), j + 1)) for j, i in enumerate(at)]
            found["order"] = "".join([*taken[:-1], order[-1]])
        else:
            lost.append(f"sampler.order: {new['class']} is another solver than {own['class']}")
    return found, lost


def _same_grid(old: Sampler, new: Sampler) -> bool:
    same = all(old.get(name) == new.get(name) for name in ("class", "config"))
    return same and all(_close(old.get(name), new.get(name)) for name in ("timesteps", "sigmas"))


def _close(a: Sequence[float] | None, b: Sequence[float] | None) -> bool:
    """Equal but for the rounding of another device."""
    if not a or not b:
        return not a and not b
    return len(a) == len(b) and bool(np.allclose(a, b, rtol=1e-5, atol=1e-6))


def _built(schedule: Schedule, parts: Mapping[str, Any], keep: bool = False) -> Schedule:
    """The schedule of these parts, without scores; with its corrections where they are to be kept."""
    bare = {k: v for k, v in parts.items() if v is not None and k not in ("digest", "scores", "corrections")}
    found = Schedule.from_dict(bare)
    known = schedule._corrections
    return found.with_corrections(known.tensors, known.part.steps) if keep and known else found
