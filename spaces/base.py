"""What a space is: integer genes that decode to parts of a schedule."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from search.exact.knapsack import allocation_rows
from search.exact.rows import unique_rows
from search.profile.cache_plans import least_error_plans
from search.profile.tables import Tables
from search.profile.target import Target
from search.spaces.gene import Gene

START = "start"  # the group of genes about how a run starts


def require_steps(what: str, least: int, target: Target, instead: str = "[skip,bits], which need one") -> None:
    """Raise ValueError where the teacher has fewer steps than `what` needs; `instead` is what can be searched."""
    if target.reference < least:
        raise ValueError(
            f"{what} needs at least {least} steps, model.steps is {target.reference}; search space={instead}, or use "
            f"model.steps={least} or more"
        )


def forecast_order(key: str, given: int | None, default: int, target: Target) -> int:
    """The highest order of a space's forecasts: as given, else `default`, or 0 where the sampler draws new noise.

    Raises:
        ValueError: An order above 0 is given, and the sampler draws all noise anew at every step.
    """
    if given and target.renoises:
        raise ValueError(
            f"the scheduler of {target.name} draws new noise at every step, and outputs are not forecast across that; "
            f"use space.{key}.max_order=0, which reuses them"
        )
    return (0 if target.renoises else default) if given is None else given


class Space(ABC):
    """Decisions about how a denoiser is run, as a row x of G integers. The row of zeros is the bare pipeline.

    A subclass states its `key` and implements `genes`, `decode` and `presets`. Everything else is optional: what a
    space can encode, calibration tables propose first rows for (`encode`, `encode_timesteps`, `encode_solver_fit`, or
    its own `propose`).

    Attributes:
        key: The name in `+space=<key>` and of the space's own options.
        stage: When the space decodes among several: 0 moves the steps, 1 solves on them or names denoisers, 2 decides
            what runs inside of a step.
        additive: Whether there are few enough levels to measure each alone, for dynamic and integer programs.
        table_from_half_run: Whether that table may be measured on runs of half the steps: the genes mean the same at
            any number of steps, and their errors rank alike.

    Example:
        >>> from search.spaces.gene import Gene
        >>> Gene("skip block 3", levels=2, step=4).group
        'step 4'
    """

    key: ClassVar[str]
    stage: ClassVar[int] = 2
    additive: ClassVar[bool] = False
    table_from_half_run: ClassVar[bool] = False

    @abstractmethod
    def genes(self, target: Target) -> list[Gene]:
        """The decisions on this target, in the order of a row.

        Args:
            target: The model; genes of steps are about its teacher's steps 0 .. `target.reference` - 1.

        Returns:
            G genes with different names; the same list for the same target.

        Raises:
            ValueError: The space does not apply to this target; says why, and what to type instead.
        """

    @abstractmethod
    def decode(self, x: Sequence[int] | np.ndarray, target: Target) -> Mapping[str, Any]:
        """Parts of a schedule file for a row.

        Args:
            x: Levels [G], one for each gene.
            target: The model; `target.at` names for each of its steps the teacher's step whose genes it takes.

        Returns:
            Parts by the name that they have in a file (`{"plan": ...}`); `{}` where everything is off. Every row within
            the levels decodes: an action that reads a value that was not computed is lowered, not refused.
        """

    @abstractmethod
    def presets(self, target: Target) -> dict[str, np.ndarray]:
        """Published rules as rows, by the name that plots show: int [G] each, none of them all off."""

    # What a space can encode: by this, calibration tables reach a search

    def encode(self, tokens: Mapping[str, Sequence[str]], target: Target) -> np.ndarray | None:
        """The row that reuses and forecasts like this, so that exact plans of measured tables become first rows.

        Args:
            tokens: One action per step [T] of `denoiser` or of component kinds; a missing name computes.
            target: The model.

        Returns:
            The row [G]; None where no row of this space does that, as of a space that reuses nothing.
        """
        return None

    def encode_timesteps(self, timesteps: Sequence[float], target: Target) -> np.ndarray | None:
        """The row nearest to these timesteps, so that paths through a recorded run become first rows.

        Args:
            timesteps: Falling, at most as many as the teacher has; in training timesteps of the scheduler.
            target: The model.

        Returns:
            The row [G]; None of a space that does not choose timesteps.
        """
        return None

    def encode_solver_fit(self, target: Target) -> np.ndarray | None:
        """The row [G] that fits the pipeline's own solver; None of a space that has no solver to fit."""
        return None

    def reuses_values(self, target: Target) -> bool:
        """Whether rows reuse or forecast values of earlier steps: whether `encode` has an answer at all."""
        return self.encode({}, target) is not None

    # What a space proposes from measured tables

    def propose(self, tables: Tables) -> list[np.ndarray]:
        """Rows that deserve to be tried first, by what was measured of the model.

        Args:
            tables: Measured when they are read, which costs runs of the model.

        Returns:
            Rows [G], the most promising first; none of them all off.

        Raises:
            ValueError: Nothing follows from the tables; says why.
        """
        return self.exact_front(tables)

    def exact_front(self, tables: Tables) -> list[np.ndarray]:
        """Rows on the exact front of this space's additive table, for engine=dp.

        Args:
            tables: What was measured: errors of reuse for spaces that reuse values, else the table of single genes.

        Returns:
            Rows [G], each once, none of them all off.

        Raises:
            ValueError: The genes of this space have no effect alone, so there is no such table.
        """
        if self.reuses_values(tables.target):
            return unique_rows([self.encode(tokens, tables.target) for tokens in least_error_plans(tables)])
        if not self.additive:
            raise ValueError(
                f"the {self.key} space has no table for dynamic programming: its genes do nothing alone; "
                "use engine=nsga2"
            )
        table = tables.gene_table(self.key)
        return allocation_rows(table.errors, table.costs, table.vectors)

    # What else a space wants of a search

    @property
    def forecast_axis(self) -> str | None:
        """The axis on which this space's rows forecast (`index`, `timestep`, `sigma`, `logsnr`); None: they do not."""
        return None

    @property
    def needs_input_ranges(self) -> bool:
        """Whether the ranges of the layers' inputs have to be measured before anything is decoded."""
        return False

    @property
    def gaussian_rank(self) -> int:
        """The rank of the Gaussian of final latents that has to be fitted before anything is decoded; 0 for none."""
        return 0

    def wants_solver_fit(self, x: Sequence[int] | np.ndarray, target: Target) -> bool:
        """Whether a row asks that the solver table of its `sampler` part be fitted to the teacher.

        The decoded schedule has the table before the fit; the evaluator fits it on calibration prompts when it runs.
        """
        return False

    # Several spaces as one

    @property
    def single_spaces(self) -> tuple["Space", ...]:
        """The spaces that this one is made of: itself, unless it is a joint space."""
        return (self,)

    def join(self, rows: Mapping[str, np.ndarray], target: Target) -> np.ndarray:
        """A row [G] from rows of single spaces by key; in a joint space a missing key is off."""
        return rows[self.key]
