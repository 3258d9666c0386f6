"""An integer decision of a space: all that engines know of what they decide."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Gene:
    """One integer decision with values 0 .. levels-1; level 0 is off.

    Attributes:
        name: Unique within the space; `<decision>@<step>` where there is one such decision per step.
        levels: The number of values; a gene of one level decides nothing.
        group: Genes of the same group are exchanged together by engines; `step 3` for genes of step 3 by default.
        ordered: Whether neighbouring levels are similar, so that engines may change a gene by one level.
        step: The teacher's step that the gene is about; None where it is about whole runs.

    Example:
        >>> from search.spaces.gene import Gene
        >>> Gene("depth@4", levels=3, step=4)
        Gene(name='depth@4', levels=3, group='step 4', ordered=True, step=4)
    """

    name: str
    levels: int
    group: str = ""
    ordered: bool = True
    step: int | None = None

    def __post_init__(self) -> None:
        if self.step is not None and not self.group:
            object.__setattr__(self, "group", f"step {self.step}")
