"""The plan notation: the actions of a plan as one line of text that people read and type.

`attn1: (C R)*10 | ff@0-3: C R*19` reads: attn1 of all blocks is computed and reused in turn, ff of the blocks 0 to 3 is
computed once and then reused; everything else is computed at each of the 20 steps. The grammar (EBNF, white space is
free between all of its symbols):

    plan      = "off" | rule { "|" rule }           a later rule replaces an earlier one of the same node
    rule      = place { "+" place } ":" actions     these places have these actions, one for each step
    place     = "denoiser"                          the denoiser as a whole
              | STACK                               a stack of blocks as a whole
              | STACK "@" blocks                    whole blocks of a stack
              | [ STACK "/" ] COMPONENT [ "@" blocks ]   without STACK: in each stack that has this component
    blocks    = "*" | range { "," range }           numbered from 0; without "@", all blocks
    range     = NUMBER [ "-" NUMBER ]
    actions   = action { action }
    action    = ( "C" | "R" | "S" | "F1" … "F9" | "(" actions ")" ) [ "*" NUMBER ]

C compute, R reuse, F1..F9 forecast of that order, S skip. "off" computes everything. A COMPONENT may have "*" for
parts of its name (`resnets.*`), and "*" alone are all components that lie in no other one. Where a stack and a
component share a name, the name alone means the stack.

The file keeps the same plan as `plan.rules`, pairs of a selector and its actions: `parse_notation` gives these, and
`format_notation` writes the shortest text from what every node does.
"""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

from search.schedule.errors import ScheduleError
from search.schedule.model.nodes import ROOT, Node, Tree
from search.schedule.plan.tokens import ABSENT, OFF, Tokens, format_ranges, parse_actions, shortest_actions

ALL_COMPUTED = "off"
MAX_LISTED = 12  # names that an error lists
_NUMBERS = re.compile(r"(\d{1,5})\s*(?:-\s*(\d{1,5}))?", re.ASCII)


def parse_notation(text: str, tree: Tree, steps: int) -> list[tuple[str, str]]:
    """The rules that a text means, pairs of a selector and actions as `plan.rules` of the file has them.

    `steps` is the number of actions that each rule has to give. ScheduleError names the character of the text, counted
    from 1, what is admissible there and what to type.

    >>> from search.schedule.model.nodes import Tree
    >>> tree = Tree("PixArtTransformer2DModel", {"transformer_blocks": 28})
    >>> parse_notation("attn1 + ff@0-3: (C R)*2", tree, 4)
    [('transformer_blocks.*:attn1', '(C R)*2'), ('transformer_blocks.[0-3]:ff', '(C R)*2')]
    """
    if text.strip() == ALL_COMPUTED:
        return []
    rules: list[tuple[str, str]] = []
    for start, rule in _split(text, "|"):
        places, colon, actions = rule.partition(":")
        if not colon:
            raise ScheduleError(
                f"{_where(start, rule)}: a rule is a place, ':' and its actions, separated by '|' from the next rule; "
                f"type {_example(tree, steps)!r}, or 'off' for a plan that computes everything"
            )
        for offset, place in _split(places, "+"):
            rules += [(selector, actions.strip()) for selector in _selectors(place, start + offset, tree, steps)]
        parse_actions(actions, steps, _where(start, places.strip()))
    return rules


def format_notation(tokens: Mapping[str, Sequence[str]], tree: Tree) -> str:
    """The shortest text, the same for equal plans, of what each node does: `tokens[name][t]` of `Plan`.

    Nodes that are computed at all steps are left out.

    >>> from search.schedule.model.nodes import Tree
    >>> tree = Tree("PixArtTransformer2DModel", {"transformer_blocks": 28})
    >>> format_notation({f"transformer_blocks.{i}:ff": ("C", "R", "R", "R") for i in range(4)}, tree)
    'ff@0-3: C R*3'
    """
    return " | ".join(f"{place}: {actions}" for place, actions in notation_rules(tokens, tree)) or ALL_COMPUTED


def notation_rules(tokens: Mapping[str, Sequence[str]], tree: Tree) -> list[tuple[str, str]]:
    """The rules of `format_notation`, each as its places and its actions, in the order of execution."""
    alike: dict[Tokens, list[str]] = {}
    for node in tree:
        actions = tuple(OFF if t == ABSENT else t for t in tokens.get(node.name, ()))
        if set(actions) - {OFF}:
            alike.setdefault(actions, []).append(node.name)
    return [(format_places(names, tree), shortest_actions(actions)) for actions, names in alike.items()]


def format_places(names: Sequence[str], tree: Tree) -> str:
    """The shortest text for these nodes of a tree, in their order: `attn1 + ff@0-3`."""
    wanted, written = frozenset(names), set[str]()
    places: dict[str, list[int]] = {}  # with the blocks of a place that ends in "@"
    for name in names:
        node = tree.nodes[name]
        if node.kind == "block":
            places.setdefault(f"{node.stack}@", []).append(node.block)
        elif not node.component:
            places[name] = []
        elif name not in written:
            place, inside = _component_place(node, wanted, tree)
            written |= inside
            places.setdefault(place, []).extend([node.block] if place[-1] == "@" else [])
    return " + ".join(
        place + (format_ranges(sorted(blocks), tree.stacks.get(place[:-1], 0)).strip("[]") if blocks else "")
        for place, blocks in places.items()
    )


