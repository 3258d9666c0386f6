"""Actions and blocks as text: parse, format, and the values that a row of actions reads and stores."""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

from search.schedule.errors import ScheduleError

MAX_STEPS = 10_000
MAX_ACTIONS = 2_000_000  # steps x nodes; 1000 steps of 28 blocks are 114,000
OFF, ABSENT = "C", "-"
OWN = "L"  # the pipeline's own denoiser
LONGEST_PERIOD = 16  # actions in one pair of parentheses of the shortest text
Tokens = tuple[str, ...]
_TERM = re.compile(r"\s*(?:(C|R|S|G|F[1-9])|(\()|(\)))(?:\s*\*\s*(\d+))?", re.ASCII)


def parse_actions(text: str, steps: int, where: str = "plan", letters: str = "CRS") -> Tokens:
    """`C*4 (C F1)*8` as a tuple of `steps` tokens; never builds more than `steps` of them.

    `letters` are the actions that are admissible besides F1..F9.

    >>> parse_actions("C (R F1)*2", 5)
    ('C', 'R', 'F1', 'R', 'F1')
    """
    stack: list[list[str]] = [[]]
    position = 0
    while position < len(text):
        match = _TERM.match(text, position)
        if match is None and not text[position:].strip():
            break
        if match is None or (match[1] and match[1][0] not in f"F{letters}"):
            raise ScheduleError(
                f"{where}: {text[position : position + 12]!r} is not an action; use {', '.join(letters)}, F1..F9, "
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
    """The canonical text: runs of four and more as `R*7`, all others one by one."""
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


@lru_cache(maxsize=512)
def shortest_actions(tokens: Tokens, longest: int = LONGEST_PERIOD) -> str:
    """The shortest text of these actions, `C (R R F1 C)*4`, with periods of up to `longest` actions in parentheses.

    The file has a text of its own (`format_actions`), which a schedule's digest is taken from.

    >>> shortest_actions(("C", "R", "R") * 6 + ("C", "F1"))
    '(C R R)*6 C F1'
    """
    size = len(tokens)
    equal = [
        [0] * (size + 1) for _ in range(longest + 1)
    ]  # [period][t]: how many actions from t on equal those a period later
    costs: list[tuple[int, int]] = [(0, 0)] * (size + 1)  # characters, then repetitions, of the rest from t on
    chosen: list[tuple[str, int]] = [("", size)] * (size + 1)  # the text at t, and where the rest begins
    for t in reversed(range(size)):
        options = []
        for period in range(1, min(longest, size - t - 1) + 1):
            if tokens[t] == tokens[t + period]:
                equal[period][t] = equal[period][t + 1] + 1
            if (most := equal[period][t] // period + 1) > 1:
                group = tokens[t] if period == 1 else f"({shortest_actions(tokens[t : t + period], 1)})"
                fewest = max(2, most - longest // period)  # those left over may begin a longer repetition
                options += [(f"{group}*{times}", t + times * period) for times in range(most, fewest - 1, -1)]
        options.append((tokens[t], t + 1))
        ranked = [(len(text) + 1 + costs[after][0], ("*" in text) + costs[after][1]) for text, after in options]
        costs[t] = min(ranked)
        chosen[t] = options[ranked.index(costs[t])]
    words, t = [], 0
    while t < size:
        word, t = chosen[t]
        words.append(word)
    return " ".join(words)


def values_read(token: str) -> int:
    """How many computed values an action reads: 1 for R, k+1 for Fk, 0 for the others."""
    return 1 if token == "R" else int(token[1]) + 1 if token[0] == "F" else 0


def denoiser_switches(at: str) -> frozenset[int]:
    """The steps at which another denoiser runs than at the step before; no values from before are read after them."""
    return frozenset(step for step in range(1, len(at)) if at[step] != at[step - 1])


def steps_since_switch(step: int) -> str:
    """For an error: since which switch values are counted; "" since the first step."""
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


def format_ranges(blocks: list[int], size: int) -> str:
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
