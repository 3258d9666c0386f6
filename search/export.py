"""python -m search.export: from a finished search to a schedule file that production loads.

run=latest        a search: latest, a folder under runs/, or a path
pick=recommended  recommended, knee, all, or conditions on held-out scores: "speedup>=2", "drift<=0.05 and psnr>=30"
out=schedule.json where to write; a folder for pick=all
runs=runs         where the searches are
"""

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

DEFAULTS = {"run": "latest", "pick": "recommended", "out": "schedule.json", "runs": "runs"}
CONDITION = re.compile(r"\s*(\w+)\s*(<=|>=|<|>)\s*([-+.\deE]+)\s*")


def export(
    run: str = "latest",
    pick: str = "recommended",
    out: str | Path = "schedule.json",
    runs: str | Path = "runs",
) -> list[Path]:
    """Copy the picked schedules of a search to `out` and return their paths; ValueError says what to type."""
    from search.result import find_run

    folder = find_run(run, Path(runs))
    file = folder / "front.json"
    if not file.exists():
        raise ValueError(f"the search in {folder} has not finished; type python -m search resume={folder.name}")
    front = json.loads(file.read_text(encoding="utf-8"))
    chosen = choose(front, pick)
    target = Path(out)
    if pick == "all":
        if target.suffix == ".json":
            raise ValueError(f"out={str(out)!r} is a file name; pick=all writes a folder, for example out=schedules")
        target.mkdir(parents=True, exist_ok=True)
        return [Path(shutil.copy(folder / e["file"], target / Path(e["file"]).name)) for e in chosen]
    target.parent.mkdir(parents=True, exist_ok=True)
    return [Path(shutil.copy(folder / chosen[0]["file"], target))]


def choose(front: dict[str, Any], pick: str) -> list[dict[str, Any]]:
    """The entries of the front that `pick` means, the best one first."""
    entries = [e for e in front["entries"] if e["role"] == "front"]
    if not entries:
        raise ValueError("this search has an empty front; give it a larger budget.evaluations")
    if pick == "all":
        return entries
    if pick == "recommended":
        return [next((e for e in entries if e["name"] == front["recommended"]), entries[0])]
    if pick == "knee":
        import numpy as np

        from search.front import knee

        return [entries[knee(np.array([[_score(e, "macs"), _score(e, "drift")] for e in entries]))]]
    return [_best(entries, _conditions(pick, entries), front["better"])]


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


def _best(
    entries: list[dict[str, Any]], conditions: list[tuple[str, str, float]], better: dict[str, str]
) -> dict[str, Any]:
    """Among those that hold: for a condition on cost the least drift, for one on quality the highest speed-up."""

    def holds(entry: dict[str, Any], name: str, sign: str, limit: float) -> bool:
        value = _score(entry, name)
        inside = value < limit if "<" in sign else value > limit
        return inside or ("=" in sign and value == limit)

    good = [e for e in entries if all(holds(e, *c) for c in conditions)]
    if not good:
        name, sign, limit = (
            next(c for c in conditions if not any(holds(e, *c) for e in entries))
            if any(not any(holds(e, *c) for e in entries) for c in conditions)
            else conditions[0]
        )
        reach = (min if "<" in sign else max)(_score(e, name) for e in entries)
        raise ValueError(
            f"no schedule of this front has {name}{sign}{limit:g} with the rest; the best {name} is {reach:.4g}: "
            f'type pick="{name}{sign[0]}={reach:.4g}", or search with a larger budget'
        )
    costs = {"speedup", "macs", "latency", "memory"}
    if all(name in costs for name, *_ in conditions):
        return min(good, key=lambda e: _score(e, "drift"))
    return max(good, key=lambda e: _score(e, "speedup"))


def _score(entry: dict[str, Any], name: str) -> float:
    return float(entry["held_out"][name]["value"])


def main(arguments: list[str]) -> int:
    """Parse `key=value`, export, print how to apply."""
    if any(a in ("--help", "-h") for a in arguments):
        print(__doc__)
        return 0
    given = dict(DEFAULTS)
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if key not in DEFAULTS or not equals:
            print(
                f"error: {argument!r} is no option; there are {', '.join(f'{k}=' for k in DEFAULTS)}",
                file=sys.stderr,
            )
            return 2
        given[key] = value
    if given["pick"] == "all" and given["out"] == DEFAULTS["out"]:
        given["out"] = "schedules"
    try:
        written = export(**given)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for path in written:
        print(path)
    print(
        "\nApply it:\n"
        "    from diffusers import DiffusionPipeline\n"
        "    from search import Schedule\n"
        "    pipe = DiffusionPipeline.from_pretrained(...)\n"
        f'    schedule = Schedule.load("{written[0]}")\n'
        "    handle = schedule.apply(pipe)\n"
        '    image = pipe("a prompt", **schedule.made["call"]).images[0]'
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
