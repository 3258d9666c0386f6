"""Cache schedules: at each step, what is computed and what is reused or forecast from earlier steps."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from search.schedule.nodes import ROOT
from search.schedule.plan import OFF, history
from search.spaces.base import Gene, Space
from search.target import Target

GRANULARITIES = ("interval", "component", "block", "step")


@dataclass(frozen=True)
class CacheSpace(Space):
    """Reuse or forecast a node's last outputs instead of computing it. Step 0 has no gene: it always computes.

    Granularities, from few genes to many; an action gene is 0 compute, 1 reuse, 2.. forecast of order 1..:

    - `step`: one action a step for the whole denoiser.
    - `interval` (default): that, and per step and component kind how many blocks are not computed and where
      the computed interval begins, plus one gene for reuse or forecast. The best of ECAD's free bit masks
      (arXiv:2506.15682) are such intervals with noise.
    - `block`: one action per step and block.
    - `component`: one action per step, block and component; with reuse alone this is ECAD's space.

    FORA (arXiv:2407.01425), step caching, SmoothCache (arXiv:2411.10510) and TaylorSeer (arXiv:2503.06923)
    are rows of `interval` and `component`.
    """

    granularity: Literal["interval", "component", "block", "step"] = "interval"
    max_order: int = 1
    axis: Literal["index", "timestep", "sigma", "logsnr"] = "index"
    key: ClassVar[str] = "cache"

    def __post_init__(self) -> None:
        if self.granularity not in GRANULARITIES:
            raise ValueError(
                f"granularity {self.granularity!r} is unknown; choose from {', '.join(GRANULARITIES)}, for "
                "example space.cache.granularity=interval"
            )
        if not 0 <= self.max_order <= 3:
            raise ValueError(f"max_order {self.max_order} is out of range; use 0 (reuse only) to 3")

    def genes(self, target: Target) -> list[Gene]:
        """Levels: see the class. ValueError where there is no second step to cache at."""
        if target.reference < 2:
            raise ValueError(f"a cache needs at least 2 steps, model.steps is {target.reference}; use model.steps=20")
        genes = []
        for t in range(1, target.reference):
            for name, levels, ordered in self._row(target):
                genes.append(Gene(f"{name}@{t}", levels, group=f"step {t}", ordered=ordered))
        return genes

    def decode(self, x: Sequence[int] | np.ndarray, target: Target) -> Mapping[str, Any]:
        """The plan part; `{}` where all is computed. A forecast of more order than there is history is lowered."""
        row = self._row(target)
        table = np.asarray(x, dtype=np.int64).reshape(target.reference - 1, len(row)).tolist()
        plan = {ROOT: [OFF]} | {node: [OFF] for node in self._nodes(target)}
        computed = dict.fromkeys(plan, 1)
        for at in target.at[1:]:  # the first step computes, whichever of the teacher's steps it stands for
            values = table[at - 1] if at else [0] * len(row)
            wanted = self._step(dict(zip((name for name, *_ in row), values, strict=True)), target)
            whole = self._action(wanted.pop(ROOT, 0), computed[ROOT])
            plan[ROOT].append(whole)
            computed[ROOT] += whole == OFF
            for node in list(plan)[1:]:
                token = self._action(wanted.get(node, 0), computed[node]) if whole == OFF else OFF
                plan[node].append(token)
                computed[node] += whole == OFF and token == OFF
        rules = [[node, "".join(tokens)] for node, tokens in plan.items() if set(tokens) != {OFF}]
        return {"plan": {"value": "out", "axis": self.axis, "rules": rules}} if rules else {}

    def presets(self, target: Target) -> dict[str, np.ndarray]:
        """The published rules that this granularity can say, and are not all off at this number of steps."""
        found: dict[str, np.ndarray] = {}
        for name, tokens in self._rules(target):
            x = self.encode(tokens, target)
            if x is not None and x.any():
                found[name] = x
        return found

    def encode(self, tokens: Mapping[str, Sequence[str]], target: Target) -> np.ndarray | None:
        """Genes for one action per step of the denoiser and of whole component kinds.

        `tokens` has T actions under `denoiser` or under kind names (`attn1`); a missing name computes. None
        where this granularity has no genes for them.
        """
        kinds = set(tokens) - {ROOT}
        if (kinds and self.granularity in ("step", "block")) or (
            ROOT in tokens and self.granularity in ("component", "block")
        ):
            return None
        levels = {OFF: 0, "R": 1} | {f"F{k}": k + 1 for k in range(1, self.max_order + 1)}
        if any(t not in levels for values in tokens.values() for t in values):
            return None
        rows = []
        for t in range(1, target.reference):
            actions = {name: levels[values[t]] for name, values in tokens.items()}
            if self.granularity == "interval" and len({actions[k] for k in kinds if actions[k]}) > 1:
                return None  # one gene says reuse or forecast for all kinds of a step
            rows.append([self._encode(name, actions, target) for name, *_ in self._row(target)])
        return np.array(rows, dtype=np.int64).ravel()

    # One step's genes: their names and levels, what they mean, and how to write them.

    def _row(self, target: Target) -> list[tuple[str, int, bool]]:
        actions = 2 + self.max_order
        if self.granularity == "step":
            return [(ROOT, actions, False)]
        if self.granularity == "interval":
            row = [(ROOT, actions, False)]
            if self.max_order:
                row.append(("order", 1 + self.max_order, True))
            for stack, kind in self._kinds(target):
                blocks = target.tree.stacks[stack]
                row += [
                    (f"reused {stack}:{kind}", blocks + 1, True),
                    (f"first {stack}:{kind}", blocks + 1, True),
                ]
            return row
        return [(node, actions, False) for node in self._nodes(target)]

    def _step(self, values: dict[str, int], target: Target) -> dict[str, int]:
        """Action level of every node that does not compute, from one step's genes."""
        if self.granularity != "interval":
            return values
        wanted = {ROOT: values[ROOT]}
        level = 1 + values.get("order", 0)
        for stack, kind in self._kinds(target):
            blocks = target.tree.stacks[stack]
            reused = values[f"reused {stack}:{kind}"]
            first = min(values[f"first {stack}:{kind}"], reused)
            for block in [*range(first), *range(first + blocks - reused, blocks)]:
                wanted[f"{stack}.{block}:{kind}"] = level
        return wanted

    def _encode(self, name: str, actions: dict[str, int], target: Target) -> int:
        if name == ROOT:
            return actions.get(ROOT, 0)
        if name == "order":
            return max([0, *(actions[k] - 1 for k in actions if k != ROOT)])
        kind = name.rpartition(":")[2]
        if name.startswith("reused "):
            return target.tree.stacks[name.split()[1].partition(":")[0]] if actions.get(kind) else 0
        return 0 if name.startswith("first ") else actions.get(kind, 0)

    def _action(self, level: int, computed: int) -> str:
        """The token of an action level, its order lowered to what `computed` values allow."""
        order = min(level - 1, computed - 1)
        token = OFF if level == 0 else "R" if order < 1 else f"F{order}"
        assert history(token) <= computed
        return token

    def _nodes(self, target: Target) -> list[str]:
        if self.granularity == "step":
            return []
        kind = "block" if self.granularity == "block" else "component"
        return [node.name for node in target.tree if node.kind == kind]

    @staticmethod
    def _kinds(target: Target) -> list[tuple[str, str]]:
        return [(stack.name, kind) for stack in target.tree.contract for kind in stack.components]

    def _rules(self, target: Target) -> Iterator[tuple[str, dict[str, list[str]]]]:
        steps = target.reference

        def every(n: int, action: str = "R", first: int = 1) -> list[str]:
            return [OFF if t < first or (t - first + 1) % n == 0 else action for t in range(steps)]

        for n in (2, 3, 4, 5):
            yield f"FORA N={n}", dict.fromkeys(target.kinds, every(n))
        for n in (2, 3, 4):
            yield f"step caching N={n}", {ROOT: every(n)}
        for order in range(1, self.max_order + 1):
            for n in (3, 4, 5):
                # first_enhance = 2 or as many as the order needs
                rule = every(n, f"F{order}", first=max(2, order + 1))
                yield f"TaylorSeer N={n} O={order}", dict.fromkeys(target.kinds, rule)