def _component_place(node: Node, wanted: frozenset[str], tree: Tree) -> tuple[str, frozenset[str]]:
    """The widest place of a component that means only wanted nodes, and these; with "@" where it needs blocks."""
    pattern = re.sub(r"(?<=\.)\d+", "*", node.component)
    names = dict.fromkeys(
        [pattern, node.component] if pattern in tree.stack(node.stack).components else [node.component]
    )
    options = [(name, name, [*tree.stacks]) for name in names if not _hidden(name, tree)]
    options += [(name, _with_stack(name, node.stack, tree), [node.stack]) for name in names]
    for name, place, stacks in options:
        inside = frozenset(inner for stack in stacks for inner in _named(stack, name, tree))
        if inside <= wanted:
            return place, inside
    return f"{_with_stack(node.component, node.stack, tree)}@", frozenset([node.name])


def _with_stack(component: str, stack: str, tree: Tree) -> str:
    alone = _stacks_with(component, tree) == [stack] and not _hidden(component, tree)
    return component if alone else f"{stack}/{component}"


def _hidden(component: str, tree: Tree) -> bool:
    """Whether the name alone means something else."""
    return component == ROOT or component in tree.stacks


def _split(text: str, mark: str) -> Iterator[tuple[int, str]]:
    """The parts of a text between marks, each without white space around it and with the place where it begins."""
    start = 0
    for part in text.split(mark):
        yield start + len(part) - len(part.lstrip()), part.strip()
        start += len(part) + 1


def _where(start: int, text: str) -> str:
    return f"plan notation, character {start + 1}, {text[:40]!r}"


def _example(tree: Tree, steps: int) -> str:
    component = next((s.components[0] for s in tree.stack_contracts if s.components), ROOT)
    return f"{component}: " + ("C" if steps < 2 else "C R" if steps == 2 else f"C R*{steps - 1}")


def _selectors(place: str, start: int, tree: Tree, steps: int) -> list[str]:
    """The selectors of one place; of a component without a stack, one for each stack that has it."""
    name, at, numbers = (part.strip() for part in place.partition("@"))
    head, slash, component = (part.strip() for part in name.partition("/"))
    where = _where(start, place)
    if name == ROOT and not at:
        return [ROOT]
    if not slash and head in tree.stacks:
        if not at and not tree.stack(head).outputs:
            raise ScheduleError(
                f"{where}: the blocks of {head} do not form a chain that can be planned as a whole; type '{head}@*' "
                "for all its blocks"
            )
        return [f"{head}.{_blocks(numbers, head, where, tree)}" if at else head]
    if not slash:
        head, component = "", head
    stacks = [stack for stack in _stacks_with(component, tree) if head in ("", stack)]
    if not stacks:
        names = [ROOT, *tree.stacks, *dict.fromkeys(c for s in tree.stack_contracts for c in s.components)]
        near = difflib.get_close_matches(component[:80], names, 1)
        listed = ", ".join(names[:MAX_LISTED]) + (", …" if len(names) > MAX_LISTED else "")
        hint = f"; the nearest name is {near[0]!r}" if near else ""
        raise ScheduleError(
            f"{where}: {tree.model_class} has no place of this name; there are {listed}{hint}; type a stack or a "
            f"component, with blocks after '@', for example {_example(tree, steps)!r}"
        )
    if numbers not in ("", "*") and len(stacks) > 1:
        raise ScheduleError(
            f"{where}: {component} is in the stacks {' and '.join(stacks)}, which number their blocks separately; type "
            f"'{stacks[0]}/{component}@{numbers[:20]}'"
        )
    if at:
        chosen = _blocks(numbers, stacks[0], where, tree)
        if not _select(stacks[0], chosen, component, tree):
            having = sorted({tree.nodes[name].block for name in _named(stacks[0], component, tree)})
            raise ScheduleError(
                f"{where}: none of these blocks of {stacks[0]} has {component}; the blocks "
                f"{format_ranges(having, 0).strip('[]')} have it"
            )
    return [f"{stack}.{chosen if at else '*'}:{component}" for stack in stacks]


def _blocks(numbers: str, stack: str, where: str, tree: Tree) -> str:
    """Block numbers as a selector has them, `*` or `[0-3,7]`."""
    size = tree.stacks[stack]
    if numbers == "*":
        return "*"
    parts = []
    for part in numbers.split(","):
        match = _NUMBERS.fullmatch(part.strip())
        if match is None or not int(match[1]) <= int(match[2] or match[1]) < size:
            raise ScheduleError(
                f"{where}: {part.strip()[:20]!r} is not a block or a range of blocks of {stack}, which are numbered 0 "
                f"to {size - 1}; type '@0', '@0-{size - 1}', '@*' or several, joined by commas"
            )
        parts.append("-".join(filter(None, match.groups())))
    return f"[{','.join(parts)}]"


def _select(stack: str, blocks: str, component: str, tree: Tree) -> list[str]:
    """Names of the nodes of a selector; none where it means nothing."""
    try:
        return tree.select(f"{stack}.{blocks}:{component}")
    except ScheduleError:
        return []


@lru_cache(maxsize=1024)
def _named(stack: str, component: str, tree: Tree) -> frozenset[str]:
    """The nodes of a component, or of a pattern with `*`, in all blocks of a stack."""
    return frozenset(_select(stack, "*", component, tree))


def _stacks_with(component: str, tree: Tree) -> list[str]:
    return [stack for stack in tree.stacks if _named(stack, component, tree)]
