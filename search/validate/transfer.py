"""Carry a schedule over to another model, number of steps or size, and keep it only if it meets its criteria."""

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from search.config.settings import Certify
from search.validate.criteria import criteria_for
from search.validate.renewal import renew_certificate, renewal_noise, settings_for
from search.validate.verdict import WORDS, Verdict, make_verdict
from search.validate.verifier import Verifier

if TYPE_CHECKING:
    from search.models.base import Model
    from search.schedule import Schedule


@dataclass(frozen=True)
class Transfer:
    """A schedule that was carried over.

    Attributes:
        source: The old schedule.
        schedule: The new one, or None if it does not meet its criteria; `verdict` has the reason.
        carried: What the rule gave, refitted, before repairs.
        verdict: The verdict on the last schedule that was tried.
        first: The verdict on `carried`.
        macs: Shares of a full run's MACs: of the old schedule, and of the last one that was tried.
        notes: What could not be carried over.
        repaired: Steps that a repair computes again.
        runs: Schedules that were run for repairs.
        certified: Of a schedule whose source has a certificate: the verdict on the same one for it.
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
    certified: Verdict | None = None

    @property
    def exit_code(self) -> int:
        """0 if the new schedule passed, 1 if it did not, 3 if it was not decided."""
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
        if self.certified:
            lines.append(f"certificate {WORDS[self.certified.passed]}: {self.certified.reason}")
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
    on_message: Callable[[str], None] = lambda text: None,
) -> Transfer:
    """Carry a schedule over to a model as it is loaded: its steps, size, guidance scale, LoRA and scheduler.

    Args:
        schedule: A schedule or its file.
        model: The loaded model.
        prompts: Calibration and held-out prompts; by default those of the model that the file names.
        tolerance: Factor on the drift that the file claims, used if there is no criterion.
        criterion: Such as `"drift<=0.1"`.
        refit: Fit a fitted solver, and corrections, again; otherwise they are dropped.
        runs: Schedules that are run at most to find a repair; 0 repairs nothing.
        seconds: Time after which a verification starts no further batch.
        samples: Pictures of a verification at most.
        batch: Pictures that are denoised together.
        seed: Of the calibration noise.
        on_message: Called with a line as work goes on.

    Raises:
        ValueError: There is nothing to verify against, or the schedule cannot be carried over.
    """
    from search.config.load import add_gaussians_of, config_for_schedule, prompts_from_config
    from search.schedule import Schedule
    from search.validate.repair import RepairSearch, carry_over

    schedule = schedule if isinstance(schedule, Schedule) else Schedule.load(schedule)
    limits = criteria_for(schedule, tolerance, criterion)
    calibration, held_out = prompts or prompts_from_config(config_for_schedule(schedule).prompts)
    add_gaussians_of(schedule, model)
    moved = carry_over(schedule, model)
    verifier = Verifier(model, held_out, batch=batch, seed=seed, keep=True)
    on_message("calibration prompts")
    repair = RepairSearch(schedule, moved, model, calibration[:batch], limits, refit, seed)
    last = repair.fitted()
    first = verdict = verifier.verify(last, limits, seconds, samples, on_message)
    repaired: Sequence[int] = ()
    if not first.passed and first.values and runs:
        for steps in repair.repairs(runs, on_message):
            last, repaired = repair.fitted(steps), steps
            verdict = verifier.verify(last, limits, seconds, samples, on_message)
            if verdict.passed:
                break
    certified = _renewed(schedule, last, model, held_out, batch, seconds, on_message) if verdict.passed else None
    carried = certified.schedule if certified and certified.schedule else last.with_certificate(None)
    return Transfer(
        schedule,
        carried.with_scores(repair.scores(last, verdict)) if verdict.passed else None,
        repair.fitted(),
        verdict,
        first,
        (repair.before, repair.share(last)),
        repair.notes,
        sorted(repaired),
        repair.runs,
        certified,
    )


def _renewed(
    source: "Schedule",
    schedule: "Schedule",
    model: "Model",
    prompts: Sequence[str],
    batch: int,
    seconds: float,
    on_message: Callable[[str], None],
) -> Verdict | None:
    """The verdict on the source's certificate for the schedule that was carried over; None where it has none."""
    if (certificate := source.certificate) is None:
        return None
    runs = max(Certify().runs, certificate.runs)
    settings = settings_for(source, "", certificate.share, certificate.confidence, runs)
    verifier = Verifier(model, prompts, renewal_noise(runs), batch)
    try:
        return renew_certificate(verifier, schedule, settings, seconds, on_message=on_message)
    except ValueError as error:  # it is about something that only a search measures
        return make_verdict(None, str(error), certificate.criterion, {}, {})
