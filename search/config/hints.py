"""Suggest the name that was probably meant."""

import difflib
from collections.abc import Iterable


def closest_name_hint(wrong: str, names: Iterable[str]) -> str:
    """` Did you mean x?` with the closest name, or an empty string. The last part of a dotted name is enough."""
    candidates = sorted(set(names) - {wrong})
    near = difflib.get_close_matches(wrong, candidates, n=1, cutoff=0.7)
    if not near:
        by_last = {key.rpartition(".")[2]: key for key in reversed(candidates)}
        last = difflib.get_close_matches(wrong.rpartition(".")[2], by_last, n=1, cutoff=0.7)
        near = [by_last[name] for name in last]
    return f" Did you mean {near[0]}?" if near else ""
