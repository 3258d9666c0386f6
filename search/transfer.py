"""python -m search.transfer: carry a schedule over to another step count, size, guidance scale, LoRA or checkpoint.

    python -m search.transfer schedule.json steps=30 out=schedule30.json

schedule=      the schedule file
steps=         steps of the full run that the new schedule stands for, for model.steps
out=transferred.json
runs=64        schedules run at most to find repairs; 0 repairs nothing
refit=true     fit a fitted solver, and corrections, anew on calibration prompts; false drops them
lora=, lora_scale=, guidance=, criterion=, tolerance=, seconds=, samples=, model=, model.height=, prompts.…
               as for python -m search.verify, which is the gate: what it does not pass is not written

Every step takes the actions of the old step nearest in log-SNR (search/reindex.py says the rule). A grid that is the
pipeline's own spacing is spaced anew by the pipeline's scheduler; one that was searched keeps its shape: its timesteps
are interpolated to as many more or fewer. Where the result drifts more than it may, steps that leave something out are
computed again in full, one after another: each alone is tried on calibration prompts, those that gain most per MAC come
first, and the fewest that pass the gate stay. Where that takes the full run nothing is written, and the exit code is 1.
"""

import html
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from search import command
from search.verify import DEFAULTS as VERIFYING
from search.verify import Verdict, Verifier, criteria, held_out, loaded, number

if TYPE_CHECKING:
    from search.models.base import Model
    from search.schedule import Schedule

DEFAULTS = VERIFYING | {"samples": "64", "steps": "", "out": "transferred.json", "runs": "64", "refit": "true"}

Told = Callable[[str], None]


@dataclass(frozen=True)
class Transfer:
    """A schedule carried over; `schedule` is None where the gate refuses it, for the verdict's reason.

    `carried` is what the rule gave, refitted, and `first` its verdict; `repaired` are the steps that were computed
    again after that. `macs` are shares of a full run's, of the old schedule and of the last one tried. `notes` say what
    did not carry over, `runs` how many schedules were run for repairs.
    """

    source: "Schedule"
    schedule: "Schedule | None"
    carried: "Schedule"
    verdict: Verdict
    first: Verdict
    macs: tuple[float, float]
    notes: Sequence[str] = ()
    repaired: Sequence[int] = ()
    runs: int = 0

    @property
    def exit_code(self) -> int:
        return self.verdict.exit_code

    def __str__(self) -> str:
        return "\n".join([*self._lines(), str(self.verdict)])

    def _repr_html_(self) -> str:
        return "".join(f"<p>{html.escape(line)}</p>" for line in self._lines()) + self.verdict._repr_html_()

    def _lines(self) -> list[str]:
        old, new = (f"{share:.1%}" for share in self.macs)
        lines = [f"{self.source.steps} steps to {self.carried.steps}; MACs {old} of a full run's to {new}", *self.notes]
        if self.runs:
            steps = f"steps {', '.join(map(str, self.repaired))} computed" if self.repaired else "no step"
            lines.append(f"before repair: {self.first.reason}; repair: {steps}, {self.runs} runs")
        return lines


def transfer(
    schedule: "Schedule | str | Path",
    model: "Model",
    prompts: tuple[Sequence[str], Sequence[str]] | None = None,
    tolerance: float = 1.25,
    criterion: str = "",
    refit: bool = True,
    runs: int = 64,
    seconds: float = 60.0,
    samples: int = 64,
    batch: int = 8,
    seed: int = 0,
    told: Told = lambda text: None,
) -> Transfer:
    """Carry a schedule over to a model as it is loaded: its steps, size, guidance scale, LoRA and scheduler.

    `prompts` are calibration and held-out prompts, by default those of the model that the file names. ValueError says
    what to type where there is nothing to hold it to, or what of it does not carry over.
    """
    from search.loaded import config_for, prompts_of
    from search.repair import Workshop, carried
    from search.schedule import Schedule

    schedule = schedule if isinstance(schedule, Schedule) else Schedule.load(schedule)
    limits = criteria(schedule, tolerance, criterion)
    calibration, other = prompts or prompts_of(config_for(schedule).prompts)
    moved = carried(schedule, model)
    verifier = Verifier(model, other, batch=batch, seed=seed, keep=True)
    told("calibration prompts")
    workshop = Workshop(schedule, moved, model, calibration[:batch], limits, refit, seed)
    last = workshop.made()
    first = verdict = verifier.verify(last, limits, seconds, samples, told)
    repaired: Sequence[int] = ()
    if not first.passed and first.values and runs:
        for steps in workshop.repairs(runs, told):
            last, repaired = workshop.made(steps), steps
            verdict = verifier.verify(last, limits, seconds, samples, told)
            if verdict.passed:
                break
    return Transfer(
        schedule,
        last.with_scores(workshop.scores(last, verdict)) if verdict.passed else None,
        workshop.made(),
        verdict,
        first,
        (workshop.before, workshop.share(last)),
        workshop.notes,
        sorted(repaired),
        workshop.runs,
    )


def main(arguments: list[str]) -> int:
    """Parse `key=value`, transfer, write what passes the gate; the exit code is that of verify."""
    return command.run(arguments, __doc__, _work, DEFAULTS, first="schedule", configurable=True)


def _work(options: command.Options) -> int:
    from rich.console import Console

    from search.loaded import prompts_of

    given = {name: number(name, options, DEFAULTS) for name in ("tolerance", "seconds", "samples", "runs")}
    if options["refit"] not in ("true", "false"):
        raise ValueError(f"refit={options['refit']!r}: type refit=true or refit=false")
    with Console(stderr=True).status("loading") as status:
        schedule, model, config = loaded(options, options["steps"])
        found = transfer(
            schedule,
            model,
            (prompts_of(config.prompts)[0], held_out(config, options.overrides)),
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
    print(found)
    if found.schedule is None:
        print(
            f"nothing was written; search here: python -m search +space=cache model={config.model['name']} "
            f"model.steps={config.model['steps']} budget=quick"
        )
    else:
        print(found.schedule.save(options["out"]))
    return found.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
