"""At which step the latents of a run stop being finite, without waiting for a GPU within the run."""

import logging

import torch
from torch import Tensor

log = logging.getLogger("search")


class FiniteCheck:
    """Asks the device after each step whether all latents are finite, and reads the answers when the run has ended.

    Attributes:
        step: The step of the last whole run, from 1, after which its latents were not finite; None where they were
            after every step.

    Example:
        >>> import torch
        >>> from search.schedule.apply.finite_check import FiniteCheck
        >>> check = FiniteCheck()
        >>> for number, latents in enumerate([torch.zeros(2), torch.tensor([0.0, torch.inf])]):
        ...     check.record(number, 2, latents)
        >>> check.step
        2
    """

    def __init__(self) -> None:
        self.step: int | None = None
        self._answers: dict[int, Tensor] = {}  # by step

    def record(self, step: int, steps: int, latents: Tensor) -> None:
        """Take the latents after `step`, from 0, of a run of `steps`; after the last one say what was found."""
        if step == 0:
            self.step = None
            self._answers.clear()
        self._answers[step] = torch.isfinite(latents).all()
        if step + 1 < steps:
            return
        finite = dict(zip(self._answers, torch.stack([*self._answers.values()]).tolist(), strict=True))
        self._answers.clear()
        if not all(finite.values()):
            self.step = min(at for at, answer in finite.items() if not answer) + 1
            log.warning(
                "the latents are not finite after step %d of %d, so what this run gives is of no use; run the pipeline "
                "without the schedule to see whether the schedule is the reason",
                self.step,
                steps,
            )
