"""python -m search.promote: let an alias in MLflow's registry name a schedule; deployments that follow it get it.

    python -m search.promote run=latest pick=recommended alias=production

run=latest        a search: latest, a folder under runs/, or a path
pick=recommended  which of its schedules: recommended, knee, a name such as "FORA N=3", or conditions on held-out
                  scores such as "speedup>=2"
alias=production  the alias that is moved
runs=runs         where the searches are
uri=              the MLflow server, http://...; by default the database in runs
"""

import sys
from pathlib import Path

import search
from search.config.options import Options, run_command
from search.tracking import store

DEFAULTS = {"run": "latest", "pick": "recommended", "alias": "production", "runs": "runs", "uri": ""}


def main(arguments: list[str]) -> int:
    """Parse `key=value`, move the alias, say how to follow it."""
    return run_command(arguments, __doc__, _work, DEFAULTS)


def _work(options: Options) -> None:
    done = search.promote(**options.given)
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
