"""python -m search.explain: what every decision of a schedule saves and costs, left out and taken alone.

    python -m search.explain schedule.json

schedule=   the schedule file
by=         what is explained: part, mechanism, nodes, step (all by default, joined by commas)
samples=8   held-out prompts that it is measured on
out=explain.png
model=      the pipeline, by default the one that the schedule was searched on; also model.path=, compute.device=,
            prompts.held_out=
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from search.config.options import Options, run_command, whole_number_option

DEFAULTS = {"schedule": "", "by": "part,mechanism,nodes,step", "samples": "8", "out": "explain.png"}


def main(arguments: Sequence[str]) -> int:
    """Print the table, write the figure and say where it is."""
    return run_command(arguments, __doc__, _work, DEFAULTS, first="schedule", configurable=True)


def _work(options: Options) -> None:
    from search.validate.ablation import GROUPS, evaluator_for, measure_effects

    by = [word for word in options["by"].split(",") if word]
    if unknown := [word for word in by if word not in GROUPS] or ([] if by else [options["by"]]):
        raise ValueError(f"by={unknown[0]}: choose from {', '.join(GROUPS)}, joined by commas")
    samples = whole_number_option(options, "samples", 2, 10_000)
    if not options["schedule"]:
        raise ValueError("type python -m search.explain schedule.json")
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import Progress

    from search.config.load import config_for_schedule, model_from_config
    from search.schedule import Schedule

    schedule = Schedule.load(options["schedule"])
    config = config_for_schedule(schedule, options.overrides)
    console = Console(soft_wrap=True)
    with console.status("loading"):
        evaluator = evaluator_for(config, model_from_config(config), samples)
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("runs", total=None)
        explanation = measure_effects(
            schedule, evaluator, by, Path(options["schedule"]).stem,
            lambda count, total: progress.update(task, completed=count, total=total),
        )  # fmt: skip
    out = Path(options["out"])
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(explanation.png())
    console.print(explanation.table())
    if best := explanation.most_expensive_step:
        console.print(
            f"most expensive  {escape(best.name)}: computing it would remove "
            f"{best.added / explanation.drift:.0%} of the drift for {best.saved:.1%} of the MACs"
        )
    console.print(f"figure     {out}", markup=False)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
