"""What is left of a search when its loop has ended: all that its result is made of."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from search.config.settings import Config
from search.evaluate.evaluator import Evaluator
from search.loop.candidates import CandidateBuilder
from search.loop.state import SearchState
from search.models.base import Model
from search.objectives.base import Objective


@dataclass(frozen=True)
class FinishedSearch:
    """A search that has ended; `stopped` says why it ended early, or is empty.

    `evaluator` is the one of the calibration prompts. `reported` are the objectives of `guard=` that can be measured,
    `unusable` the reasons why the others cannot.
    """

    config: Config
    folder: Path
    quarantine: Path  # file of the objectives' failures
    model: Model
    state: SearchState
    evaluator: Evaluator
    candidates: CandidateBuilder
    reported: Mapping[str, Objective]
    unusable: Mapping[str, str]
    held_out_prompts: tuple[str, ...]
    on_message: Callable[[str], None]
    stopped: str = ""

    @property
    def objectives(self) -> Mapping[str, Objective]:
        """The objectives that were searched, by name."""
        return self.evaluator.objectives
