"""python -m search.send: send finished searches to MLflow, those that wait because it could not be reached.

    python -m search.send                                    what waits
    python -m search.send run=latest uri=http://mlflow:5000  a search, to another server

run=all    all that waits, or one search, waiting or not: latest, a folder under runs/, or a path
runs=runs  where the searches are
uri=       the MLflow server, http://...; by default the database in runs. An address that only a run folder names is
           not used until it is typed
"""

import sys

from search.config.options import Options, run_command

DEFAULTS = {"run": "all", "runs": "runs", "uri": ""}


def main(arguments: list[str]) -> int:
    """Parse `key=value`, send, say where it is."""
    return run_command(arguments, __doc__, _work, DEFAULTS, first="run")


def _work(options: Options) -> None:
    from search.tracking.sending import send_searches

    if not send_searches(**options.given, on_sent=lambda name, page: print(f"{name}  {page}")):
        print("nothing waits")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
