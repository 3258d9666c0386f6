"""The description of a model that a space decides on, without its weights."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from search.profile.input_ranges import InputRanges
from search.schedule.model.nodes import Tree
from search.schedule.noise import Noise
from search.schedule.parts.gaussian import GAUSSIAN


@dataclass(frozen=True)
class Target:
    """The denoiser's nodes and layers, the number of steps T, and the teacher's own sampler part.

    Genes of a step belong to a step of the *teacher's* grid. Where another space has moved the steps, `at`
    names for every step of this grid the teacher's step nearest in log-SNR, whose genes it takes.

    Attributes:
        name: Name of the model's option.
        tree: The denoiser's nodes.
        steps: The number of steps T of this grid.
        model: The `model` part of a schedule file.
        sampler: The `sampler` part of a schedule file: class, configuration, timesteps [T] and sigmas [T+1]; empty
            where the pipeline's scheduler runs no other timesteps than its own.
        layers: Linear layers and convolutions by full name: (outputs, inputs of one output).
        guidance: The teacher's scale of classifier-free guidance; 1 is without guidance.
        teacher: The target on the teacher's grid; None where this is it.
        ranges: Of each layer's input at every step of the teacher; None where they were not measured
            (search/calibrate/ranges.py).
        others: Smaller denoisers that may run instead at some steps, by letter, the smallest first.
        models: The letter of the denoiser of every step where that is decided; "" where it is the teacher's throughout.
        left_out: How many of the scheduler's first steps the call leaves out, as runs from a picture do.
        renoises: Whether the scheduler draws all noise anew at every step, as those of consistency models do.

    Example:
        >>> from search.profile.target import Target
        >>> from search.schedule.model.nodes import Tree
        >>> sampler = {"class": "DDIMScheduler", "config": {}, "timesteps": [999.0, 700.0, 400.0, 100.0]}
        >>> target = Target("pixart", Tree("PixArtTransformer2DModel", {"transformer_blocks": 1}), 4, sampler=sampler)
        >>> moved = target.on({"steps": 2, "sampler": sampler | {"timesteps": [950.0, 420.0]}})
        >>> moved.steps, moved.reference, moved.at
        (2, 4, (0, 2))
    """

    name: str
    tree: Tree
    steps: int
    model: Mapping[str, Any] = field(default_factory=dict)
    sampler: Mapping[str, Any] = field(default_factory=dict)
    layers: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    guidance: float = 1.0
    teacher: "Target | None" = None
    ranges: InputRanges | None = None
    others: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    models: str = ""
    left_out: int = 0
    renoises: bool = False

    @property
    def kinds(self) -> tuple[str, ...]:
        """Component kinds in the order of execution, `("attn1", "attn2", "ff")`."""
        return self.tree.kinds

    @property
    def reference(self) -> int:
        """Number of steps of the teacher's grid, which the genes are about."""
        return (self.teacher or self).steps

    @property
    def networks(self) -> list[str]:
        """Letters of the smaller denoisers that are networks."""
        return [letter for letter, part in self.others.items() if part["class"] != GAUSSIAN]

    @property
    def timesteps(self) -> list[float]:
        """Of every step [T], on the scale of 1000 training timesteps that published rules count in."""
        scale = 1000 / self.sampler.get("config", {}).get("num_train_timesteps", 1000)
        timesteps = self.sampler.get("timesteps") or [(1 - t / self.steps) * 1000 / scale for t in range(self.steps)]
        return [float(t) * scale for t in timesteps]

    @property
    def planned_sampler(self) -> Mapping[str, Any]:
        """The sampler part, for what moves timesteps or replaces the solver.

        Raises:
            ValueError: The pipeline's scheduler runs no other timesteps than its own.
        """
        if not self.sampler:
            raise ValueError(
                f"the scheduler of {self.name} runs no timesteps of a schedule; search space=cache, which leaves it "
                "as it is, or type model.scheduler=DPMSolverMultistepScheduler, or another that does"
            )
        return self.sampler

    @cached_property
    def noise(self) -> Noise:
        """The noise schedule of the sampler."""
        return Noise.of(self.sampler)

    @cached_property
    def at(self) -> tuple[int, ...]:
        """For every step of this grid: the teacher's step whose genes it takes."""
        if self.teacher is None:
            return tuple(range(self.steps))
        teacher = self.teacher.noise.grid_logsnr(self.teacher.sampler)
        return tuple(int(np.abs(teacher - place).argmin()) for place in self.noise.grid_logsnr(self.sampler))

    def on(self, parts: Mapping[str, Any]) -> "Target":
        """The same denoiser on the grid of decoded parts (`steps`, `sampler`), with their `models`."""
        target = replace(self, models=parts["models"]["at"]) if "models" in parts else self
        if "sampler" not in parts:
            return target
        moved = replace(target, steps=parts.get("steps", self.steps), sampler=parts["sampler"])
        return replace(moved, teacher=self.teacher or self)

    def stitched(self, at: str) -> dict[str, Any]:
        """The part of a schedule that runs these denoisers, a letter per step; `{}` where it is one throughout."""
        names = {letter: dict(part) for letter, part in self.others.items() if letter in at}
        return {"models": {"names": names, "at": at}} if names else {}

    def schedule(self, parts: Mapping[str, Any]) -> dict[str, Any]:
        """The schedule file's content for parts that a space decoded."""
        sampler = {"sampler": dict(self.sampler)} if self.sampler else {}  # none: the pipeline's own, as it is
        return {"format": "schedule/1", "model": dict(self.model), "steps": self.steps} | sampler | dict(parts)
