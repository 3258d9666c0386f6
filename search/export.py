"""python -m search.export: from a finished search to a schedule file that production loads.

run=latest        a search: latest, a folder under runs/, or a path
pick=recommended  recommended, knee, all, a name such as "FORA N=3", or conditions on held-out scores:
                  "speedup>=2" (the least drift of those), "drift<=0.05 and psnr>=30" (the fastest of those)
out=schedule.json where to write; a folder for pick=all
runs=runs         where the searches are
alias=production  what this alias names in MLflow's registry, instead of pick=; see python -m search.promote
model=            the registered model of the alias, such as pixart-cache: then no run is needed
uri=              the MLflow server, http://...; by default the database in runs
schedule=         a schedule file instead of a search, to write it in a dialect
dialect=          write for another tool: diffusers, cache-dit, scm, comfyui, sdnext, sdcpp, torchao, smoothcache, ecad
lossy=false       true: leave out what the dialect cannot say, instead of refusing
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import search
from search.config.options import Options, run_command
from search.results.usage import usage_snippet

DEFAULTS = {
    "run": "latest", "pick": "recommended", "out": "schedule.json", "runs": "runs", "alias": "", "model": "", "uri": "",
}  # fmt: skip
DIALECT = {"schedule": "", "dialect": "", "lossy": "false"}  # options of search/results/translate.py


def main(arguments: list[str]) -> int:
    """Parse `key=value`, export, print how to apply."""
    return run_command(arguments, __doc__, _work, DEFAULTS | DIALECT)


def _work(options: Options) -> None:
    from search.schedule import Schedule

    given = {name: options[name] for name in DEFAULTS}
    if options["schedule"] or options["dialect"]:
        return _translate(options)
    if given["pick"] == "all" and given["out"] == DEFAULTS["out"]:
        given["out"] = "schedules"
    written = search.export(**given)
    for path in written:
        print(path)
    others = Schedule.load(written[0]).to_dict().get("models", {}).get("names", {})
    print("\n".join(["\nApply it:", *(f"    {line}" for line in usage_snippet(str(written[0]), others))]))


def _translate(options: Options) -> None:
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
            files = search.export(**given | {"out": f"{folder}/{'all' if many else 'schedule.json'}"})
        dialects.translate_files(files, options["dialect"], out, options["lossy"], many)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
