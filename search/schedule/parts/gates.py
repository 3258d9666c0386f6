"""The part of the file about groups of blocks whose actions are decided while the denoiser runs."""

from typing import Annotated, Literal

from pydantic import Field

from search.schedule.parts.part import Finite, Part
from search.schedule.plan.tokens import MAX_STEPS

ASK = "G"
Signal = Literal["first_block_forecast", "first_block_residual", "modulated_input", "model_input", "table"]
OF_BEFORE = ("first_block_forecast", "first_block_residual")  # read the block before the group
PerStep = Annotated[list[Finite], Field(max_length=MAX_STEPS)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class GatePart(Part):
    """A run of blocks as one node, whose actions may be decided while the denoiser runs.

    `group` is of blocks that follow each other, `transformer_blocks.[1-18]+single_transformer_blocks.*`; `actions` has
    one per step: C compute, R reuse, F1..F9 forecast, G let the gate decide. At G the gate passes where `signal`
    changed by less than `threshold`, a number or one per step (0 always computes), and the group's action is `then`;
    else it is computed. Changes are relative L1, the largest of the batch, rescaled by the polynomial `poly` (highest
    power first), with `accumulate` summed up since the group was last computed. At most `max_run` steps in a row pass,
    and once the gate has computed `most` steps of a run it always passes: a bound on the cost of a run. `table` [T] are
    the ratios of signal `table`. `value` is what is stored: the group's output, or what it adds to its input.
    """

    group: Annotated[str, Field(min_length=1, max_length=20_000)]
    actions: Annotated[str, Field(max_length=100_000)]
    value: Literal["out", "residual"] = "out"
    then: str = Field(default="R", pattern="^(R|F[1-9])$")
    signal: Signal | None = None
    threshold: NotNegative | Annotated[list[NotNegative], Field(max_length=MAX_STEPS)] | None = None
    accumulate: bool = False
    poly: Annotated[list[Finite], Field(min_length=1, max_length=20)] | None = None
    table: PerStep | None = None
    max_run: int | None = Field(default=None, ge=1, le=MAX_STEPS)
    most: int | None = Field(default=None, ge=0, le=MAX_STEPS)
