"""Suggest the name that somebody probably meant."""

import difflib
from collections.abc import Iterable


def closest_name_hint(wrong: str, known: Iterable[str]) -> str:
    """` Did you mean x?`, or nothing. Of dotted names the last part alone may be what was typed."""
    known = sorted(set(known) - {wrong})
    near = difflib.get_close_matches(wrong, known, n=1, cutoff=0.7)
    if not near:
        by_last = {key.rpartition(".")[2]: key for key in reversed(known)}
        last = difflib.get_close_matches(wrong.rpartition(".")[2], by_last, n=1, cutoff=0.7)
        near = [by_last[name] for name in last]
    return f" Did you mean {near[0]}?" if near else ""
