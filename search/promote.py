"""python -m search.promote: let an alias in MLflow's registry name a schedule; deployments that follow it get it.

    python -m search.promote run=latest pick=recommended alias=production

run=latest        a search: latest, a folder under runs/, or a path
pick=recommended  which of its schedules: recommended, knee, a name such as "FORA N=3", or conditions on held-out
                  scores such as "speedup>=2"
alias=production  the alias that is moved
runs=runs         where the searches are
uri=              the MLflow server, http://...; by default the one that the search was sent to
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from search.config import options as command
from search.results.folder import find_run, read_front
from search.results.pick import pick_entries
from search.tracking import registry, store

DEFAULTS = {"run": "latest", "pick": "recommended", "alias": "production", "runs": "runs", "uri": ""}


@dataclass(frozen=True)
class Promoted:
    """Where an alias points now; `before` is the version that had it."""

    model: str
    alias: str
    version: str
    before: str | None
    schedule: str
    store: str

    def __str__(self) -> str:
        was = {None: "new", self.version: "as before"}.get(self.before, f"was version {self.before}")
        return f"{self.alias} of {self.model} is version {self.version} ({was}): {self.schedule}"


def promote(
    run: str = "latest",
    pick: str = "recommended",
    alias: str = "production",
    runs: str | Path = "runs",
    uri: str | None = None,
) -> Promoted:
    """Move the alias to the picked schedule, which becomes a version where it is none; ValueError says what to type."""
    from search.schedule import Schedule

    if pick == "all":
        raise ValueError("pick=all: an alias names one schedule; type pick=recommended, or a condition")
    folder = find_run(run, Path(runs))
    entry = pick_entries(read_front(folder), pick)[0]
    name, address = registry.registered_model_of(folder, Path(runs), uri)
    key = registry.registry_key(entry["role"], entry["name"], Schedule.load(folder / entry["file"]).digest)
    version, before = registry.promote(address, name, key, folder.name, alias)
    return Promoted(name, alias, version, before, f"{entry['name']} of {folder.name}", address)


def main(arguments: list[str]) -> int:
    """Parse `key=value`, move the alias, say how to follow it."""
    return command.run_command(arguments, __doc__, _work, DEFAULTS)


def _work(options: command.Options) -> None:
    done = promote(**options.given)
    print(done)
    local = "" if options["runs"] == DEFAULTS["runs"] else f" runs={options['runs']}"
    where = (
        local
        if done.store == store.store_address(Path(options["runs"]))
        else f" uri={store.address_without_password(done.store)}"
    )
    print(f"follow it: python -m search.export model={done.model} alias={done.alias} out=schedule.json{where}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
