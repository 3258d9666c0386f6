"""python -m search.export: from a finished search to a schedule file that production loads.

run=latest        a search: latest, a folder under runs/, or a path
pick=recommended  recommended, knee, all, a name such as "FORA N=3", or conditions on held-out scores:
                  "speedup>=2" (the least drift of those), "drift<=0.05 and psnr>=30" (the fastest of those)
out=schedule.json where to write; a folder for pick=all
runs=runs         where the searches are
alias=production  what this alias names in MLflow's registry, instead of pick=; see python -m search.promote
model=            the registered model of the alias, such as pixart-cache: then no run is needed
uri=              the MLflow server, http://...; by default the one of the search, or the database in runs
schedule=         a schedule file instead of a search, to write it in a dialect
dialect=          write for another tool: diffusers, cache-dit, scm, comfyui, sdnext, sdcpp, torchao, smoothcache, ecad
lossy=false       true: leave out what the dialect cannot say, instead of refusing
"""

import json
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from search.config import options as command
from search.results.folder import TENSORS, find_run, read_front
from search.results.pick import pick_entries
from search.results.usage import usage_snippet

DEFAULTS = {
    "run": "latest", "pick": "recommended", "out": "schedule.json", "runs": "runs", "alias": "", "model": "", "uri": "",
}  # fmt: skip
DIALECT = {"schedule": "", "dialect": "", "lossy": "false"}  # options of search/results/translate.py


def export(
    run: str = "latest",
    pick: str = "recommended",
    out: str | Path = "schedule.json",
    runs: str | Path = "runs",
    alias: str = "",
    model: str = "",
    uri: str = "",
) -> list[Path]:
    """Copy the picked schedules of a search to `out` and return their paths; ValueError says what to type.

    With an `alias` it is what the alias names in the registry, of the search's registered model or of `model`.
    """
    if alias or model:
        return [_followed(run, pick, Path(out), Path(runs), alias or "production", model, uri)]
    if uri:
        raise ValueError(f"uri={uri} is where an alias is looked up; type alias=production, too")
    folder = find_run(run, Path(runs))
    chosen = pick_entries(read_front(folder), pick)
    target = Path(out)
    if pick == "all":
        if target.suffix == ".json":
            raise ValueError(f"out={str(out)!r} is a file name; pick=all writes a folder, for example out=schedules")
        target.mkdir(parents=True, exist_ok=True)
        return [_copy(folder / e["file"], target / Path(e["file"]).name) for e in chosen]
    target.parent.mkdir(parents=True, exist_ok=True)
    return [_copy(folder / chosen[0]["file"], target)]


def _followed(run: str, pick: str, out: Path, runs: Path, alias: str, model: str, uri: str) -> Path:
    from search.tracking import registry, store

    if pick != DEFAULTS["pick"]:
        raise ValueError(f"pick={pick!r}: alias={alias} says which schedule; leave out pick=, or alias= and model=")
    name, address = (
        (model, store.store_address(runs, uri))
        if model
        else registry.registered_model_of(find_run(run, runs), runs, uri)
    )
    return registry.fetch_by_alias(address, name, alias, out)


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
    return command.run_command(arguments, __doc__, _work, DEFAULTS | DIALECT)


def _work(options: command.Options) -> None:
    given = {name: options[name] for name in DEFAULTS}
    if options["schedule"] or options["dialect"]:
        return _translate(options)
    if given["pick"] == "all" and given["out"] == DEFAULTS["out"]:
        given["out"] = "schedules"
    written = export(**given)
    for path in written:
        print(path)
    others = json.loads(written[0].read_text(encoding="utf-8")).get("models", {}).get("names", {})
    print("\n".join(["\nApply it:", *(f"    {line}" for line in usage_snippet(str(written[0]), others))]))


def _translate(options: command.Options) -> None:
    """Write schedules in a dialect of another tool."""
    from search.results import translate as dialects

    if not options["dialect"]:
        raise ValueError("schedule= is written in a dialect; type dialect=diffusers, or another of those in --help")
    out, many = "" if options["out"] == DEFAULTS["out"] else options["out"], options["pick"] == "all"
    with TemporaryDirectory() as folder:
        if options["schedule"]:
            files, many = [Path(options["schedule"])], False
        else:
            given = {name: options[name] for name in DEFAULTS}
            files = export(**given | {"out": f"{folder}/{'all' if many else 'schedule.json'}"})
        dialects.translate_files(files, options["dialect"], out, options["lossy"], many)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
