"""Measure a schedule against the teacher until its criteria are decided."""

import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.config.load import held_out_prompts
from search.results.pick import Condition
from search.results.scores import Score
from search.validate.criteria import FEWEST, all_hold, claimed_criteria, criteria_for, measured_qualities
from search.validate.environment import environment_differences
from search.validate.monitor import RecordedRuns
from search.validate.renewal import renew_certificate, renewal_noise, settings_for
from search.validate.verdict import Verdict, make_verdict, reason_of, remedy_for, score_text

if TYPE_CHECKING:
    from torch import Tensor

    from search.models.base import Model
    from search.schedule import Schedule


ROUNDS = 3  # of timing


def verify(
    schedule: "Schedule | str | Path",
    model: "Model | str | None" = None,
    prompts: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    tolerance: float = 1.25,
    criterion: str = "",
    seconds: float = 60.0,
    samples: int = 256,
    batch: int = 8,
    on_message: Callable[[str], None] = lambda text: None,
    certify: str = "",
    share: float = 0.9,
    confidence: float = 0.95,
) -> Verdict:
    """Test whether a schedule meets its criteria on a model.

    Args:
        schedule: A schedule or its file.
        model: A loaded model (with a LoRA, other steps, another size), an option such as "pixart", or None for the one
            that the file names.
        prompts: By default the model's held-out prompts. If there are fewer prompts than pictures they are repeated
            with other noise.
        seeds: Of the noise, one per picture.
        tolerance: Factor on the drift that the file claims, used if there is no criterion.
        criterion: Such as `"drift<=0.1 and psnr>=30"`.
        seconds: Time after which no further batch is started.
        samples: Pictures at most.
        batch: Pictures that are denoised together.
        on_message: Called with a line after every batch.
        certify: The criterion of a certificate, such as `"psnr>=30"`; by default that of the file's certificate, unless
            there is a criterion. `"off"` verifies means.
        share: Of new runs that meet it, at least.
        confidence: Of the certificate.

    Raises:
        ValueError: There is nothing to verify against, or an argument is out of range.
    """
    from search.config.load import add_gaussians_of, config_for_schedule, model_from_config
    from search.schedule import Schedule

    seed = 0
    schedule = schedule if isinstance(schedule, Schedule) else Schedule.load(schedule)
    settings = settings_for(schedule, certify or ("off" if criterion else ""), share, confidence, samples)
    limits = criteria_for(schedule, tolerance, criterion) if settings.criterion is None else []
    if model is None or isinstance(model, str) or prompts is None:
        named = [f"model={model}"] if isinstance(model, str) else []
        config = config_for_schedule(schedule, named)
        prompts, seed = (held_out_prompts(config), config.prompts.seed) if prompts is None else (prompts, 0)
        model = model_from_config(config) if model is None or isinstance(model, str) else model
    add_gaussians_of(schedule, model)
    if settings.criterion is not None:
        noise = seeds or renewal_noise(samples, seed)
        return renew_certificate(
            Verifier(model, prompts, noise, batch), schedule, settings, seconds, on_message=on_message
        )
    return Verifier(model, prompts, seeds, batch, seed).verify(schedule, limits, seconds, samples, on_message)


