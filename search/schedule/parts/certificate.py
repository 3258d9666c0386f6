"""The certificate of a schedule: what is promised about a new run, and the runs that it rests on."""

from typing import Annotated

from pydantic import Field, model_validator

from search.schedule.errors import ScheduleError
from search.schedule.parts.part import Finite, Part
from search.schedule.plan.tokens import MAX_STEPS

Between = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]
Line = Annotated[str, Field(max_length=400)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class MonitorPart(Part):
    """How much the denoiser's output, after guidance, changed between steps in runs that met the criterion.

    The change at a step is the logarithm of ||output - output of the step before|| / ||output of the step before||, of
    each picture. What is judged is the mean of (change - `mean`) / `spread` over the steps up to this one: a run is
    unusual from the first step on where that is further from 0 than `limit`.

    Attributes:
        runs: How many runs were recorded.
        steps: The steps that are judged, from 1, rising.
        mean: Of the changes at each of these steps.
        spread: Their standard deviation.
        limit: The greatest such distance from 0 that a recorded run had at each of these steps.
    """

    runs: int = Field(ge=2, le=10**9)
    steps: list[Annotated[int, Field(ge=1)]] = Field(min_length=1, max_length=MAX_STEPS)
    mean: list[Finite] = Field(max_length=MAX_STEPS)
    spread: list[Positive] = Field(max_length=MAX_STEPS)
    limit: list[Positive] = Field(max_length=MAX_STEPS)

    @model_validator(mode="after")
    def _consistent(self) -> "MonitorPart":
        lengths = [len(each) for each in (self.steps, self.mean, self.spread, self.limit)]
        if len({*lengths}) > 1:
            raise ScheduleError(
                "certificate.monitor has {} steps, {} means, {} spreads and {} limits; give one of each for every "
                "step".format(*lengths)
            )
        if self.steps != sorted({*self.steps}):
            raise ScheduleError(f"certificate.monitor.steps is {str(self.steps):.80}; list each step once, rising")
        return self


class CertificatePart(Part):
    """A promise: new runs meet the criterion with at least this probability.

    Attributes:
        criterion: The condition that every run is held to, against the teacher's run of the same prompt and noise:
            `psnr>=30`.
        share: The probability that a new run meets it, at least.
        confidence: The probability that no promise is made which does not hold.
        runs: How many held-out runs decided on it.
        misses: How many of these did not meet the criterion.
        prompts: How many different prompts they had.
        noises: How many runs a prompt had at most, each with noise of its own.
        population: What a new run is, in words.
        device: What it was measured on.
        versions: Of libraries, by name.
        call: What else differs from the call in `made`, by name, as text: a LoRA, another size.
        monitor: What `apply(pipe, guard=True)` compares runs with; null where it was not recorded.
    """

    criterion: str = Field(min_length=1, max_length=200)
    share: Between
    confidence: Between
    runs: int = Field(ge=1, le=10**9)
    misses: int = Field(ge=0, le=10**9)
    prompts: int = Field(ge=1, le=10**9)
    noises: int = Field(ge=1, le=10**9)
    population: Line
    device: Line = ""
    versions: dict[Line, Line] = Field(default={}, max_length=50)
    call: dict[Line, Line] = Field(default={}, max_length=50)
    monitor: MonitorPart | None = None

    @model_validator(mode="after")
    def _consistent(self) -> "CertificatePart":
        if self.misses > self.runs:
            raise ScheduleError(f"certificate.misses is {self.misses}, of {self.runs} runs; give at most as many")
        return self

    def __str__(self) -> str:
        """The promise in one line."""
        return (
            f"{self.population}: {self.criterion} with a probability of at least {self.share:.4g}, confidence "
            f"{self.confidence:.4g} ({self.misses} of {self.runs} runs missed it)"
        )
