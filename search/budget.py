"""python -m search.budget: the best schedule of a finished search within limits, without a new search.

    python -m search.budget run=latest "latency<=400ms and memory<=1GB"

run=latest  a search: latest, a folder under runs/, or a path
limits=     conditions on held-out scores, joined by `and`; the word before them may be left out. Times in s, ms, us,
            sizes in GB, GiB, MB, MiB, shares in %. Limits on cost give the least drift, one on quality the fastest.
runs=runs   where the searches are

`memory` is what a schedule keeps between steps for one picture, without weights and activations. Latencies are those
of the device that the search ran on; python -m search.verify measures them where it runs.
"""

import shlex
import sys
from collections.abc import Sequence

import search
from search.config.options import Options, run_command

DEFAULTS = {"run": "latest", "limits": "", "runs": "runs"}


def main(arguments: Sequence[str]) -> int:
    """Print what fits, the best one first, and how to export it."""
    return run_command(_joined(arguments), __doc__, _work, DEFAULTS)


def _joined(arguments: Sequence[str]) -> list[str]:
    """Join the limits, which contain `=` themselves, into one option: every argument that is not an option is one."""
    options: list[str] = []
    limits: list[str] = []
    for argument in arguments:
        key, equals, _ = argument.partition("=")
        named = argument.startswith("-") or (equals and key.isidentifier())
        (options if named else limits).append(argument)
    return [*options, *([f"limits={' and '.join(limits)}"] if limits else [])]


def _work(options: Options) -> None:
    from rich.console import Console

    if not options["limits"]:
        raise ValueError('type the limits, for example: python -m search.budget "latency<=400ms and psnr>=30"')
    choice = search.best_within(options["limits"], options["run"], runs=options["runs"])
    console = Console(soft_wrap=True)
    console.print(choice.table())
    for name in choice.doubtful:
        score = choice.rows[0]["held_out"][name]
        console.print(
            f"[yellow]{name} may exceed the limit: measured {score['low']:.4g} to {score['high']:.4g}[/yellow]"
        )
    others = [f"{key}={shlex.quote(options[key])}" for key in ("run", "runs") if options[key] != DEFAULTS[key]]
    picked = ["python -m search.export", *others, f"pick={shlex.quote(choice.name)}", "out=schedule.json"]
    console.print(f"best: {choice.name}", style="bold", markup=False)
    console.print(f"export     {' '.join(picked)}", markup=False)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
