"""What a search begins with: published rules, and the rows that spaces propose from measured tables."""

import logging
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from search.calibrate.propose.beam import beam_rows
from search.calibrate.propose.cache import (
    cachequant_rows,
    interval_rows,
    minimax_rows,
    smoothcache_rows,
    smoothcache_tokens,
)
from search.calibrate.propose.olss import olss_rows
from search.calibrate.propose.prior import Prior, measured_prior
from search.calibrate.propose.rows import RowBuilder
from search.calibrate.tables import MeasuredTables
from search.evaluate.evaluator import Evaluator
from search.models.base import Model, to_schedule
from search.objectives.base import Cost, Objective
from search.objectives.macs import Macs
from search.profile.costs import Costs
from search.profile.tables import GeneTable
from search.profile.target import Target
from search.spaces.base import Space

THRESHOLDS = (0.05, 0.1, 0.2)
MOST_SEEDS = 72  # what calibration proposes first

log = logging.getLogger("search")


class Proposals:
    """Presets and proposed rows of a space; a joint space's are those of its single spaces and their combinations.

    Everything is measured on the probe's few prompts when it is asked for, once.

    Args:
        space: What the search decides.
        target: The model as the space sees it.
        model: The model that runs.
        probe: Evaluates schedules on a few prompts, and counts the work.
        costs: MACs and bytes of every node.
        objectives: Those of the search; its costs are what rows are spread over.
        on_message: Called with what is being measured.
    """

    def __init__(
        self,
        space: Space,
        target: Target,
        model: Model,
        probe: Evaluator,
        costs: Costs,
        objectives: Sequence[Objective],
        on_message: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.space, self.target, self.model, self.probe, self.costs = space, target, model, probe, costs
        self.prices = [o for o in objectives if isinstance(o, Cost)] or [Macs()]
        self.on_message = on_message
        self.rows = RowBuilder(space, target)
        self.single_spaces = self.rows.single_spaces
        self.tables = MeasuredTables(self.single_spaces, target, model, probe, costs, self.prices, on_message)
        self._proposed: dict[str, list[np.ndarray]] = {}

    def presets(self) -> dict[str, np.ndarray]:
        """Published rules as rows [G] by name, and SmoothCache's rule on the measured errors."""
        presets = dict(self.space.presets(self.target))
        for threshold in THRESHOLDS if self.space.reuses_values(self.target) else ():
            x = self.space.encode(smoothcache_tokens(self.tables, threshold), self.target)
            if x is not None and x.any():
                presets[f"SmoothCache α={threshold:g}"] = x
        return presets

    def initial_rows(self, by: str) -> np.ndarray:
        """Rows [N, G] that an engine begins with.

        Args:
            by: `proposals`, `none`, or the name of one of `methods`.

        Raises:
            ValueError: There is no such method, or it has no rows on this space.
        """
        methods: dict[str, Callable[[], np.ndarray]] = {"proposals": self.seeds, "none": lambda: self.rows.stack([])}
        methods |= self.methods()
        if by not in methods:
            raise ValueError(f"initial={by} is unknown; choose from {', '.join(methods)}, for example initial=presets")
        return methods[by]()

    def seeds(self) -> np.ndarray:
        """What deserves to be tried first: combinations, what each space proposes, then presets."""
        proposed = self.combined()
        for key in self.single_spaces:
            proposed += self.rows.lift(key, self.proposed(key))
        return self.rows.stack([*proposed, *self.presets().values()])[:MOST_SEEDS]

    def methods(self) -> dict[str, Callable[[], np.ndarray]]:
        """Functions that make rows [N, G], by name; they raise ValueError where a method has none on this space."""
        rows, tables = self.rows, self.tables
        lists: dict[str, Callable[[], list[np.ndarray]]] = {
            "dp": self.exact_fronts,
            "olss": lambda: olss_rows(rows, tables),
            "dp_max": lambda: minimax_rows(rows, tables, "max"),
            "dp_lexicographic": lambda: minimax_rows(rows, tables, "lexicographic"),
            "presets": lambda: list(self.presets().values()),
            "intervals": lambda: interval_rows(rows),
            "smoothcache": lambda: smoothcache_rows(rows, tables),
            "cachequant": lambda: cachequant_rows(rows, tables),
        }
        arrays: dict[str, Callable[[], np.ndarray]] = {name: partial(rows.stack_of, f) for name, f in lists.items()}
        return arrays | {"beam": self.beam}

    def exact_fronts(self) -> list[np.ndarray]:
        """The exact front of every space that has a table, and the combinations of what they propose."""
        rows: list[np.ndarray] = []
        reasons = []
        for key, space in self.single_spaces.items():
            try:
                rows += self.rows.lift(key, space.exact_front(self.tables))
            except ValueError as error:
                reasons.append(str(error))
        if not rows:
            raise ValueError(
                reasons[0] if reasons else f"no row of {self.space.key} is on an exact front; use engine=nsga2"
            )
        return [*rows, *self.combined()]

    def beam(self) -> np.ndarray:
        """A Pareto beam over the time axis, from the actions of the seeds."""

        def on_step(step: int, executed: int) -> None:
            self.on_message(f"beam: step {step} of {self.target.steps}, {executed} steps executed")

        return beam_rows(self.space, self.target, self.probe, self.seeds(), self.costs, on_step=on_step)

    def table(self) -> GeneTable:
        """Every gene alone, measured; spaces side by side.

        Raises:
            ValueError: A space is not additive.
        """
        for key, space in self.single_spaces.items():
            if not space.additive:
                raise ValueError(
                    f"the {key} space has no additive table: its genes do nothing alone, or there are too many levels; "
                    "use engine=nsga2"
                )
        tables = [self.tables.gene_table(key) for key in self.single_spaces]
        return GeneTable(
            [error for table in tables for error in table.errors],
            [[cost for table in tables for cost in table.costs[i]] for i in range(len(self.prices))],
            [vector for table in tables for vector in table.vectors],
        )

    def prior(self) -> Prior | None:
        """What the tables expect of any row; None where no space reuses values, and the tables do not apply."""
        if self.rows.reusing_spaces:
            return measured_prior(self.space, self.tables)
        log.info("no prior: no row of space %s reuses a value (Space.encode)", self.space.key)
        return None

    def proposed(self, key: str) -> list[np.ndarray]:
        """All that a single space proposes, in its own genes; a message in the log where that is nothing."""
        if key not in self._proposed:
            reason = "its propose() returns no row"
            try:
                self._proposed[key] = self.single_spaces[key].propose(self.tables)
            except ValueError as error:  # presets and the engine's own draws have to do
                self._proposed[key], reason = [], str(error)
            if not self._proposed[key]:
                log.info("space %s proposes no rows from measured tables: %s", key, reason)
        return self._proposed[key]

    def combined(self) -> list[np.ndarray]:
        """Rows of all spaces at once, spread over the first cost; none where there is one space."""
        if len(self.single_spaces) < 2:
            return []
        return self.rows.combine({key: self.proposed(key) for key in self.single_spaces}, self._price)

    def _price(self, key: str, row: np.ndarray) -> float:
        parts = dict(self.single_spaces[key].decode(row, self.target))
        return self.prices[0](to_schedule(self.model, parts), self.costs)
