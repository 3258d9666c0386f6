"""python -m search.generate: pictures before and after a schedule, same prompt and noise, with measured times.

    python -m search.generate schedule.json prompt="red apple, 3d style"

schedule=    the schedule file
prompt=      what to draw; several in a text file with prompts=mine.txt, one a line
seed=0       of the noise; each further prompt has the next one
repeats=3    timed rounds, the untouched pipeline and the schedule in turn
out=before_after.png
model=       the pipeline, by default the one that the schedule was searched on; also model.path=, compute.device=
"""

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import search
from search.config.options import Options, run_command, whole_number_option

DEFAULTS = {
    "schedule": "", "prompt": "", "prompts": "", "seed": "0", "repeats": "3", "out": "before_after.png",
}  # fmt: skip


def main(arguments: Sequence[str]) -> int:
    """Draw, time, write the picture and say where it is."""
    return run_command(arguments, __doc__, _work, DEFAULTS, first="schedule", configurable=True)


def _work(options: Options) -> None:
    if not options["schedule"] or not (options["prompt"] or options["prompts"]):
        raise ValueError('type python -m search.generate schedule.json prompt="what to draw"')
    seed, repeats = (
        whole_number_option(options, "seed", 0, 2**32 - 1),
        whole_number_option(options, "repeats", 1, 1000),
    )
    from search.config.prompts import read_prompts

    prompts = read_prompts(options["prompts"]) if options["prompts"] else [options["prompt"]]
    from search.config.load import config_for_schedule, model_from_config
    from search.schedule import Schedule

    schedule = Schedule.load(options["schedule"])
    model = model_from_config(config_for_schedule(schedule, options.overrides))
    from rich.console import Console

    from search.loop.progress import phase_bars

    with phase_bars(Console(stderr=True)) as on_progress:
        generated = search.generate(
            schedule, model, prompts=prompts, seed=seed, repeats=repeats, name=Path(options["schedule"]).stem,
            on_progress=on_progress,
        )  # fmt: skip
    out = Path(options["out"])
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(generated.png())
    before, after = (
        f"{statistics.median(t) / len(prompts):.1f} ms [{min(t) / len(prompts):.1f}, {max(t) / len(prompts):.1f}]"
        for t in (generated.milliseconds_before, generated.milliseconds_after)
    )
    print(f"before     {before} a picture")
    print(
        f"after      {after} a picture: {generated.speedup:.2f}× as fast, PSNR {statistics.mean(generated.psnr):.1f} dB"
    )
    print(f"pictures   {out}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
