"""The certificate of a schedule: what is promised about a new run, and the runs that it rests on."""

from typing import Annotated

from pydantic import Field, model_validator

from search.schedule.errors import ScheduleError
from search.schedule.parts.part import Part

Between = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]
Line = Annotated[str, Field(max_length=400)]


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
