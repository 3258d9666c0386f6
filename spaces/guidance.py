"""Guidance schedules: at each step, which halves of classifier-free guidance are computed, and at which scale."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from search.profile.target import Target
from search.schedule.plan.guidance import FULL, GAIN, RADIUS, Guidance
from search.schedule.plan.tokens import denoiser_switches
from search.spaces.base import Space
from search.spaces.gene import Gene
from search.spaces.published import FASTER_CACHE, t_gates

BRANCHES = ("O", "R", "M", "A")
LOW, HIGH = (99, 901), (-1, 301)  # timesteps of 1000 between which FasterCache weights low and high frequencies


@dataclass(frozen=True)
class GuidanceSpace(Space):
    """Per step how the two halves of guidance are computed, and which multiple of the teacher's scale is used.

    `branch@t` is 0 where both halves are computed. The other kinds compute half of the batch, at half the cost:

    - O: the conditional half only; there is no guidance at this step.
    - R: the conditional half, and the last unconditional output again.
    - M: one pass on text states that are extrapolated from the unconditional ones by the scale.
    - A: the conditional half, plus the last difference of the halves, FasterCache's estimate (arXiv:2410.19355).

    `scale@t` is 0 for the teacher's scale. Adaptive Guidance (arXiv:2312.12487), guidance in a limited interval
    (arXiv:2404.07724), FasterCache and the end of guidance in T-GATE (arXiv:2404.02747) are rows.

    Args:
        scales: Multiples of the teacher's scale from 0 to 10, without 1; level 1 is the first. Empty for no such genes.
        branches: Kinds of steps, of O, R, M and A; level 1 is the first. Empty for no such genes.
        gain: Factor of A on the difference for every step A since both halves were computed: on its low frequencies
            early in the run, on its high ones late; 1 leaves the difference as it is.

    Raises:
        ValueError: A branch is unknown, a number is out of range, a value is given twice, or there are no genes.

    Example:
        >>> from search.profile.target import Target
        >>> from search.schedule.model.nodes import Tree
        >>> from search.spaces.guidance import GuidanceSpace
        >>> tree = Tree("PixArtTransformer2DModel", {"transformer_blocks": 2})
        >>> target = Target("pixart", tree, steps=4, guidance=4.0)
        >>> space = GuidanceSpace(branches=["O", "R"], scales=[])
        >>> [gene.name for gene in space.genes(target)]
        ['branch@0', 'branch@1', 'branch@2', 'branch@3']
        >>> space.decode([0, 2, 1, 1], target)
        {'guidance': {'call': 4.0, 'branch': 'CROO'}}
    """

    scales: Sequence[float] = (0.5, 0.75, 1.25, 1.5)
    branches: Sequence[str] = BRANCHES
    gain: float = GAIN
    key: ClassVar[str] = "guidance"
    additive: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", tuple(self.scales))
        object.__setattr__(self, "branches", tuple(self.branches))
        if unknown := [b for b in self.branches if b not in BRANCHES]:
            raise ValueError(
                f"branches has {unknown[0]!r}; choose from {', '.join(BRANCHES)}, for example "
                "space.guidance.branches=[O,R]"
            )
        for scale in self.scales:
            if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 <= scale <= 10:
                raise ValueError(
                    f"scales has {scale!r}; give multiples of the teacher's scale from 0 to 10, for example "
                    "space.guidance.scales=[0.5,1.5]"
                )
        if isinstance(self.gain, bool) or not isinstance(self.gain, int | float) or not 0 <= self.gain <= 2:
            raise ValueError(f"gain is {self.gain!r}; give 0 to 2, for example space.guidance.gain=1.1")
        for name, values in (("branches", self.branches), ("scales", self.scales)):
            if len(set(values)) < len(values):
                raise ValueError(f"{name}={list(values)} names one twice; leave it out")
        if 1 in self.scales:
            raise ValueError("scales has 1, the teacher's own, which level 0 is; leave it out")
        if not self.branches and not self.scales:
            raise ValueError("branches and scales are both empty; use space.guidance.branches=[O,R]")

    def genes(self, target: Target) -> list[Gene]:
        """`branch@t` and `scale@t` for each step of the teacher's grid.

        Raises:
            ValueError: The model runs without guidance, does not run both halves as one batch, or has no text states
                that M could merge.
        """
        if target.tree.contract.conditional is None:
            raise ValueError(
                f"a {target.tree.model_class} runs no two branches of guidance as one batch (it is distilled, or its "
                "pipeline calls it twice); leave the space guidance out"
            )
        if target.guidance <= 1:
            raise ValueError(
                f"this model runs without guidance (model.guidance_scale={target.guidance:g}); give it a scale above "
                "1, for example model.guidance_scale=4, or leave the space guidance out"
            )
        try:
            Guidance.of(target.tree, target.steps, target.guidance, branch="".join(self._kinds(target)))
        except ValueError as error:
            raise ValueError(f"{error}; for example space.guidance.branches=[O,R]") from None
        return [
            Gene(f"{name}@{t}", levels, step=t, ordered=False)
            for t in range(target.reference)
            for name, levels in self._row(target)
        ]

    def decode(self, x: Sequence[int] | np.ndarray, target: Target) -> Mapping[str, Any]:
        """The guidance part; `{}` where guidance is the teacher's.

        R and A are lowered to C at steps before which this denoiser has not computed both halves.
        """
        row, kinds = self._row(target), (FULL, *self._kinds(target))
        table = np.asarray(x, dtype=np.int64).reshape(target.reference, len(row))
        call, scale, branch = target.guidance, [], ""
        full, barriers = False, denoiser_switches(target.models)
        for step, at in enumerate(target.at):
            values = dict(zip((name for name, _ in row), table[at].tolist(), strict=True))
            kind = kinds[values.get("branch", 0)]
            full &= step not in barriers
            if kind in "RA" and not full:
                kind = FULL
            full |= kind == FULL
            branch += kind
            multiple = (1.0, *self.scales)[values.get("scale", 0)]
            scale.append(call if kind == "O" else call * multiple)
        part: dict[str, Any] = {"call": call}
        part |= {"scale": scale} if set(scale) != {call} else {}
        part |= {"branch": branch} if set(branch) != {FULL} else {}
        part |= {"approximate": self._weights(branch, target)} if "A" in branch else {}
        return {"guidance": part} if len(part) > 1 else {}

    def presets(self, target: Target) -> dict[str, np.ndarray]:
        """The published rules that these branches can express, and are not all off at this number of steps."""
        steps = target.reference
        rules = {
            f"CFG off in the last {part} %": [
                "O" if t >= round(steps * (1 - part / 100)) else FULL for t in range(steps)
            ]
            for part in (25, 50)
        }
        rules["guidance in the middle half"] = [
            FULL if steps // 4 <= t < steps - steps // 4 else "O" for t in range(steps)
        ]
        rules["CFG reuse every 2nd step"] = ["R" if t % 2 else FULL for t in range(steps)]
        timesteps = (target.teacher or target).timesteps
        rules[FASTER_CACHE] = ["A" if t % 5 and timesteps[t] < 641 else FULL for t in range(steps)]
        for name, gate in t_gates(steps).items():
            rules[name] = ["O" if t >= gate else FULL for t in range(steps)]
        rows: dict[str, np.ndarray] = {}
        for name, branch in rules.items():
            if set(branch) <= {FULL, *self._kinds(target)} and set(branch) != {FULL}:
                rows[name] = self._levels(branch, target)
        return rows

    def _weights(self, branch: str, target: Target) -> dict[str, Any]:
        """Weights [T] of the difference; they grow from one step A to the next, until both halves are computed."""
        low, high, weights = [], [], {LOW: 1.0, HIGH: 1.0}
        for kind, timestep in zip(branch, target.timesteps, strict=True):
            if kind == FULL:
                weights = {LOW: 1.0, HIGH: 1.0}
            for (first, last), weight in weights.items():
                if kind == "A" and first < timestep < last:
                    weights[first, last] = weight * self.gain
            low.append(weights[LOW] if kind == "A" else 1.0)
            high.append(weights[HIGH] if kind == "A" else 1.0)
        return {"low": low, "high": high, "radius": RADIUS}

    def _kinds(self, target: Target) -> tuple[str, ...]:
        """The kinds of steps; M is left out of the default ones where a model has no text states to merge."""
        every = tuple(self.branches) == BRANCHES and not target.tree.contract.text
        return tuple(kind for kind in self.branches if not every or kind != "M")

    def _row(self, target: Target) -> list[tuple[str, int]]:
        """One step's genes and their levels."""
        genes = [("branch", 1 + len(self._kinds(target))), ("scale", 1 + len(self.scales))]
        return [(name, levels) for name, levels in genes if levels > 1]

    def _levels(self, branch: Sequence[str], target: Target) -> np.ndarray:
        names = [name for name, _ in self._row(target)]
        x = np.zeros((len(branch), len(names)), dtype=np.int64)
        x[:, names.index("branch")] = [(FULL, *self._kinds(target)).index(kind) for kind in branch]
        return x.ravel()
