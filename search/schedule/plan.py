"""The plan: for every node one action per step, written as short rules.

Actions: C compute, R reuse the last computed value, F1..F9 forecast of that order, S skip. A node whose
ancestor is not computed does not run at that step; internally that is "-".

Where other denoisers run at some steps, `at` [T] names one per step, L the pipeline's own; "" is L throughout. Nodes
are those of L. Only the denoiser as a whole has an action at the steps of another one.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from search.schedule.errors import ScheduleError
from search.schedule.nodes import ROOT, Tree

MAX_STEPS = 10_000
MAX_ACTIONS = 2_000_000  # steps x nodes; 1000 steps of 28 blocks are 114,000
OFF, ABSENT = "C", "-"
OWN = "L"  # the pipeline's own denoiser
Tokens = tuple[str, ...]

_TERM = re.compile(r"\s*(?:(C|R|S|G|F[1-9])|(\()|(\)))(?:\s*\*\s*(\d+))?", re.ASCII)


def parse_actions(text: str, steps: int, where: str = "plan", letters: str = "CRS") -> Tokens:
    """`C*4 (C F1)*8` as a tuple of `steps` tokens; never builds more than `steps` of them.

    `letters` are the actions that are admissible here, besides F1..F9.
    """
    stack: list[list[str]] = [[]]
    position = 0
    while position < len(text):
        match = _TERM.match(text, position)
        if match is None and not text[position:].strip():
            break
        if match is None or (match[1] and match[1][0] not in f"F{letters}"):
            raise ScheduleError(
                f"{where}: {text[position : position + 12]!r} is no action; use {', '.join(letters)}, F1..F9, "
                "repeated as 'R*7' or '(C R)*4'"
            )
        token, opens, closes, times = match.groups()
        if times is not None and (opens or len(times) > 5):
            raise ScheduleError(f"{where}: cannot repeat {times!r} times; at most {steps} steps are planned")
        count = int(times) if times is not None else 1
        if opens:
            if len(stack) > 8:
                raise ScheduleError(f"{where}: parentheses are nested more than 8 deep")
            stack.append([])
        elif closes:
            if len(stack) == 1:
                raise ScheduleError(f"{where}: ')' without '(' in {text[:40]!r}")
            inner = stack.pop()
            _extend(stack[-1], inner, count, steps, where)
        else:
            _extend(stack[-1], [token], count, steps, where)
        position = match.end()
    if len(stack) > 1:
        raise ScheduleError(f"{where}: '(' without ')' in {text[:40]!r}")
    if len(stack[0]) != steps:
        raise ScheduleError(f"{where}: {len(stack[0])} actions for {steps} steps in {text[:40]!r}")
    return tuple(stack[0])


def _extend(out: list[str], tokens: list[str], count: int, steps: int, where: str) -> None:
    if len(out) + len(tokens) * count > steps:
        raise ScheduleError(f"{where}: more than the schedule's {steps} steps are planned")
    out += tokens * count


def format_actions(tokens: Iterable[str]) -> str:
    """The canonical text: runs of four and more as `R*7`, everything else spelt out."""
    runs: list[tuple[str, int]] = []
    for token in tokens:
        if runs and runs[-1][0] == token:
            runs[-1] = (token, runs[-1][1] + 1)
        else:
            runs.append((token, 1))
    words = [f"{t}*{n}" if n > 3 else t * n for t, n in runs]
    text = ""
    for word in words:
        text += (" " if text and ("*" in word or "*" in text.rsplit(" ", 1)[-1]) else "") + word
    return text


@dataclass(frozen=True)
class Plan:
    """Effective actions of every node: `tokens[name][t]`, "-" where an ancestor is not computed."""

    tree: Tree
    steps: int
    tokens: Mapping[str, Tokens]
    at: str = ""

    @classmethod
    def resolve(cls, rules: Sequence[tuple[str, str]], tree: Tree, steps: int, at: str = "") -> "Plan":
        """Expand rules (the later wins), apply the precedence of ancestors and check what is read."""
        chosen: dict[str, Tokens] = {}
        texts: dict[str, Tokens] = {}  # many nodes share few texts
        work = 0
        for i, (selector, text) in enumerate(rules):
            if text not in texts:
                texts[text] = parse_actions(text, steps, f"plan.rules[{i}] {selector[:80]!r}")
            try:
                names = tree.select(selector)
            except ScheduleError as error:
                raise ScheduleError(f"plan.rules[{i}]: {error}") from None
            work += len(names)
            if work > MAX_ACTIONS:
                raise ScheduleError(f"plan.rules[{i}]: the rules select more than {MAX_ACTIONS} nodes in all")
            chosen.update(dict.fromkeys(names, texts[text]))
        off = (OFF,) * steps
        effective: dict[str, Tokens] = {}
        for node in tree:
            own = chosen.get(node.name, off)
            if node.parent is not None:
                above = effective[node.parent]
                if at and node.parent == ROOT:
                    above = tuple(a if name == OWN else ABSENT for a, name in zip(above, at, strict=True))
                if above != off:
                    own = tuple(t if a == OFF else ABSENT for t, a in zip(own, above, strict=True))
            effective[node.name] = own
        plan = cls(tree, steps, effective, at)
        plan._check()
        return plan

    def _check(self) -> None:
        barriers = switches(self.at)
        for name, tokens in self.tokens.items():
            computed = began = 0
            skippable = "S" not in tokens or self.tree.skipped(self.tree.nodes[name]) is not None
            for step, token in enumerate(tokens):
                if step in barriers:
                    computed, began = 0, step
                if token == OFF:
                    computed += 1
                elif token == "S" and not skippable:
                    raise ScheduleError(f"plan: {name} cannot be skipped at step {step}; use R or F1")
                elif (needs := history(token)) > computed:
                    raise ScheduleError(
                        f"plan: {name} at step {step} is {token}, which reads {needs} computed value(s), but "
                        f"{computed} came before{since(began)}; put {needs - computed} more C before it"
                    )

    @property
    def is_off(self) -> bool:
        return all(token == OFF for tokens in self.tokens.values() for token in tokens)

    def planned(self) -> list[str]:
        """Names of the nodes that do anything but compute."""
        return [n for n, tokens in self.tokens.items() if any(t not in (OFF, ABSENT) for t in tokens)]

    def last_use(self, name: str) -> dict[int, int]:
        """For each step whose computed value is read later: the last step that reads it."""
        tokens = self.tokens[name]
        return last_uses([token == OFF for token in tokens], [history(token) for token in tokens])

    def rules(self) -> list[tuple[str, str]]:
        """The canonical rules: nodes of equal actions share one selector, off is left out."""
        off = (OFF,) * self.steps
        rules: list[tuple[str, str]] = []
        for kind in ("denoiser", "stack", "block", "component"):
            groups: dict[tuple[str, str, Tokens], list[int]] = {}
            for node in self.tree:
                tokens = tuple(OFF if t == ABSENT else t for t in self.tokens[node.name])
                if node.kind == kind and tokens != off:
                    groups.setdefault((node.stack, node.component, tokens), []).append(node.block)
            for (stack, component, tokens), blocks in sorted(groups.items(), key=_order):
                selector = ROOT if kind == "denoiser" else stack
                if kind in ("block", "component"):
                    selector += "." + ranges(blocks, self.tree.stacks[stack])
                if component:
                    selector += f":{component}"
                rules.append((selector, format_actions(tokens)))
        return rules


def history(token: str) -> int:
    """How many computed values an action reads: 1 for R, k+1 for Fk, 0 for the others."""
    return 1 if token == "R" else int(token[1]) + 1 if token[0] == "F" else 0


def switches(at: str) -> frozenset[int]:
    """The steps at which another denoiser runs than at the step before: behind them nothing from before is read."""
    return frozenset(step for step in range(1, len(at)) if at[step] != at[step - 1])


def since(step: int) -> str:
    """Words for what began with the switch at a step; none where that is the first step."""
    return f" since models.at changed at step {step}" if step else ""


def last_uses(computes: Sequence[bool], needs: Sequence[int]) -> dict[int, int]:
    """For each computing step whose value is read later: the last step that reads it.

    Step t reads the latest `needs[t]` computed values.
    """
    uses: dict[int, int] = {}
    computed: list[int] = []
    for step, (computing, count) in enumerate(zip(computes, needs, strict=True)):
        if computing:
            computed.append(step)
        for source in computed[len(computed) - count :] if count else ():
            uses[source] = step
    return uses


def _order(item: tuple[tuple[str, str, Tokens], list[int]]) -> tuple:
    (stack, component, tokens), blocks = item
    return stack, component, blocks, tokens


def ranges(blocks: list[int], size: int) -> str:
    """Blocks as a selector has them: `*`, `3` or `[0-2,5]`."""
    if len(blocks) == size:
        return "*"
    if len(blocks) == 1:
        return str(blocks[0])
    parts: list[str] = []
    start = previous = blocks[0]
    for block in [*blocks[1:], -1]:
        if block != previous + 1:
            parts.append(str(start) if start == previous else f"{start}-{previous}")
            start = block
        previous = block
    return f"[{','.join(parts)}]"
