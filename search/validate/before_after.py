"""Pictures before and after a schedule, of the same prompts and noise, with measured times."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from search.models.base import Model
    from search.schedule import Schedule


@dataclass(frozen=True)
class Generated:
    """Pictures of the same prompts and noise before and after a schedule, with times.

    Attributes:
        prompts: What was drawn.
        before: Pictures of the untouched pipeline, uint8 [H, W, 3] each.
        after: Pictures under the schedule.
        milliseconds_before: Of each timed round, for all prompts together.
        milliseconds_after: The same under the schedule.
        name: Title of the figure.
    """

    prompts: Sequence[str]
    before: "Sequence[np.ndarray]"
    after: "Sequence[np.ndarray]"
    milliseconds_before: Sequence[float]
    milliseconds_after: Sequence[float]
    name: str = "schedule"

    @cached_property
    def speedup(self) -> float:
        """Median over rounds of how many times as fast the pipeline is with the schedule."""
        pairs = zip(self.milliseconds_before, self.milliseconds_after, strict=True)
        return statistics.median(before / after for before, after in pairs)

    @cached_property
    def psnr(self) -> list[float]:
        """PSNR in dB of every picture against the one before."""
        import numpy as np

        errors = [
            np.square(a.astype(float) - b.astype(float)).mean() / 255**2
            for a, b in zip(self.before, self.after, strict=True)
        ]
        return [100.0 if not error else min(100.0, -10 * float(np.log10(error))) for error in errors]

    def png(self) -> bytes:
        """Before, after, and four times their difference."""
        from search.figures.pictures import difference, rows_png

        apart = [difference(a, b) for a, b in zip(self.before, self.after, strict=True)]
        before, after = map(statistics.median, (self.milliseconds_before, self.milliseconds_after))
        count = len(self.prompts)
        rows = [
            (f"before\n{before / count:.0f} ms a picture", self.before, False),
            (f"after\n{after / count:.0f} ms a picture\nPSNR {statistics.mean(self.psnr):.1f} dB", self.after, False),
            ("difference ×4", apart, False),
        ]
        return rows_png(rows, self.prompts, f"{self.name}\n{self.speedup:.2f}× as fast, same noise")

    _repr_png_ = png  # a notebook shows it


def generate(
    schedule: "Schedule | str | Path",
    model: "Model | str | None",
    prompts: str | Sequence[str],
    seed: int,
    repeats: int,
    name: str,
    on_progress: Callable[[str, int, int], None],
) -> Generated:
    """Draw the prompts with the untouched pipeline and under the schedule; whole pipeline calls are timed.

    `model` is a loaded one, the name of its option, or None for the one that the schedule was searched on.
    """
    from search.calibrate.timing import time_call
    from search.config.load import open_schedule_and_model, title_of_schedule

    name = name or title_of_schedule(schedule)
    schedule, model, _ = open_schedule_and_model(schedule, model)
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    seeds = [seed + i for i in range(len(prompts))]
    times: tuple[list[float], list[float]] = ([], [])
    pictures: list[Any] = [None, None]

    def once(which: int) -> None:
        def draw() -> None:
            pictures[which] = model.stock(prompts, seeds, output_type="np")[0]

        times[which].append(time_call(model, draw))

    for number in range(repeats + 1):
        once(0)
        with model.apply(schedule):
            once(1)
        on_progress("before and after", number + 1, repeats + 1)
    before, after = map(_pictures, pictures)
    return Generated(prompts, before, after, times[0][1:], times[1][1:], name)  # the first round warms up


def _pictures(images: Any) -> "list[np.ndarray]":
    """uint8 [H, W, 3] of pictures [B, H, W, 3] in [0, 1]; of a film [B, F, H, W, 3] its middle frame."""
    import numpy as np

    array = np.asarray(images)
    if array.ndim == 5:
        array = array[:, array.shape[1] // 2]
    if array.ndim != 4 or array.shape[-1] != 3:
        raise ValueError(f"this model gives arrays of shape {list(array.shape)}, which are not pictures")
    return list((array * 255).round().clip(0, 255).astype(np.uint8))
