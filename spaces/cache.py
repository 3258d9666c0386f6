"""Cache schedules: at each step, what is computed and what is reused or forecast from earlier steps."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from search.profile.target import Target
from search.schedule.model.nodes import ROOT
from search.schedule.plan.guidance import settle_branches
from search.schedule.plan.tokens import OFF
from search.spaces.base import Space, forecast_order, require_steps
from search.spaces.gene import Gene
from search.spaces.published import FASTER_CACHE, t_gates

GRANULARITIES = ("interval", "component", "block", "step")
ACTIONS = (OFF, "R", "F1", "F2", "F3")  # by level
DUAL = ("SD3Transformer2DModel",)  # whose attn2 is a second self-attention

# Computed and reused steps in turn, of 28: the step masks of cache-dit 1.5.
STEP_MASKS = {
    "slow": (8, 1, 3, 2, 3, 2, 2, 2, 1, 3, 1),
    "medium": (6, 1, 2, 3, 2, 3, 2, 3, 2, 3, 1),
    "fast": (6, 1, 1, 3, 1, 4, 1, 5, 1, 4, 1),
    "ultra": (4, 2, 1, 5, 1, 6, 1, 7, 1),
}


@dataclass(frozen=True)
class CacheSpace(Space):
    """Reuse or forecast a node's last outputs instead of computing it. Step 0 has no gene: it always computes.

    Granularities, from few genes to many; an action gene is 0 compute, 1 reuse, 2.. forecast of order 1..:

    - `step`: one action a step for the whole denoiser.
    - `interval` (default): that, and per step and component kind how many blocks are not computed and where
      the computed interval begins, plus one gene for reuse or forecast. The best of ECAD's free bit masks
      (arXiv:2506.15682) are such intervals with noise. Components inside of other ones have no genes.
    - `block`: one action per step and block.
    - `component`: one action per step, block and component; with reuse alone this is ECAD's space.

    FORA (arXiv:2407.01425), SmoothCache (arXiv:2411.10510), TaylorSeer (arXiv:2503.06923), PAB (arXiv:2408.12588),
    the attention of FasterCache (arXiv:2410.19355) and of T-GATE (arXiv:2404.02747) are rows of `interval` and
    `component`; step caching and cache-dit's step masks are rows of `interval` and `step`.

    Args:
        granularity: See above.
        max_order: The highest order of a forecast, 0 (reuse only) to 3; None is 1, and 0 where the scheduler draws
            new noise at every step, across which nothing can be forecast.
        axis: Where forecasts place the steps: by number, timestep, sigma or log-SNR.

    Raises:
        ValueError: The granularity is unknown, or `max_order` is out of range.

    Example:
        >>> from search.profile.target import Target
        >>> from search.schedule.model.nodes import Tree
        >>> from search.spaces.cache import CacheSpace
        >>> target = Target("pixart", Tree("PixArtTransformer2DModel", {"transformer_blocks": 2}), steps=4)
        >>> space = CacheSpace("step", max_order=0)
        >>> [gene.name for gene in space.genes(target)]
        ['denoiser@1', 'denoiser@2', 'denoiser@3']
        >>> space.decode([1, 0, 1], target)["plan"]["rules"]
        [['denoiser', 'CRCR']]
    """

    granularity: Literal["interval", "component", "block", "step"] = "interval"
    max_order: int | None = None
    axis: Literal["index", "timestep", "sigma", "logsnr"] = "index"
    key: ClassVar[str] = "cache"

    def __post_init__(self) -> None:
        if self.granularity not in GRANULARITIES:
            raise ValueError(
                f"granularity {self.granularity!r} is unknown; choose from {', '.join(GRANULARITIES)}, for "
                "example space.cache.granularity=interval"
            )
        if self.max_order is not None and not 0 <= self.max_order <= 3:
            raise ValueError(f"max_order {self.max_order} is out of range; use 0 (reuse only) to 3")

    def genes(self, target: Target) -> list[Gene]:
        """For each step but the first the genes of the granularity, all in the group of that step.

        Raises:
            ValueError: The teacher has one step, and nothing to reuse; or `max_order` is above 0, and the scheduler
                draws new noise at every step.
        """
        require_steps("a cache", 2, target)
        genes = []
        for t in range(1, target.reference):
            for name, levels, ordered in self._row(target):
                genes.append(Gene(f"{name}@{t}", levels, step=t, ordered=ordered))
        return genes

    def decode(self, x: Sequence[int] | np.ndarray, target: Target) -> Mapping[str, Any]:
        """The plan part; `{}` where all is computed.

        A forecast of order k reads k + 1 computed values; where there are fewer its order is lowered, down to reuse.
        """
        row, kinds = self._row(target), self._kinds(target)
        table = np.asarray(x, dtype=np.int64).reshape(target.reference - 1, len(row)).tolist()
        tokens: dict[str, list[str]] = {name: [OFF] for name in (ROOT, *self._nodes(target))}
        for at in target.at[1:]:  # the first step computes, whichever of the teacher's steps it stands for
            values = table[at - 1] if at else [0] * len(row)
            wanted = self._step(dict(zip((name for name, *_ in row), values, strict=True)), kinds)
            for node, actions in tokens.items():
                actions.append(ACTIONS[wanted.get(node, 0)])
        plan = settle_branches(tokens, target.tree, None)
        rules = [[node, "".join(actions)] for node, actions in plan.items() if set(actions) != {OFF}]
        return {"plan": {"value": "out", "axis": self.axis, "rules": rules}} if rules else {}

    def presets(self, target: Target) -> dict[str, np.ndarray]:
        """The published rules that this granularity can express, and are not all off at this number of steps."""
        rows: dict[str, np.ndarray] = {}
        for name, tokens in self._rules(target):
            x = self.encode(tokens, target)
            if x is not None and x.any():
                rows[name] = x
        return rows

    def encode(self, tokens: Mapping[str, Sequence[str]], target: Target) -> np.ndarray | None:
        """Genes for one action per step of the denoiser and of whole component kinds.

        Args:
            tokens: T actions under `denoiser` or under kind names (`attn1`); a missing name computes.
            target: The model.

        Returns:
            The row [G]; None where this granularity has no genes for these names, orders, or mixtures of actions.
        """
        kinds, known = set(tokens) - {ROOT}, self._names(target)
        if not kinds <= known or (ROOT in tokens and self.granularity in ("component", "block")):
            return None
        levels = {action: level for level, action in enumerate(ACTIONS[: 2 + self._order(target)])}
        if any(t not in levels for values in tokens.values() for t in values):
            return None
        rows = []
        for t in range(1, target.reference):
            actions = {name: levels[values[t]] for name, values in tokens.items()}
            if self.granularity == "interval" and len({actions[k] for k in kinds if actions[k]}) > 1:
                return None  # one gene chooses reuse or forecast for all kinds of a step
            rows.append([self._encode(name, top, actions) for name, top, _ in self._row(target)])
        return np.array(rows, dtype=np.int64).ravel()

    @property
    def forecast_axis(self) -> str:
        """The axis of this space's forecasts."""
        return self.axis

    # The genes of one step: names and levels, decoding, encoding

    def _row(self, target: Target) -> list[tuple[str, int, bool]]:
        order = self._order(target)
        actions = 2 + order
        if self.granularity == "step":
            return [(ROOT, actions, False)]
        if self.granularity == "interval":
            row = [(ROOT, actions, False)]
            if order:
                row.append(("order", 1 + order, True))
            for name, blocks in self._kinds(target).items():
                row.append((f"reused {name}", len(blocks) + 1, True))
                if len(blocks) > 1:
                    row.append((f"first {name}", len(blocks) + 1, True))
            return row
        return [(node, actions, False) for node in self._nodes(target)]

    def _step(self, values: dict[str, int], kinds: Mapping[str, Sequence[str]]) -> dict[str, int]:
        """Action level of every node that does not compute, from one step's genes."""
        if self.granularity != "interval":
            return values
        wanted = {ROOT: values[ROOT]}
        level = 1 + values.get("order", 0)
        for name, nodes in kinds.items():
            reused = values[f"reused {name}"]
            first = min(values.get(f"first {name}", 0), reused)
            left = first + len(nodes) - reused
            wanted |= dict.fromkeys([*nodes[:first], *nodes[left:]], level)
        return wanted

    def _encode(self, name: str, levels: int, actions: dict[str, int]) -> int:
        """The value of one gene of so many levels."""
        if name == ROOT:
            return actions.get(ROOT, 0)
        if name == "order":
            return max([0, *(actions[k] - 1 for k in actions if k != ROOT)])
        kind = name.rpartition(":")[2]
        if name.startswith("reused "):
            return levels - 1 if actions.get(kind) else 0
        return 0 if name.startswith("first ") else actions.get(kind, 0)

    def _order(self, target: Target) -> int:
        return forecast_order(self.key, self.max_order, 1, target)

    def _nodes(self, target: Target) -> list[str]:
        if self.granularity == "step":
            return []
        kind = "block" if self.granularity == "block" else "component"
        return [node.name for node in target.tree if node.kind == kind]

    @staticmethod
    def _kinds(target: Target) -> dict[str, list[str]]:
        """Nodes of one kind in one stack, in the order of its blocks, by `STACK:KIND`."""
        nodes: dict[str, list[str]] = {}
        for node in target.tree:
            if node.kind == "component" and not node.nested:
                nodes.setdefault(f"{node.stack}:{node.component}", []).append(node.name)
        return nodes

    def _names(self, target: Target) -> set[str]:
        """The kinds that have genes."""
        if self.granularity not in ("interval", "component"):
            return set()
        inside = self.granularity == "component"
        return {node.component for node in target.tree if node.kind == "component" and (inside or not node.nested)}

    def _rules(self, target: Target) -> Iterator[tuple[str, dict[str, list[str]]]]:
        steps, timesteps = target.reference, (target.teacher or target).timesteps
        self_attention, cross_attention = _attention(target)

        def every(n: int, action: str = "R", first: int = 1) -> list[str]:
            return [OFF if t < first or (t - first + 1) % n == 0 else action for t in range(steps)]

        def between(low: float, high: float, n: int, action: str = "R") -> list[str]:
            """Every n-th step computes, and all whose timestep lies outside."""
            reused = [t % n != 0 and low < timesteps[t] < high for t in range(steps)]
            return [action if within else OFF for within in reused]

        # PAB without its level for frames: self-attention at every 2nd step, cross-attention at every 3rd
        broadcast = dict.fromkeys(self_attention, between(100, 800, 2))
        yield "PAB", broadcast | dict.fromkeys(cross_attention, between(100, 800, 3))
        # FasterCache adds half of the last change: a forecast of order 1 over half an interval
        yield FASTER_CACHE, dict.fromkeys(self_attention, between(-1, 681, 2, "F1"))
        for name, gate in t_gates(steps).items():
            yield name, dict.fromkeys(cross_attention, [OFF] * gate + ["R"] * (steps - gate))
        for name, bins in STEP_MASKS.items():
            yield f"SCM {name}", {ROOT: _stretched(bins, steps)}
        for n in (2, 3, 4, 5):
            yield f"FORA N={n}", dict.fromkeys(target.kinds, every(n))
        for n in (2, 3, 4):
            yield f"step caching N={n}", {ROOT: every(n)}
        for order in range(1, self._order(target) + 1):
            for n in (3, 4, 5):
                # TaylorSeer's first_enhance: 2 computed steps, or as many as the order needs
                rule = every(n, f"F{order}", first=max(2, order + 1))
                yield f"TaylorSeer N={n} O={order}", dict.fromkeys(target.kinds, rule)


def _attention(target: Target) -> tuple[list[str], list[str]]:
    """Component names of self-attention (joint attention counts), and of cross-attention."""
    names = dict.fromkeys(node.component for node in target.tree if node.kind == "component")
    dual = ("attn2",) if target.tree.model_class in DUAL else ()
    self_attention = [name for name in names if name.rpartition(".")[2] in ("attn", "attn1", *dual)]
    return self_attention, [name for name in names if name.rpartition(".")[2] == "attn2" and name not in self_attention]


def _stretched(bins: Sequence[int], steps: int) -> list[str]:
    """Runs of computed and reused steps in proportion to `bins`; the first and the last step compute."""
    ends = np.cumsum(bins)
    tokens = [OFF if int(np.searchsorted(ends, t * ends[-1] / steps, "right")) % 2 == 0 else "R" for t in range(steps)]
    return [OFF, *tokens[1:-1], OFF][:steps]
