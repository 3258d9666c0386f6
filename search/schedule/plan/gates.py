"""Gates: runs of blocks whose action is decided while the denoiser runs, with a bound on what they may cost.

A group is a run of blocks that follow each other, across stacks too. At a step C it is computed, at R or F1..F9 its
value is reused or forecast, at G its gate is asked: it passes where its signal changed by less than a threshold, and
then the group does what `then` says; else it is computed. Without G a group is static, and nothing is measured.

Signals: `first_block_forecast`, the error of the forecast of what enters the group (CG-Taylor, arXiv:2508.02240);
`first_block_residual`, what the block before the group adds (First Block Cache of ParaAttention, DBCache);
`modulated_input`, what enters the group's first component after norm and modulation (TeaCache, arXiv:2411.19108);
`model_input`, the denoiser's input; `table`, no signal but the schedule's own numbers (MagCache, arXiv:2506.09045),
which is decided here and now: such a group is static.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from search.schedule.errors import ScheduleError
from search.schedule.model.nodes import ROOT, Tree
from search.schedule.parts.gates import ASK, OF_BEFORE, GatePart
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
    format_ranges,
    parse_actions,
    shortest_actions,
    values_read,
)


@dataclass(frozen=True)
class Gate:
    """One group and its rule, checked: every action has the values that it reads.

    `tokens` [T] are "-" where the denoiser is not computed. `threshold` [T]; `before` is the block before the group
    where the signal reads it. At most `max_run` steps in a row are not computed, and at most `most` steps G of a
    run are: from then on the gate passes whatever it sees. Behind a step of `barriers` nothing from before is read.
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
        """A part of the file, in its simplest form; ScheduleError names what is wrong. `branch` is of guidance."""
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
        return set(self.tokens) <= {OFF, ABSENT}

    @property
    def is_static(self) -> bool:
        """Whether nothing is decided while the denoiser runs."""
        return ASK not in self.tokens

    @property
    def forecasts(self) -> bool:
        """Whether it matters where the axis places the steps."""
        return any(token[0] == "F" for token in self.actions)

    @property
    def actions(self) -> set[str]:
        """All that the group may do."""
        return set(self.tokens) - {ASK, ABSENT} | (set() if self.is_static else {OFF, self.then})

    def text(self, tree: Tree) -> str:
        """Its group and its actions in the plan notation, `transformer_blocks@1-7: C*4 G*15 C`."""
        return f"{format_places(self.blocks, tree)}: {shortest_actions(tuple(self._written()))}"

    def _written(self) -> list[str]:
        return [OFF if token == ABSENT else token for token in self.tokens]

    def normal(self) -> dict[str, Any]:
        """The part of the file, only with what it does."""
        body: dict[str, Any] = {
            "group": self.name,
            "actions": format_actions(self._written()),
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

    # What it costs

    def worst(self, share: Sequence[float]) -> list[bool]:
        """The steps [T] that are computed in the worst case, where a step computes this share of the batch."""
        asked = sorted((t for t, token in enumerate(self.tokens) if token == ASK), key=lambda t: -share[t])
        computed = set(asked if self.most is None else asked[: self.most])
        return [token == OFF or t in computed for t, token in enumerate(self.tokens)]

    def held(self, there: Sequence[bool]) -> tuple[list[int], list[int]]:
        """How many values, and how many signals, later steps may read after each step [T].

        `there` says at which steps a part of the batch is computed: what holds for one half need not for the other.
        """
        needs = [values_read(self.then if token == ASK else token) for token in self.tokens]
        computed = [token == OFF for token in self.tokens]
        asks = [token == ASK for token in self.tokens]
        reads = values_read(self.then) if self.signal == "first_block_forecast" else 1
        kept = [c or (self.stepwise and a) for c, a in zip(computed, asks, strict=True)]
        return self._held(computed, needs, there), self._held(kept, [reads * a for a in asks], there)

    def most_held(self, there: Sequence[bool]) -> tuple[list[int], list[int]]:
        """The same, no more than can have been computed by then: a bound on what is kept."""
        seen = 0
        bounds: tuple[list[int], list[int]] = [], []
        for t, counts in enumerate(zip(*self.held(there), strict=True)):
            seen = (0 if t in self.barriers else seen) + (there[t] and self.tokens[t] in (OFF, ASK))
            for bound, count in zip(bounds, counts, strict=True):
                bound.append(min(count, seen))
        return bounds

    @property
    def stepwise(self) -> bool:
        """Whether the signal is compared with that of the step before, not of the last computed one."""
        return self.accumulate and self.signal != "first_block_forecast"

    def _held(self, certain: Sequence[bool], needs: Sequence[int], there: Sequence[bool]) -> list[int]:
        """After each step, how many values of up to then later steps read, where only some computations are certain."""
        kept, wanted = [0] * len(needs), 0
        for step in reversed(range(len(needs))):
            kept[step] = wanted
            if there[step]:
                wanted = max(needs[step], wanted - certain[step])
            if step in self.barriers:
                wanted = 0
        return kept

    # How a part becomes a gate

    def _asking(self, part: GatePart, tree: Tree, steps: int, where: str) -> "Gate":
        if part.signal is None or part.threshold is None:
            raise ScheduleError(
                f"{where} asks at steps G; give signal, for example 'first_block_residual', and threshold"
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
                    "entries, and no most: what a table decides is known"
                )
            return replace(self, tokens=self._tabulated(part.then, threshold, part.table, max_run))
        before = ""
        if part.signal in OF_BEFORE:
            order = _order(tree)
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
        found, computed = list(self.tokens), 0
        product, error, run = 1.0, 0.0, 0
        for step, token in enumerate(self.tokens):
            computed = 0 if step in self.barriers else computed
            if token == ASK:
                product *= table[step]
                error += abs(1 - product)
                enough = computed >= values_read(then) and (max_run is None or run < max_run)
                found[step] = then if enough and error < threshold[step] else OFF
            if found[step] == OFF:
                product, error, run, computed = 1.0, 0.0, 0, computed + 1
            elif found[step] != ABSENT:
                run += 1
        return tuple(found)

    def _check(self, branch: str | None, where: str) -> None:
        """ScheduleError where an action reads more than was computed before it for certain."""
        for step, token, (least, _) in self._computed(branch):
            if token == ASK and self.most is not None and least < values_read(self.then):
                raise ScheduleError(
                    f"{where}.most is {self.most}, but at step {step} the gate may have fewer than the "
                    f"{values_read(self.then)} value(s) that {self.then} reads, and has to compute; put "
                    f"{values_read(self.then) - least} more C before it"
                )
            if token not in (ASK, OFF, ABSENT) and least < values_read(token):
                raise ScheduleError(
                    f"{where}: {self.name} at step {step} is {token}, which reads {values_read(token)} "
                    "computed value(s), "
                    f"but {least} came before for certain; put {values_read(token) - least} more C before it"
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


def group_of_blocks(text: str, tree: Tree, where: str = "group") -> tuple[str, ...]:
    """The blocks that `transformer_blocks.[1-3]+single_transformer_blocks.*` means, in the order of execution."""
    names: list[str] = []
    for selector in text.split("+"):
        try:
            selected = tree.select(selector.strip())
        except ScheduleError as error:
            raise ScheduleError(f"{where}: {error}") from None
        for name in selected:
            node = tree.nodes[name]
            inner = [n.name for n in tree if n.kind == "block" and n.parent == name] if node.kind == "stack" else [name]
            if node.kind not in ("stack", "block"):
                raise ScheduleError(f"{where}: {name} is a {node.kind}; a group is made of blocks, such as STACK.[1-3]")
            if not tree.stack(node.stack).outputs:
                raise ScheduleError(
                    f"{where}: the blocks of {node.stack} are not a chain that could be left out together"
                )
            names += inner
    order = _order(tree)
    places = [order.index(name) for name in names]
    if places != list(range(places[0], places[0] + len(places))):
        raise ScheduleError(f"{where}: {text[:80]!r} are not blocks that follow each other; give a run of blocks")
    streams = {frozenset(tree.stack(tree.nodes[name].stack).outputs) for name in names}
    if len(streams) > 1:
        raise ScheduleError(
            f"{where}: the stacks of {text[:80]!r} pass on unlike values: {sorted(map(sorted, streams))}"
        )
    return tuple(names)


def undecided_tokens(tokens: Mapping[str, Tokens], gates: Iterable[Mapping[str, Any]], tree: Tree) -> dict[str, Tokens]:
    """The actions of those nodes that these gates, as the file has them, neither decide nor read: a gate wins."""
    own: set[str] = set()
    order = _order(tree)
    for part in gates:
        blocks = group_of_blocks(part["group"], tree)
        before = order[order.index(blocks[0]) - 1] if part.get("signal") in OF_BEFORE else blocks[0]
        own |= _inside(blocks, tree) | {before, tree.nodes[before].stack}
    return {name: actions for name, actions in tokens.items() if name not in own}


def check_gates(gates: Sequence[Gate]) -> None:
    """ScheduleError where two groups share a block, or the signal of one lies in another."""
    owner: dict[str, str] = {}
    for gate in gates:
        for block in gate.blocks:
            if block in owner:
                raise ScheduleError(f"gates {owner[block]} and {gate.name} share {block}; a block has one gate")
            owner[block] = gate.name
    for gate in gates:
        if gate.before in owner:
            raise ScheduleError(
                f"gates: the signal of {gate.name} reads {gate.before}, which the gate of {owner[gate.before]} may "
                "leave out; use signal modulated_input or model_input, or one group of both"
            )


def _check_plan(gate: Gate, tree: Tree, plan: Plan | None, where: str) -> None:
    """ScheduleError where the plan says what the gate decides, or leaves out what its signal reads."""
    if plan is None:
        return
    planned = set(plan.planned())
    inside = planned & _inside(gate.blocks, tree)
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


def _inside(blocks: Sequence[str], tree: Tree) -> set[str]:
    """The blocks, all that lies in them, and the stacks around them."""
    return {n.name for n in tree if f"{n.stack}.{n.block}" in blocks} | {tree.nodes[block].stack for block in blocks}


def _order(tree: Tree) -> list[str]:
    return [node.name for node in tree if node.kind == "block"]


def block_selector(blocks: Sequence[str], tree: Tree) -> str:
    """The canonical text of a group."""
    found: dict[str, list[int]] = {}
    for block in blocks:
        found.setdefault(tree.nodes[block].stack, []).append(tree.nodes[block].block)
    return "+".join(f"{stack}.{format_ranges(indices, tree.stacks[stack])}" for stack, indices in found.items())
