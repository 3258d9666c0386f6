"""Guidance schedules: at each step, which halves of classifier-free guidance run, and at what scale."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from search.schedule.guidance import FULL, Guidance
from search.spaces.base import Gene, Space
from search.target import Target

BRANCHES = ("O", "R", "M")


@dataclass(frozen=True)
class GuidanceSpace(Space):
    """Per step how the branches are computed, and which multiple of the teacher's guidance scale is used.

    The first of `branches` is level 1: O conditional half only (no guidance at this step), R the last unconditional
    output again, M one pass on merged text states. Each halves the step's cost. `scales` are multiples of the
    teacher's scale, level 1 and up. Adaptive Guidance (arXiv:2312.12487), guidance in a limited interval
    (arXiv:2404.07724) and FasterCache's CFG reuse (arXiv:2410.19355; without its frequency weights) are rows.
    """

    scales: Sequence[float] = (0.5, 0.75, 1.25, 1.5)
    branches: Sequence[str] = BRANCHES
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
        for name, values in (("branches", self.branches), ("scales", self.scales)):
            if len(set(values)) < len(values):
                raise ValueError(f"{name}={list(values)} names one twice; leave it out")
        if 1 in self.scales:
            raise ValueError("scales has 1, the teacher's own, which level 0 is; leave it out")
        if not self.branches and not self.scales:
            raise ValueError("branches and scales are both empty; use space.guidance.branches=[O,R]")

    def genes(self, target: Target) -> list[Gene]:
        """Per step of the teacher's grid `branch`: 0 both, 1.. branches; `scale`: 0 the teacher's, 1.. multiples."""
        if target.guidance <= 1:
            raise ValueError(
                f"this model runs without guidance (model.guidance_scale={target.guidance:g}); give it a scale above "
                "1, for example model.guidance_scale=4, or leave the space guidance out"
            )
        try:
            Guidance.of(target.guidance, None, "".join(self.branches), target.tree.model_class, target.steps)
        except ValueError as error:
            raise ValueError(f"{error}; for example space.guidance.branches=[O,R]") from None
        return [
            Gene(f"{name}@{t}", levels, group=f"step {t}", ordered=False)
            for t in range(target.reference)
            for name, levels in self._row()
        ]

    def decode(self, x: Sequence[int] | np.ndarray, target: Target) -> Mapping[str, Any]:
        """The guidance part; `{}` where it is the teacher's own. R before anything was computed is C."""
        row = self._row()
        table = np.asarray(x, dtype=np.int64).reshape(target.reference, len(row))
        call, scale, branch = target.guidance, [], ""
        for at in target.at:
            values = dict(zip((name for name, _ in row), table[at].tolist(), strict=True))
            kind = (FULL, *self.branches)[values.get("branch", 0)]
            if kind == "R" and FULL not in branch:
                kind = FULL
            branch += kind
            multiple = (1.0, *self.scales)[values.get("scale", 0)]
            scale.append(call if kind == "O" else call * multiple)
        found: dict[str, Any] = {"call": call}
        found |= {"scale": scale} if set(scale) != {call} else {}
        found |= {"branch": branch} if set(branch) != {FULL} else {}
        return {"guidance": found} if len(found) > 1 else {}

    def presets(self, target: Target) -> dict[str, np.ndarray]:
        """The published rules that these branches can say, and are not all off at this number of steps."""
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
        found: dict[str, np.ndarray] = {}
        for name, branch in rules.items():
            if set(branch) <= {FULL, *self.branches} and set(branch) != {FULL}:
                found[name] = self._levels(branch)
        return found

    def _row(self) -> list[tuple[str, int]]:
        """One step's genes and their levels."""
        genes = [("branch", 1 + len(self.branches)), ("scale", 1 + len(self.scales))]
        return [(name, levels) for name, levels in genes if levels > 1]

    def _levels(self, branch: Sequence[str]) -> np.ndarray:
        names = [name for name, _ in self._row()]
        x = np.zeros((len(branch), len(names)), dtype=np.int64)
        x[:, names.index("branch")] = [(FULL, *self.branches).index(kind) for kind in branch]
        return x.ravel()
