"""Test a schedule's certificate on the model as it is loaded: this device, LoRA, size, number of steps."""

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from pydantic import ValidationError

from search.config.settings import Certify
from search.validate.certificate import certificate_part
from search.validate.criteria import claimed_criteria, measured_qualities
from search.validate.environment import environment_differences
from search.validate.monitor import RecordedRuns
from search.validate.run_criterion import run_criterion
from search.validate.verdict import Verdict, make_verdict, remedy_for

if TYPE_CHECKING:
    from search.schedule import Schedule
    from search.validate.verifier import Verifier

RENEWAL_SEED = 1_000_000  # of the first run, far from the seeds that searches use


def renewal_noise(runs: int, seed: int = 0) -> list[int]:
    """Seeds of the noise of so many runs, which no search has used."""
    return [RENEWAL_SEED + seed + i for i in range(runs)]


def settings_for(schedule: "Schedule", certify: str, share: float, confidence: float, runs: int) -> Certify:
    """What is promised: as it is typed, else as the file's certificate says; no criterion where there is neither.

    Raises:
        ValueError: So many runs cannot decide on it.
    """
    certificate = schedule.certificate
    if certify in ("off", "null") or not (certify or certificate):
        return Certify()
    if not certify and certificate:
        certify, share, confidence = certificate.criterion, certificate.share, certificate.confidence
    try:
        return Certify.model_validate({"criterion": certify, "share": share, "confidence": confidence, "runs": runs})
    except ValidationError as error:
        reason = error.errors()[0]
        named = ".".join(map(str, reason["loc"]))
        raise ValueError(f"{named + ': ' if named else ''}{reason['ctx']['error']} (samples= says how many)") from None


def renew_certificate(
    verifier: "Verifier",
    schedule: "Schedule",
    settings: Certify,
    seconds: float,
    call: Mapping[str, str] | None = None,
    on_message: Callable[[str], None] = lambda text: None,
) -> Verdict:
    """Run batches until it is decided, or the time is over; a verdict that is passed has the new certificate.

    Args:
        verifier: The model, its prompts, and the noise; by default noise that no search has used.
        schedule: What is tested.
        settings: The criterion, the share, the confidence and the most runs.
        seconds: Time after which no further batch is started.
        call: What is particular here, by name, such as a LoRA; it is recorded.
        on_message: Called with a line after every batch.

    Raises:
        ValueError: The criterion is not about something that can be measured here.
    """
    from search.results.compare import mean_interval
    from search.schedule.errors import ScheduleError

    criterion = run_criterion(settings.criterion or "", {kind.key: kind() for kind in measured_qualities()})
    rule, start, recorded = settings.rule(), time.monotonic(), RecordedRuns()
    fixed = criterion.text, claimed_criteria(schedule), environment_differences(schedule, verifier.model)
    values: list[float] = []
    missed: list[bool] = []

    most = rule.looks[-1] if verifier.seeds is None else min(rule.looks[-1], len(verifier.seeds))
    tested = None
    try:
        for first in range(0, most, verifier.batch):
            if tested is not None or (first and time.monotonic() > start + seconds):
                break
            runs = range(first, min(first + verifier.batch, most))
            values += verifier.measure_runs(schedule, runs, [criterion.objective], recorded)[criterion.objective]
            missed = criterion.missed(values)
            tested = rule.decide(missed)
            on_message(f"{len(values)} runs, {sum(missed)} missed {criterion.text}")
    except ScheduleError as error:  # apply refuses it
        reason = f"the schedule cannot run here: {error}{remedy_for(fixed[2])}"
        return make_verdict(False, reason, *fixed, start=start)
    scores = {criterion.objective: mean_interval(values)}
    counted = f"{sum(missed)} of {len(missed)} runs missed {criterion.text}"
    if tested is None:
        reason = f"{counted}; run more with samples= and seconds=, {rule.looks[0]} at least"
        return make_verdict(None, reason, *fixed, scores, {criterion.objective: values}, start)
    prompts = [verifier.prompts[i % len(verifier.prompts)] for i in range(tested.runs)]
    monitor = recorded.monitor_part(missed, schedule.steps)
    part = certificate_part(criterion.text, settings, tested, prompts, verifier.model, call, monitor)
    certified = schedule.with_certificate(part)
    promise = f"a probability of at least {settings.share:.4g}, confidence {settings.confidence:.4g}"
    reason = str(certified.certificate) if tested.certified else f"{counted}, too many for {promise}"
    verdict = make_verdict(tested.certified, reason, *fixed, scores, {criterion.objective: values}, start)
    return verdict.with_schedule(certified if tested.certified else None)
