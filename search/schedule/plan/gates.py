"""Gates: groups of blocks whose action is decided while the denoiser runs, with a bound on their cost.

A group is a run of blocks that follow each other, across stacks too. At a step C it is computed, at R or F1..F9 its
value is reused or forecast, at G its gate decides: it passes where its signal changed by less than a threshold, and
then the group's action is `then`; else it is computed. Without G a group is static, and nothing is measured.

Signals: `first_block_forecast`, the error of the forecast of what enters the group (CG-Taylor, arXiv:2508.02240);
`first_block_residual`, what the block before the group adds (First Block Cache of ParaAttention, DBCache);
`modulated_input`, what enters the group's first component after norm and modulation (TeaCache, arXiv:2411.19108);
`model_input`, the denoiser's input; `table`, ratios in the schedule file (MagCache, arXiv:2506.09045), from which all
steps are decided here: such a group is static.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from search.schedule.errors import ScheduleError
from search.schedule.model.nodes import ROOT, Tree
from search.schedule.parts.gates import ASK, OF_BEFORE, GatePart
from search.schedule.plan.block_groups import block_order, block_selector, group_of_blocks, nodes_inside
from search.schedule.plan.guidance import FULL
from search.schedule.plan.notation import format_places
from search.schedule.plan.plan import Plan
from search.schedule.plan.tokens import (
    ABSENT,
    OFF,
    OWN,
    Tokens,
    denoiser_switches,
    format_actions,
    parse_actions,
    shortest_actions,
    values_read,
)


@dataclass(frozen=True)
class Gate:
    """One group and its rule, checked: the values that its actions read are computed before them.

    `tokens` [T] are "-" where the denoiser is not computed. `threshold` [T]; `before` is the block before the group
    where the signal reads it. At most `max_run` steps in a row are not computed, and at most `most` steps G of a
    run are: from then on the gate always passes. At and after a step of `barriers` no values from before it are read.
    """

    blocks: tuple[str, ...]
    name: str
    tokens: Tokens
    residual: bool = False
    then: str = "R"
    signal: str = ""
    threshold: tuple[float, ...] = ()
    accumulate: bool = False
    poly: tuple[float, ...] = ()
    max_run: int | None = None
    most: int | None = None
    before: str = ""
    barriers: frozenset[int] = frozenset()

    @classmethod
    def of(cls, part: GatePart, tree: Tree, plan: Plan | None, steps: int, branch: str | None, where: str) -> "Gate":
        """A gate from its part of the file, in its simplest form.

        Args:
            part: The part, `gates[i]`.
            tree: The nodes of the denoiser.
            plan: The plan of the same schedule, if it has one.
            steps: How many steps a run has.
            branch: What guidance computes at each step [steps]; None where every step computes both halves.
            where: The name of the part in errors.

        Raises:
            ScheduleError: The part is wrong, or contradicts the plan; `where` and the field are named.
        """
        blocks = group_of_blocks(part.group, tree, where)
        tokens = parse_actions(part.actions, steps, where + ".actions", "CRG")
        runs = zip(plan.tokens[ROOT], plan.at or OWN * steps, strict=True) if plan else [(OFF, OWN)] * steps
        gate = cls(
            blocks,
            block_selector(blocks, tree),
            tuple(t if run == (OFF, OWN) else ABSENT for t, run in zip(tokens, runs, strict=True)),
            part.value == "residual",
            barriers=denoiser_switches(plan.at) if plan else frozenset(),
        )
        if ASK in gate.tokens:
            gate = gate._asking(part, tree, steps, where)
        gate._check(branch, where)
        gate = gate._simplified(branch)
        if not gate.is_off:
            _check_plan(gate, tree, plan, where)
        return gate

    @property
    def is_off(self) -> bool:
        """Whether it computes at every step."""
        return set(self.tokens) <= {OFF, ABSENT}

    @property
    def is_static(self) -> bool:
        """Whether nothing is decided while the denoiser runs."""
        return ASK not in self.tokens

    @property
    def forecasts(self) -> bool:
        """Whether it forecasts, so that the places of the steps on the axis matter."""
        return any(token[0] == "F" for token in self.actions)

    @property
    def actions(self) -> set[str]:
        """All actions that the group can have."""
        return set(self.tokens) - {ASK, ABSENT} | (set() if self.is_static else {OFF, self.then})

    def text(self, tree: Tree) -> str:
        """The group and its actions in the plan notation, `transformer_blocks@1-7: C*4 G*15 C`."""
        return f"{format_places(self.blocks, tree)}: {shortest_actions(tuple(self._file_tokens()))}"

    def _file_tokens(self) -> list[str]:
        return [OFF if token == ABSENT else token for token in self.tokens]

    def normal(self) -> dict[str, Any]:
        """The part of the file in its normal form, without entries that have no effect."""
        body: dict[str, Any] = {
            "group": self.name,
            "actions": format_actions(self._file_tokens()),
        }
        body |= {"value": "residual"} if self.residual else {}
        if self.is_static:
            return body
        asked = [value for value, token in zip(self.threshold, self.tokens, strict=True) if token == ASK]
        body |= {"then": self.then, "signal": self.signal}
        body["threshold"] = asked[0] if len(set(asked)) == 1 else list(self.threshold)
        body |= {"accumulate": True} if self.accumulate else {}
        body |= {"poly": list(self.poly)} if self.poly else {}
        body |= {"max_run": self.max_run} if self.max_run else {}
        return body | ({"most": self.most} if self.most is not None else {})

    def worst(self, share: Sequence[float]) -> list[bool]:
        """The steps [T] that are computed in the worst case, where each step computes this `share` of the batch [T]."""
        asked = sorted((t for t, token in enumerate(self.tokens) if token == ASK), key=lambda t: -share[t])
        computed = set(asked if self.most is None else asked[: self.most])
        return [token == OFF or t in computed for t, token in enumerate(self.tokens)]

    def values_held(self, there: Sequence[bool]) -> tuple[list[int], list[int]]:
        """How many values, and how many signals, later steps may read after each step [T].

        `there` has the steps at which a half of the batch is computed; the two halves may differ.
        """
        needs = [values_read(self.then if token == ASK else token) for token in self.tokens]
        computed = [token == OFF for token in self.tokens]
        asks = [token == ASK for token in self.tokens]
        reads = values_read(self.then) if self.signal == "first_block_forecast" else 1
        stored = [c or (self.stepwise and a) for c, a in zip(computed, asks, strict=True)]
        return self._held(computed, needs, there), self._held(stored, [reads * a for a in asks], there)

    def most_values_held(self, there: Sequence[bool]) -> tuple[list[int], list[int]]:
        """The same, at most as many as can have been computed by then: a bound on the stored values."""
        computed = 0
        bounds: tuple[list[int], list[int]] = [], []
        for t, counts in enumerate(zip(*self.values_held(there), strict=True)):
            computed = (0 if t in self.barriers else computed) + (there[t] and self.tokens[t] in (OFF, ASK))
            for bound, count in zip(bounds, counts, strict=True):
                bound.append(min(count, computed))
        return bounds

    @property
    def stepwise(self) -> bool:
        """Whether the signal is compared with that of the step before, not of the last computed one."""
        return self.accumulate and self.signal != "first_block_forecast"

    def _held(self, certain: Sequence[bool], needs: Sequence[int], there: Sequence[bool]) -> list[int]:
        """How many of the values up to each step later steps read, where only some computations are certain."""
        counts, wanted = [0] * len(needs), 0
        for step in reversed(range(len(needs))):
            counts[step] = wanted
            if there[step]:
                wanted = max(needs[step], wanted - certain[step])
            if step in self.barriers:
                wanted = 0
        return counts

    # From a part of the file

    def _asking(self, part: GatePart, tree: Tree, steps: int, where: str) -> "Gate":
        """The gate with its signal, threshold and bounds; ScheduleError where they are wrong."""
        if part.signal is None or part.threshold is None:
            raise ScheduleError(
                f"{where}: the gate decides at steps G; give signal, for example 'first_block_residual', and threshold"
            )
        thresholds = part.threshold if isinstance(part.threshold, list) else [part.threshold] * steps
        if len(thresholds) != steps:
            raise ScheduleError(f"{where}.threshold has {len(thresholds)} entries; {steps} steps need {steps}")
        asked = self.tokens.count(ASK)
        threshold = tuple(float(v) if t == ASK else 0.0 for v, t in zip(thresholds, self.tokens, strict=True))
        most = None if part.most is None or part.most >= asked else part.most
        max_run = None if part.max_run is None or part.max_run >= steps else part.max_run
        if (part.table is not None) != (part.signal == "table"):
            raise ScheduleError(f"{where}.table and signal 'table' belong together; signal is {part.signal!r}")
        if part.table is not None:
            if len(part.table) != steps or most is not None:
                raise ScheduleError(
                    f"{where}.table has {len(part.table)} entries and most is {most}; {steps} steps need {steps} "
                    "entries, and no most: a table decides all steps beforehand"
                )
            return replace(self, tokens=self._tabulated(part.then, threshold, part.table, max_run))
        before = ""
        if part.signal in OF_BEFORE:
            order = block_order(tree)
            if (place := order.index(self.blocks[0])) == 0:
                raise ScheduleError(
                    f"{where}.group begins with {self.blocks[0]}, the first block; signal {part.signal!r} reads the "
                    "block before the group: leave the first block out, or use modulated_input or model_input"
                )
            before = order[place - 1]
        poly = () if part.poly in (None, [1.0, 0.0]) else tuple(part.poly or ())
        return replace(
            self, then=part.then, signal=part.signal, threshold=threshold, accumulate=part.accumulate, poly=poly,
            max_run=max_run, most=most, before=before,
        )  # fmt: skip

    def _tabulated(self, then: str, threshold: Sequence[float], table: Sequence[float], max_run: int | None) -> Tokens:
        """MagCache's rule: pass while the running product of ratios stays near 1, by its summed distances."""
        decided, computed = list(self.tokens), 0
        product, error, run = 1.0, 0.0, 0
        for step, token in enumerate(self.tokens):
            computed = 0 if step in self.barriers else computed
            if token == ASK:
                product *= table[step]
                error += abs(1 - product)
                enough = computed >= values_read(then) and (max_run is None or run < max_run)
                decided[step] = then if enough and error < threshold[step] else OFF
            if decided[step] == OFF:
                product, error, run, computed = 1.0, 0.0, 0, computed + 1
            elif decided[step] != ABSENT:
                run += 1
        return tuple(decided)

    def _check(self, branch: str | None, where: str) -> None:
        """Raise ScheduleError where an action reads more values than are certainly computed before it."""
        for step, token, (least, _) in self._computed(branch):
            if token == ASK and self.most is not None and least < values_read(self.then):
                raise ScheduleError(
                    f"{where}.most is {self.most}, but at step {step} the gate may have fewer than the "
                    f"{values_read(self.then)} value(s) that {self.then} reads, and has to compute; put "
                    f"{values_read(self.then) - least} more C before it"
                )
            if token not in (ASK, OFF, ABSENT) and least < values_read(token):
                raise ScheduleError(
                    f"{where}: {self.name} at step {step} is {token}, which reads {values_read(token)} computed "
                    f"value(s), but {least} certainly came before; put {values_read(token) - least} more C before it"
                )

    def _simplified(self, branch: str | None) -> "Gate":
        """The same behaviour without steps G at which nothing is decided."""
        tokens = list(self.tokens)
        for step, token, (_, most) in self._computed(branch):
            if token == ASK and self.most == 0:
                tokens[step] = self.then
            elif token == ASK and (most < values_read(self.then) or (self.threshold[step] <= 0 and self.most is None)):
                tokens[step] = OFF
        if ASK not in tokens:
            reads = any(values_read(token) for token in tokens)
            return Gate(self.blocks, self.name, tuple(tokens), self.residual and reads, barriers=self.barriers)
        threshold = tuple(v if t == ASK else 0.0 for v, t in zip(self.threshold, tokens, strict=True))
        return replace(self, tokens=tuple(tokens), threshold=threshold)

    def _computed(self, branch: str | None) -> Iterable[tuple[int, str, tuple[int, int]]]:
        """Each step, its token, and how often the group was computed before it: at least and at most.

        Where guidance computes one half at some steps, a full step counts what was computed of both halves.
        """
        least, most = [0, 0], [0, 0]  # of both halves, of the conditional one
        for step, token in enumerate(self.tokens):
            if step in self.barriers:
                least, most = [0, 0], [0, 0]
            full = branch is None or branch[step] == FULL
            yield step, token, (least[not full], most[not full])
            certain = token == OFF or (token == ASK and least[not full] < values_read(self.then))
            for half in (0, 1) if full else (1,):
                least[half] += certain
                most[half] += token in (OFF, ASK)


def _check_plan(gate: Gate, tree: Tree, plan: Plan | None, where: str) -> None:
    """Raise ScheduleError where the plan has rules for the group's nodes, or does not compute what its signal reads."""
    if plan is None:
        return
    planned = set(plan.planned())
    inside = planned & nodes_inside(gate.blocks, tree)
    if clash := next((node.name for node in tree if node.name in inside), None):
        raise ScheduleError(
            f"{where}: the plan has a rule for {clash}, and the gate decides {gate.name}; leave one of them out"
        )
    for step, token in enumerate(plan.tokens[gate.before] if gate.before else ()):
        if gate.tokens[step] in (OFF, ASK) and token != OFF:
            raise ScheduleError(
                f"{where}: its signal reads {gate.before}, which the plan does not compute at step {step} ({token}); "
                "compute it, or use signal modulated_input or model_input"
            )
