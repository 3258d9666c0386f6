"""The part of the file about timesteps and solver."""

from typing import Any

from pydantic import Field

from search.schedule.errors import ScheduleError
from search.schedule.parts.part import Finite, Name, Part
from search.schedule.plan.tokens import MAX_STEPS
from search.schedule.schedulers import check_order

MAX_COEFFICIENT = 1e6
MAX_TABLE = 1000  # steps of a solver table, whose size is their square


class CoefficientsPart(Part):
    """A linear multistep solver as a table: x[i+1] = state[i] * x[0] + sum over j <= i of outputs[i][j] * e[j].

    x[0] are the initial latents, e[j] is the guided output of the denoiser at step j. OLSS (arXiv:2305.14677).

    Attributes:
        state: Coefficients of x[0], [T].
        outputs: Coefficients of the outputs, rows of 1, 2, … T numbers.
    """

    state: list[Finite] = Field(max_length=MAX_TABLE)
    outputs: list[list[Finite]] = Field(max_length=MAX_TABLE)


class SamplerPart(Part):
    """How the scheduler runs; without this part it is the pipeline's own scheduler and grid.

    Attributes:
        class_name: A scheduler class of diffusers, `class` in the file.
        config: Its configuration.
        timesteps: Falling timesteps [T]; null for the class's own.
        sigmas: Falling sigmas [T+1], after the shift, with the terminal one; null for the class's own.
        order: Order of the solver at each step [T], a digit each; null for the class's own.
        coefficients: A table that runs instead of the class's solver; null for no table.
    """

    class_name: Name = Field(alias="class")
    config: dict[str, Any] = Field(default={}, max_length=200)
    timesteps: list[Finite] | None = Field(default=None, max_length=MAX_STEPS)
    sigmas: list[Finite] | None = Field(default=None, max_length=MAX_STEPS + 1)
    order: str | None = Field(default=None, max_length=MAX_STEPS, pattern="^[1-9]+$")
    coefficients: CoefficientsPart | None = None


def check_sampler(sampler: SamplerPart, steps: int | None) -> None:
    """Raise ScheduleError where lengths, order or range of the grid, the solver's orders or the table are wrong."""
    timesteps, sigmas, order = sampler.timesteps, sampler.sigmas, sampler.order
    for field, values, size in (("timesteps", timesteps, 0), ("sigmas", sigmas, 1), ("order", order, 0)):
        if values is not None and steps is not None and len(values) != steps + size:
            raise ScheduleError(f"sampler.{field} has {len(values)} entries; {steps} steps need {steps + size}")
    if sigmas is not None and timesteps is None:
        raise ScheduleError("sampler.sigmas is given without sampler.timesteps; give both")
    for field, values in (("timesteps", timesteps), ("sigmas", sigmas)):
        for i, (a, b) in enumerate(zip(values or [], (values or [])[1:], strict=False)):
            repeated = field == "sigmas" and a == b > 0 and i == len(values or []) - 2  # as DEIS repeats its last
            if not a > b and not repeated:
                raise ScheduleError(f"sampler.{field} must fall strictly, but {a} is followed by {b} at {i}")
        if values and (values[-1] < 0 or values[0] > 1e6):
            raise ScheduleError(f"sampler.{field} runs from {values[0]} to {values[-1]}; admissible is 0 to 1e6")
    if sampler.coefficients is not None:
        check_coefficients(sampler, steps)
    training = sampler.config.get("num_train_timesteps", 1000)
    if isinstance(training, bool) or not isinstance(training, int) or not 1 <= training <= 100_000:
        raise ScheduleError(f"sampler.config.num_train_timesteps is {training!r:.80}; admissible is 1 to 100000")
    if order is not None:
        check_order(sampler.class_name, [int(k) for k in order], sigmas, sampler.config)


def check_coefficients(sampler: SamplerPart, steps: int | None) -> None:
    """Raise ScheduleError where the table does not have one row of the right length per step."""
    table = sampler.coefficients
    assert table is not None
    if sampler.timesteps is None or steps is None:
        raise ScheduleError("sampler.coefficients is given without sampler.timesteps; a table belongs to its grid")
    if sampler.order is not None:
        raise ScheduleError(
            "sampler.order and sampler.coefficients are both given; the table says the order, leave one"
        )
    for field, rows in (("state", len(table.state)), ("outputs", len(table.outputs))):
        if rows != steps:
            raise ScheduleError(f"sampler.coefficients.{field} has {rows} rows; {steps} steps need {steps}")
    for i, row in enumerate(table.outputs):
        if len(row) != i + 1:
            raise ScheduleError(f"sampler.coefficients.outputs[{i}] has {len(row)} entries; row {i} has {i + 1}")
        for name, number in [("state", table.state[i]), *(("outputs", each) for each in row)]:
            if abs(number) > MAX_COEFFICIENT:
                raise ScheduleError(
                    f"sampler.coefficients.{name}[{i}] has {number}; admissible is {-MAX_COEFFICIENT:g} to "
                    f"{MAX_COEFFICIENT:g}"
                )
