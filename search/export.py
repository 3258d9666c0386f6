"""python -m search.export: from a finished search to a schedule file that production loads.

run=latest        a search: latest, a folder under runs/, or a path
pick=recommended  recommended, knee, all, a name such as "FORA N=3", or conditions on held-out scores:
                  "speedup>=2" (the least drift of those), "drift<=0.05 and psnr>=30" (the fastest of those)
out=schedule.json where to write; a folder for pick=all
runs=runs         where the searches are
"""

import json
import shutil
import sys
from pathlib import Path

from search import command
from search.pick import choose
from search.result import TENSORS, applied_to, find_run, read_front

DEFAULTS = {"run": "latest", "pick": "recommended", "out": "schedule.json", "runs": "runs"}


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
