"""The plan: for every node one action per step, written as short rules.

Actions: C compute, R reuse the last computed value, F1..F9 forecast of that order, S skip. A node whose
ancestor is not computed does not run at that step; its token is then "-".

Where other denoisers run at some steps, `at` [T] names one per step, L the pipeline's own; "" is L throughout. Nodes
are those of L. Only the denoiser as a whole has an action at the steps of another one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from search.schedule.errors import ScheduleError
from search.schedule.model.nodes import ROOT, Tree
from search.schedule.plan.notation import format_notation, format_places, parse_notation
from search.schedule.plan.tokens import (
    ABSENT,
    MAX_ACTIONS,
    OFF,
    OWN,
    Tokens,
    denoiser_switches,
    format_actions,
    format_ranges,
    last_uses,
    parse_actions,
    shortest_actions,
    steps_since_switch,
    values_read,
)

MAX_ROW = 120  # characters of a node's actions in an error


@dataclass(frozen=True)
class Plan:
    """Effective actions of every node: `tokens[name][t]`, "-" where an ancestor is not computed."""

    tree: Tree
    steps: int
    tokens: Mapping[str, Tokens]
    at: str = ""

    @classmethod
    def parse(cls, text: str, tree: Tree, steps: int, at: str = "") -> "Plan":
        """The plan that a text in the plan notation means; `str(plan)` writes the shortest such text.

        ScheduleError names the character of the text, or the node and the step, that is wrong.

        >>> tree = Tree("PixArtTransformer2DModel", {"transformer_blocks": 28})
        >>> str(Plan.parse("ff@0-27: CRCRCRCR | attn1: C*8", tree, 8))
        'ff: (C R)*4'
        """
        return cls.resolve(parse_notation(text, tree, steps), tree, steps, at)

    def __str__(self) -> str:
        return format_notation(self.tokens, self.tree)

    @classmethod
    def resolve(cls, rules: Sequence[tuple[str, str]], tree: Tree, steps: int, at: str = "") -> "Plan":
        """Expand rules, apply the precedence of ancestors and check that the values that are read are computed before.

        Args:
            rules: Pairs of a selector (`Tree.select`) and actions, `("transformer_blocks.*:attn1", "(C R)*4")`; a
                later rule takes precedence over earlier ones.
            tree: The nodes of the denoiser.
            steps: How many steps a run has.
            at: The denoiser of each step by its letter [steps], "" where it is the pipeline's own throughout.

        Raises:
            ScheduleError: A selector or an action is wrong; the rule, or the node and the step, is named.
        """
        chosen: dict[str, Tokens] = {}
        texts: dict[str, Tokens] = {}  # many nodes share few texts
        selected: dict[str, list[str]] = {}
        work = 0
        for i, (selector, text) in enumerate(rules):
            if text not in texts:
                texts[text] = parse_actions(text, steps, f"plan.rules[{i}] {selector[:80]!r}")
            if selector not in selected:
                try:
                    selected[selector] = tree.select(selector)
                except ScheduleError as error:
                    raise ScheduleError(f"plan.rules[{i}]: {error}") from None
            names = selected[selector]
            work += len(names)
            if work > MAX_ACTIONS:
                raise ScheduleError(f"plan.rules[{i}]: the rules select more than {MAX_ACTIONS} nodes in all")
            chosen.update(dict.fromkeys(names, texts[text]))
        off = (OFF,) * steps
        effective: dict[str, Tokens] = {}
        for node in tree:
            tokens = chosen.get(node.name, off)
            if node.parent is not None:
                above = effective[node.parent]
                if at and node.parent == ROOT:
                    above = tuple(a if name == OWN else ABSENT for a, name in zip(above, at, strict=True))
                if above != off:
                    tokens = tuple(t if a == OFF else ABSENT for t, a in zip(tokens, above, strict=True))
            effective[node.name] = tokens
        plan = cls(tree, steps, effective, at)
        plan._check()
        return plan

    def _check(self) -> None:
        barriers = denoiser_switches(self.at)
        for name, tokens in self.tokens.items():
            computed = began = 0
            skippable = "S" not in tokens or self.tree.skipped(self.tree.nodes[name]) is not None
            for step, token in enumerate(tokens):
                if step in barriers:
                    computed, began = 0, step
                if token == OFF:
                    computed += 1
                elif token == "S" and not skippable:
                    raise ScheduleError(
                        f"plan: {name} cannot be skipped at step {step}; use R or F1; {self._row(name)}"
                    )
                elif (needs := values_read(token)) > computed:
                    raise ScheduleError(
                        f"plan: {name} at step {step} is {token}, which reads {needs} computed value(s), but "
                        f"{computed} came before{steps_since_switch(began)}; put {needs - computed} more C before it; "
                        f"{self._row(name)}"
                    )

    def _row(self, name: str) -> str:
        """For an error: all actions of a node."""
        tokens = self.tokens[name]
        hint = "; at the steps - a node around it is not computed" if ABSENT in tokens else ""
        row = f"{format_places([name], self.tree)}: {shortest_actions(tokens)}"
        return f"its actions are {row[:MAX_ROW]!r}{hint}"

    @property
    def is_off(self) -> bool:
        """Whether every node is computed at every step."""
        return all(token == OFF for tokens in self.tokens.values() for token in tokens)

    def planned(self) -> list[str]:
        """Names of the nodes that reuse, forecast or skip at some step."""
        return [n for n, tokens in self.tokens.items() if any(t not in (OFF, ABSENT) for t in tokens)]

    def last_use(self, name: str) -> dict[int, int]:
        """For each step whose computed value is read later: the last step that reads it."""
        tokens = self.tokens[name]
        return last_uses([token == OFF for token in tokens], [values_read(token) for token in tokens])

    def rules(self) -> list[tuple[str, str]]:
        """The canonical rules of the file: nodes of equal actions share a selector; nodes that are off have no rule."""
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
                    selector += "." + format_ranges(blocks, self.tree.stacks[stack])
                if component:
                    selector += f":{component}"
                rules.append((selector, format_actions(tokens)))
        return rules


def _order(item: tuple[tuple[str, str, Tokens], list[int]]) -> tuple[str, str, list[int], Tokens]:
    (stack, component, tokens), blocks = item
    return stack, component, blocks, tokens
