"""The part of the file that plans nodes."""

from typing import Annotated, Literal

from pydantic import Field

from search.schedule.errors import ScheduleError
from search.schedule.model.nodes import Node
from search.schedule.parts.part import MAX_ENTRIES, Part
from search.schedule.plan.plan import Plan
from search.schedule.plan.tokens import MAX_STEPS, values_read


class PlanPart(Part):
    """Actions per node and step; without this part, and for nodes without a rule, everything is computed.

    Attributes:
        value: What is stored of blocks and stacks: their outputs (`out`), or output minus input (`residual`); of other
            nodes it is always the output.
        axis: Where forecasts place the steps, those of gates too: by number, timestep, sigma or log-SNR.
        ahead: So many steps that reuse a UNet's encoder run as one batch where they can
            (search/schedule/apply/ahead.py); 1 runs each alone.
        rules: Pairs of a selector and actions, `["transformer_blocks.*:attn1", "(C R)*4"]`; a later rule takes
            precedence.
    """

    value: Literal["out", "residual"] = "out"
    axis: Literal["index", "timestep", "sigma", "logsnr"] = "index"
    ahead: int = Field(default=1, ge=1, le=MAX_STEPS)
    rules: list[tuple[Annotated[str, Field(max_length=20_000)], Annotated[str, Field(max_length=100_000)]]] = Field(
        max_length=MAX_ENTRIES
    )


def reused_blocks(plan: Plan) -> list[Node]:
    """The blocks and stacks whose values are reused or forecast."""
    planned = [plan.tree.nodes[name] for name in plan.planned()]
    return [n for n in planned if n.kind in ("stack", "block") and any(values_read(t) for t in plan.tokens[n.name])]


def check_residual(plan: Plan) -> None:
    """Raise ScheduleError where a reused block or stack has no residual."""
    for node in reused_blocks(plan):
        if not plan.tree.stack(node.stack).outputs:
            raise ScheduleError(
                f"plan.value is 'residual', but what enters {node.name} is not what it gives; use 'out', or plan its "
                "components"
            )
