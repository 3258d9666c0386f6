"""The monitor of a certificate: how much the denoiser's output changed between steps in the runs that met it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from search.models.base import rows_of
from search.schedule.apply.monitor import ChangeRecorder

if TYPE_CHECKING:
    from search.models.base import Model
    from search.schedule import Schedule

LEAST_SPREAD = 1e-4  # of the changes at a step that is judged: where outputs are reused whole there is none


class RecordedRuns:
    """Runs of one schedule, made in batches: the changes of the denoiser's output in each of them."""

    def __init__(self) -> None:
        self._batches: list[dict[int, Tensor]] = []

    def sample(self, model: "Model", schedule: "Schedule", prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        """Final latents of B runs, whose changes are recorded."""
        recorder = ChangeRecorder()
        with model.apply(schedule, guard=recorder):
            latents = model.sample(prompts, seeds)
        steps = recorder.changes.items()
        self._batches.append({step: rows_of(torch.cat(changes), len(prompts)) for step, changes in steps})
        return latents

    def monitor_part(self, missed: Sequence[bool], steps: int | None) -> dict[str, Any] | None:
        """The content of `certificate.monitor`; None where nothing that can be judged was recorded.

        Args:
            missed: Which of the runs missed the criterion, in their order; these are left out.
            steps: How many the schedule has. The last one is not judged: nothing would be left to compute.
        """
        met = [number for number, miss in enumerate(missed) if not miss]
        if steps is None or len(met) < 2:
            return None
        found = {step for batch in self._batches for step in batch if step < steps - 1}
        changes = {step: torch.cat([batch[step] for batch in self._batches])[met].double() for step in sorted(found)}
        judged = {s: rows for s, rows in changes.items() if rows.isfinite().all() and rows.std() > LEAST_SPREAD}
        if not judged:
            return None
        rows = torch.stack([*judged.values()])  # [steps, runs]
        mean, spread = rows.mean(dim=1), rows.std(dim=1)
        counts = torch.arange(1, len(rows) + 1)
        distances = ((rows - mean[:, None]) / spread[:, None]).cumsum(dim=0).abs() / counts[:, None]
        return {
            "runs": len(met),
            "steps": [*judged],
            "mean": [round(value, 6) for value in mean.tolist()],
            "spread": [round(value, 6) for value in spread.tolist()],
            "limit": [round(value + 1e-4, 4) for value in distances.amax(dim=1).tolist()],
        }