class Verifier:
    """One model, prompts and noise, on which any number of schedules are verified."""

    def __init__(
        self,
        model: "Model",
        prompts: Sequence[str],
        seeds: Sequence[int] | None = None,
        batch: int = 8,
        seed: int = 0,
        keep: bool = False,
    ) -> None:
        """`seeds` are those of the noise, one per picture; without them they are derived from the seed of a search.

        With `keep` the teacher's results stay in memory for the next schedule.
        """
        if not prompts or (seeds is not None and not seeds):
            raise ValueError("prompts and seeds must not be empty; give at least one prompt, and one seed or None")
        if batch < 1:
            raise ValueError(f"prompts.batch={batch}: give 1 or more pictures to denoise together")
        self.model, self.prompts, self.batch = model, list(prompts), batch
        self.seeds, self.seed, self.keep = None if seeds is None else list(seeds), seed, keep
        self._teacher_results: dict[range, tuple[Any, Tensor, Tensor, Tensor]] = {}

    def verify(
        self,
        schedule: "Schedule",
        limits: Sequence[Condition],
        seconds: float = 60.0,
        samples: int = 256,
        on_message: Callable[[str], None] = lambda text: None,
        timed: bool = True,
    ) -> Verdict:
        """The verdict within `seconds`, on `samples` pictures at most; the speed-up is measured only if `timed`."""
        from search.schedule.errors import ScheduleError

        most = samples if self.seeds is None else min(samples, len(self.seeds))
        if most < FEWEST or not 0 < seconds < float("inf"):
            raise ValueError(
                f"{most} pictures in {seconds:g} s cannot decide anything; give samples={FEWEST} or more, as many "
                "seeds, and a finite number of seconds above 0, for example seconds=60"
            )
        text = " and ".join(f"{c.name}{c.sign}{c.limit:.4g}" for c in limits)
        fixed = (text, claimed_criteria(schedule), environment_differences(schedule, self.model))
        start = time.monotonic()
        try:
            passed, reason, scores, values = self._decide(schedule, limits, start + seconds, most, on_message, timed)
        except ScheduleError as error:  # apply refuses it
            return make_verdict(
                False, f"the schedule cannot run here: {error}{remedy_for(fixed[2])}", *fixed, start=start
            )
        return make_verdict(passed, reason, *fixed, scores=scores, values=values, start=start)

    def measure(self, schedule: "Schedule", count: int, names: Sequence[str] = ("drift",)) -> dict[str, list[float]]:
        """Scores of the first `count` pictures by name: drift, psnr, ssim."""
        values: dict[str, list[float]] = {name: [] for name in names}
        for first in range(0, count, self.batch):
            for name, scores in self.measure_runs(
                schedule, range(first, min(first + self.batch, count)), names
            ).items():
                values[name] += scores
        return values

    def _decide(
        self,
        schedule: "Schedule",
        limits: Sequence[Condition],
        end: float,
        most: int,
        on_message: Callable[[str], None],
        timed: bool,
    ) -> tuple[bool | None, str, dict[str, Score], dict[str, list[float]]]:
        """Batches until all limits are decided or the time is over: decision, reason, scores, values by picture.

        Decisions are taken after 8, 16, 32 … pictures, so that few looks are taken at the same intervals.
        """
        from search.results.compare import mean_interval

        names = ["drift", "psnr", *(["ssim"] if any(c.name == "ssim" for c in limits) else [])]
        values: dict[str, list[float]] = {name: [] for name in names}
        scores: dict[str, Score] = {}
        slowest, next_look, first = 0.0, FEWEST, 0
        if timed or any(c.name == "speedup" for c in limits):
            on_message("timing, in turns with the teacher")
            scores["speedup"] = self._speedup(schedule)
        passed: bool | None = None
        while first < most:
            began = time.monotonic()
            if first and began + slowest > end:
                break
            part = range(first, min(first + self.batch, most))
            for name, measured in self.measure_runs(schedule, part, names).items():
                values[name] += measured
            first, slowest = part.stop, max(slowest, time.monotonic() - began)
            scores |= {name: mean_interval(values[name]) for name in names}
            on_message(f"{first} pictures: " + ", ".join(f"{n} {score_text(n, s)}" for n, s in scores.items()))
            if first >= next_look:
                next_look = 2 * first
                if (passed := all_hold(limits, scores)) is not None:
                    break
        if first >= FEWEST:  # the last decision, on all that was measured
            passed = all_hold(limits, scores)
        return passed, reason_of(passed, limits, scores, first, most), scores, values

    def measure_runs(
        self, schedule: "Schedule", part: range, names: Sequence[str], recorded: RecordedRuns | None = None
    ) -> dict[str, list[float]]:
        """Values by name for some of the pictures, whose runs are added to `recorded`."""
        prompts, seeds, teacher, images = self._teacher(part)
        if recorded is None:
            with self.model.apply(schedule):
                latents = self.model.sample(prompts, seeds).cpu()
        else:
            latents = recorded.sample(self.model, schedule, prompts, seeds).cpu()
        pairs = {"latents": (latents, teacher), "images": (self.model.decode(latents, prompts, seeds).cpu(), images)}
        qualities = {name: self._qualities[name] for name in names}
        return {name: [float(v) for v in quality(*pairs[quality.of])] for name, quality in qualities.items()}

    def _teacher(self, part: range) -> "tuple[list[str], list[int], Tensor, Tensor]":
        """Prompts, seeds, and the teacher's latents and pictures, for some of the pictures."""
        if part in self._teacher_results:
            return self._teacher_results[part]
        from search.config.load import HELD_OUT_SEED

        prompts = [self.prompts[i % len(self.prompts)] for i in part]
        seeds = [self.seeds[i] if self.seeds else HELD_OUT_SEED + self.seed + i for i in part]
        latents = self.model.sample(prompts, seeds).cpu()
        results = prompts, seeds, latents, self.model.decode(latents, prompts, seeds).cpu()
        if self.keep:
            self._teacher_results[part] = results
        return results

    @cached_property
    def _qualities(self) -> dict[str, Any]:
        return {kind.key: kind() for kind in measured_qualities()}

    def _speedup(self, schedule: "Schedule") -> Score:
        import statistics

        from search.calibrate.timing import time_schedules

        milliseconds, teacher = time_schedules(self.model, [schedule, None], ROUNDS)
        ratios = [b / a for a, b in zip(milliseconds, teacher, strict=True)]
        return Score(statistics.median(ratios), min(ratios), max(ratios))
