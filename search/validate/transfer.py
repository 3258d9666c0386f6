"""Carry a schedule over to another model, number of steps or size, and keep it only if it holds."""

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from search.validate.criteria import criteria_for
from search.validate.verdict import Verdict
from search.validate.verifier import Verifier

if TYPE_CHECKING:
    from search.models.base import Model
    from search.schedule import Schedule


Told = Callable[[str], None]


@dataclass(frozen=True)
class Transfer:
    """A schedule carried over; `schedule` is None where the gate refuses it, for the verdict's reason.

    `carry_over` is what the rule gave, refitted, and `first` its verdict; `repaired` are the steps that were computed
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
    from search.config.load import config_for_schedule, prompts_from_config
    from search.schedule import Schedule
    from search.validate.repair import RepairSearch, carry_over

    schedule = schedule if isinstance(schedule, Schedule) else Schedule.load(schedule)
    limits = criteria_for(schedule, tolerance, criterion)
    calibration, other = prompts or prompts_from_config(config_for_schedule(schedule).prompts)
    moved = carry_over(schedule, model)
    verifier = Verifier(model, other, batch=batch, seed=seed, keep=True)
    told("calibration prompts")
    workshop = RepairSearch(schedule, moved, model, calibration[:batch], limits, refit, seed)
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
