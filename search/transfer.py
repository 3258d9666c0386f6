"""python -m search.transfer: carry a schedule over to another step count, size, guidance scale, LoRA or checkpoint.

    python -m search.transfer schedule.json steps=30 out=schedule30.json

schedule=      the schedule file
steps=         steps of the full run that the new schedule stands for, for model.steps
out=transferred.json
runs=64        schedules run at most to find repairs; 0 repairs nothing
refit=true     fit a fitted solver, and corrections, anew on calibration prompts; false drops them
lora=, lora_scale=, guidance=, criterion=, tolerance=, seconds=, samples=, model=, model.height=, prompts.…
               as for python -m search.verify, which is the gate: what it does not pass is not written

The certificate of the old schedule is renewed for the new one, or left out, and the output says which.

Every step takes the actions of the old step nearest in log-SNR (search/validate/reindex.py says the rule). A grid that
is the pipeline's own spacing is spaced anew by the pipeline's scheduler; one that was searched keeps its shape: its
timesteps are interpolated to as many more or fewer. Where the result drifts more than it may, steps that leave
something out are computed again in full, one after another: each alone is tried on calibration prompts, those that
gain most per MAC come first, and the fewest that pass the gate stay. Where that takes the full run nothing is written,
and the exit code is 1.
"""

import sys

from search.config.options import Options, number_option, run_command
from search.verify import DEFAULTS as VERIFYING

MEANS = {k: v for k, v in VERIFYING.items() if k not in ("certify", "share", "confidence")}
DEFAULTS = MEANS | {"samples": "64", "steps": "", "out": "transferred.json", "runs": "64", "refit": "true"}


def main(arguments: list[str]) -> int:
    """Parse `key=value`, transfer, write what passes the gate; the exit code is that of verify."""
    return run_command(arguments, __doc__, _work, DEFAULTS, first="schedule", configurable=True)


def _work(options: Options) -> int:
    from rich.console import Console

    from search.config.load import held_out_prompts, load_from_options, prompts_from_config
    from search.validate.transfer import transfer

    given = {name: number_option(name, options, DEFAULTS) for name in ("tolerance", "seconds", "samples", "runs")}
    if options["refit"] not in ("true", "false"):
        raise ValueError(f"refit={options['refit']!r}: type refit=true or refit=false")
    with Console(stderr=True).status("loading") as status:
        schedule, model, config = load_from_options(options, options["steps"])
        transferred = transfer(
            schedule,
            model,
            (prompts_from_config(config.prompts)[0], held_out_prompts(config, options.overrides)),
            given["tolerance"],
            options["criterion"],
            options["refit"] == "true",
            int(given["runs"]),
            given["seconds"],
            int(given["samples"]),
            config.prompts.batch,
            config.prompts.seed,
            status.update,
        )
    print(transferred)
    if transferred.schedule is None:
        print(
            f"nothing was written; search here: python -m search +space=cache model={config.model['name']} "
            f"model.steps={config.model['steps']} budget=quick"
        )
    else:
        print(transferred.schedule.save(options["out"]))
    return transferred.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
