"""python -m search.export: from a finished search to a schedule file that production loads.

run=latest        a search: latest, a folder under runs/, or a path
pick=recommended  recommended, knee, all, a name such as "FORA N=3", or conditions on held-out scores:
                  "speedup>=2" (the least drift of those), "drift<=0.05 and psnr>=30" (the fastest of those)
out=schedule.json where to write; a folder for pick=all
runs=runs         where the searches are
"""

import json
import math
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from search import command
from search.result import COSTS, TENSORS, applied_to, find_run, read_front

DEFAULTS = {"run": "latest", "pick": "recommended", "out": "schedule.json", "runs": "runs"}
CONDITION = re.compile(r"\s*(\w+)\s*(<=|>=|<|>)\s*([-+.\deE]+)\s*")


def export(
    run: str = "latest",
    pick: str = "recommended",
    out: str | Path = "schedule.json",
    runs: str | Path = "runs",
) -> list[Path]:
    """Copy the picked schedules of a search to `out` and return their paths; ValueError says what to type."""
    folder = find_run(run, Path(runs))
    chosen = choose(read_front(folder), pick)
    target = Path(out)
    if pick == "all":
        if target.suffix == ".json":
            raise ValueError(f"out={str(out)!r} is a file name; pick=all writes a folder, for example out=schedules")
        target.mkdir(parents=True, exist_ok=True)
        return [_copy(folder / e["file"], target / Path(e["file"]).name) for e in chosen]
    target.parent.mkdir(parents=True, exist_ok=True)
    return [_copy(folder / chosen[0]["file"], target)]


def _copy(file: Path, target: Path) -> Path:
    """A schedule, and the tensors beside it where it has some."""
    tensors = file.with_suffix(TENSORS)
    if tensors.exists() and target.suffix == TENSORS:
        raise ValueError(f"out={str(target)!r} is the name of the file beside a schedule; type out=schedule.json")
    written = Path(shutil.copy(file, target))
    if tensors.exists():
        shutil.copy(tensors, written.with_suffix(TENSORS))
    return written


def choose(front: dict[str, Any], pick: str) -> list[dict[str, Any]]:
    """The entries of the front that `pick` means, the best one first."""
    if named := [e for e in front["entries"] if e["name"] == pick]:
        return named
    entries = [e for e in front["entries"] if e["role"] == "front"]
    if not entries:
        raise ValueError("this search has an empty front; give it a larger budget.evaluations")
    if pick == "all":
        return entries
    if pick == "recommended":
        return [next((e for e in entries if e["name"] == front["recommended"]), entries[-1])]
    if pick == "knee":
        return [entries[_knee(front, entries)]]
    return [_best(entries, _conditions(pick, entries))]


def _knee(front: dict[str, Any], entries: list[dict[str, Any]]) -> int:
    """Index of the knee between the first cost and the first quality that were searched for."""
    import numpy as np

    from search.front import knee

    costs = [o for o in front["objectives"] if o in COSTS] or ["macs"]
    qualities = [o for o in front["objectives"] if o not in COSTS] or ["drift"]
    signs = [-1 if front["better"].get(name) == "higher" else 1 for name in (costs[0], qualities[0])]
    return knee(np.array([[_score(e, costs[0]), _score(e, qualities[0])] for e in entries]) * signs)


def _conditions(pick: str, entries: list[dict[str, Any]]) -> list[tuple[str, str, float]]:
    found = []
    for part in re.split(r",|\band\b", pick):
        match = CONDITION.fullmatch(part)
        if match is None:
            raise ValueError(
                f"pick={pick!r} is not understood; use recommended, knee, all, or conditions such as "
                '"speedup>=2" or "drift<=0.05 and psnr>=30"'
            )
        name, sign, number = match.groups()
        if name not in entries[0]["held_out"]:
            raise ValueError(
                f"pick={pick!r}: there is no score {name!r}; there are {', '.join(entries[0]['held_out'])}"
            )
        try:
            found.append((name, sign, float(number)))
        except ValueError:
            raise ValueError(f"pick={pick!r}: {number!r} is no number") from None
    return found


def _best(entries: list[dict[str, Any]], conditions: list[tuple[str, str, float]]) -> dict[str, Any]:
    """Among those that hold: for conditions on cost the least drift, for one on quality the highest speed-up."""

    def holds(entry: dict[str, Any], name: str, sign: str, limit: float) -> bool:
        value = _score(entry, name)
        return (value < limit if "<" in sign else value > limit) or ("=" in sign and value == limit)

    good = entries
    for name, sign, limit in conditions:
        left = [e for e in good if holds(e, name, sign, limit)]
        if not left:
            raise ValueError(_unreachable(good, name, sign, limit, len(good) < len(entries)))
        good = left
    if all(name in (*COSTS, "speedup") for name, *_ in conditions):
        return min(good, key=lambda e: _score(e, "drift"))
    return max(good, key=lambda e: _score(e, "speedup"))


def _unreachable(entries: list[dict[str, Any]], name: str, sign: str, limit: float, others: bool) -> str:
    """What can be had instead, rounded so that it is met when it is typed."""
    least = "<" in sign
    reach = (min if least else max)(_score(e, name) for e in entries)
    unit = 10.0 ** (math.floor(math.log10(abs(reach))) - 3) if reach else 1.0
    rounded = (math.ceil if least else math.floor)(reach / unit) * unit
    return (
        f"no schedule of this front has {name}{sign}{limit:g}{' and the other conditions' if others else ''}; "
        f'the best is {rounded:.4g}: type pick="{name}{sign[0]}={rounded:.4g}", or search with a larger budget'
    )


def _score(entry: dict[str, Any], name: str) -> float:
    return float(entry["held_out"][name]["value"])


def main(arguments: list[str]) -> int:
    """Parse `key=value`, export, print how to apply."""
    return command.run(arguments, __doc__, _work, DEFAULTS)


def _work(options: command.Options) -> None:
    given = dict(options.given)
    if given["pick"] == "all" and given["out"] == DEFAULTS["out"]:
        given["out"] = "schedules"
    written = export(**given)
    for path in written:
        print(path)
    others = json.loads(written[0].read_text(encoding="utf-8")).get("models", {}).get("names", {})
    loaded = [
        f"    pipe_{k} = DiffusionPipeline.from_pretrained(...)  # {part.get('name', part['class'])}"
        for k, part in others.items()
    ]
    lines = [
        "\nApply it:",
        "    from diffusers import DiffusionPipeline",
        "    from search import Schedule",
        "    pipe = DiffusionPipeline.from_pretrained(...)",
        *loaded,
        f'    schedule = Schedule.load("{written[0]}")',
        f"    handle = schedule.apply({applied_to(others)})",
        '    image = pipe("a prompt", **schedule.made["call"]).images[0]',
    ]
    print("\n".join(lines))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
