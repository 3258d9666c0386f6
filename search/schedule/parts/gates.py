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
    """A group of consecutive blocks as one node, whose actions may be decided while the denoiser runs.

    At a step G the gate passes where the signal changed by less than the threshold, and the group's action is `then`;
    else it is computed. Changes are relative L1, the largest of the batch.

    Attributes:
        group: The blocks, `transformer_blocks.[1-18]+single_transformer_blocks.*`.
        actions: One per step: C compute, R reuse, F1..F9 forecast, G let the gate decide.
        value: What is stored: the group's output (`out`), or output minus input (`residual`).
        then: The action where the gate passes, R or F1..F9.
        signal: What is measured (search/schedule/plan/gates.py); required where a step is G.
        threshold: A number, or one per step; 0 always computes.
        accumulate: Whether changes are summed up since the group was last computed.
        poly: A polynomial that rescales changes, highest power first; null leaves them as they are.
        table: The ratios [T] of the signal `table`, MagCache (arXiv:2506.09045).
        max_run: At most so many steps in a row pass; null for no limit.
        most: Once the gate has computed so many steps of a run it always passes; null for no limit on the cost.
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
