"""What a schedule does step by step: one column per step, which can be taken, repeated and computed."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from search.schedule import Schedule
from search.schedule.model.nodes import ROOT, Tree
from search.schedule.parts.gates import ASK
from search.schedule.plan.guidance import FULL, is_narrow, settle_branches
from search.schedule.plan.tokens import ABSENT, OFF, OWN, denoiser_switches, format_actions, parse_actions, values_read


@dataclass(frozen=True)
class StepColumns:
    """The actions of a schedule by step.

    `tokens` are actions [T] by node, `-` written as C. `gates` and `guidance` are parts as in a file, with every entry
    as a list per step. `at` has the letter of each step's denoiser; it is empty if there is only one denoiser.
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
        """The columns of a schedule."""
        parts, steps = schedule.to_dict(), schedule.steps or 0
        tokens = {}
        for name in schedule.plan.planned():
            tokens[name] = [OFF if token == ABSENT else token for token in schedule.plan.tokens[name]]
        gates = []
        for part in parts.get("gates", ()):
            threshold = part.get("threshold")
            per_step = threshold if isinstance(threshold, list) else [threshold] * steps
            spread = {} if threshold is None else {"threshold": per_step}
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
        """The columns of these steps, in this order."""
        share = len(at) / self.steps
        gates = [_taken(part, at, ("actions", "threshold")) | _scaled_bounds(part, share) for part in self.gates]
        guidance = _taken(self.guidance, at, ("scale", "branch"))
        if "approximate" in guidance:
            guidance["approximate"] = _taken(guidance["approximate"], at, ("low", "high"))
        tokens = {name: [actions[i] for i in at] for name, actions in self.tokens.items()}
        letters = "".join(self.at[i] for i in at) if self.at else ""
        return replace(self, steps=len(at), tokens=tokens, gates=gates, guidance=guidance, at=letters)

    def guided(self, call: float) -> "StepColumns":
        """For a pipeline that is called with the scale `call`: 1 stays 1, the old call's scale becomes `call`."""
        if call <= 1:
            return replace(self, guidance={})
        old = self.guidance["call"]
        if old == call:
            return self
        guidance = dict(self.guidance) | {"call": call}
        if "scale" in guidance:
            scales = guidance["scale"]
            guidance["scale"] = [1 + (s - 1) * (call - 1) / (old - 1) if old != 1 else call for s in scales]
        return replace(self, guidance=guidance)

    def computing(self, steps: set[int]) -> "StepColumns":
        """The same columns with everything computed at these steps."""

        def off(values: Sequence[str], letter: str = OFF) -> list[str]:
            return [letter if step in steps else value for step, value in enumerate(values)]

        tokens = {name: off(actions) for name, actions in self.tokens.items()}
        gates = [dict(part) | {"actions": off(part["actions"])} for part in self.gates]
        guidance = dict(self.guidance)
        if "branch" in guidance:
            guidance["branch"] = "".join(off(guidance["branch"], FULL))
        return replace(self, tokens=tokens, gates=gates, guidance=guidance, at="".join(off(self.at, OWN)))

    def full(self, step: int) -> bool:
        """Whether everything is computed at a step."""
        actions = [tokens[step] for tokens in self.tokens.values()] + [part["actions"][step] for part in self.gates]
        kinds = self.guidance.get("branch", FULL * self.steps)[step] + (self.at or OWN * self.steps)[step]
        return set(actions) <= {OFF} and kinds == FULL + OWN

    def parts(self) -> dict[str, Any]:
        """The parts of a file, actions lowered to what was computed before; None for a part that the schedule lacks."""
        tokens, branch = self._settled()
        barriers = denoiser_switches(self.at)
        guidance = dict(self.guidance) | ({"branch": branch} if branch else {})
        plan = {k: v for k, v in (self.plan or {}).items() if k != "rules"}
        rules = [[name, format_actions(actions)] for name, actions in tokens.items()]
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
        """Actions and branch, lowered until each has the values that it reads; each round lowers some, so it ends."""
        branch, barriers = self.guidance.get("branch", ""), denoiser_switches(self.at)
        while True:
            tokens = settle_branches(self.tokens, self.tree, branch or None, self.at)
            root = tokens.get(ROOT, [OFF] * self.steps)
            settled, full = "", False
            for step, kind in enumerate(branch):
                full &= step not in barriers
                kind = FULL if kind in "RA" and not full else kind
                full |= kind == FULL and root[step] == OFF
                settled += kind
            if settled == branch:
                return tokens, branch
            branch = settled


def _settled_gate(
    part: Mapping[str, Any], runs: Sequence[bool], branch: str | None, barriers: Iterable[int]
) -> list[str]:
    """A gate group's actions, lowered to the values that were certainly computed before.

    Values of both halves of guidance and of the conditional half are counted apart.
    """
    reads, bounded = values_read(part.get("then", "R")), part.get("most") is not None
    least, settled = [0, 0], []
    for step, token in enumerate(part["actions"]):
        least = [0, 0] if step in barriers else least
        full = branch is None or branch[step] == FULL
        values = least[not full]
        if runs[step]:
            if token == ASK and bounded and values < reads:
                token = OFF
            elif token != ASK and values_read(token) > values:
                token = OFF if values == 0 else "R" if values == 1 else f"F{values - 1}"
            if token == OFF or (token == ASK and values < reads):
                least = [least[0] + full, least[1] + 1]
        settled.append(token)
    return settled


def _scaled_bounds(part: Mapping[str, Any], share: float) -> dict[str, int]:
    """The bounds of a gate that count steps, for `share` times as many steps; rounded up."""
    return {name: math.ceil(part[name] * share - 1e-9) for name in ("max_run", "most") if part.get(name) is not None}


def _taken(part: Mapping[str, Any], at: Sequence[int], names: Sequence[str]) -> dict[str, Any]:
    """A part whose entries of these names, lists or letters per step, are taken at the steps `at`."""
    taken = dict(part)
    for name in names:
        if name in taken:
            values = [taken[name][i] for i in at]
            taken[name] = "".join(values) if isinstance(taken[name], str) else values
    return taken
