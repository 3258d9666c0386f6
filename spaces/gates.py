"""Gates: rules by which the denoiser decides at run time whether a group of blocks is computed."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from search.profile.target import Target
from search.schedule.parts.gates import ASK, OF_BEFORE
from search.schedule.plan.block_groups import block_selector
from search.schedule.plan.tokens import OFF, format_actions
from search.spaces.base import Space, forecast_order
from search.spaces.gene import Gene

SIGNALS = ("first_block_forecast", "first_block_residual", "modulated_input", "model_input")
SUMMED = ("modulated_input", "model_input")  # signals whose changes from step to step are summed up
GRANULARITIES = ("constant", "phase", "step")
FACTORS = (1.0, 0.0, 0.25, 0.5, 2.0, 4.0)  # on the threshold, by level; with factor 0 a step is always computed
WARM_UP, LONGEST = 8, 6  # the highest `warmup` and the highest `max_run`


@dataclass(frozen=True)
class GatesSpace(Space):
    """One gate for a group of consecutive blocks: while a signal changes little, the group is reused or forecast.

    Genes:

    - `threshold`: 0 off, else the change of the signal up to which the gate passes, one of `thresholds`.
    - `signal`: which of `signals` is measured (search/schedule/plan/gates.py). Changes of the denoiser's or the group's
      input are summed up from step to step; those of a block are taken from the last computed step.
    - `order`: 0 the group's value is reused where the gate passes, else the order of its forecast.
    - `value`: what is stored, 0 the output of the group, 1 its residual, output minus input.
    - `head`, `tail`: how many blocks before and after the group are always computed.
    - `warmup`: how many steps after the first are always computed. The first and the last step always are.
    - `max_run`: how many steps in a row may pass, 0 any number.
    - `scale`: factors on the threshold, level 0 is 1; factor 0 always computes. See `granularity`.

    CG-Taylor (arXiv:2508.02240), First Block Cache, DBCache and TeaCache (arXiv:2411.19108) are rows.

    Args:
        thresholds: Rising, above 0; changes are relative L1.
        signals: Names of signals, see above.
        granularity: Factors on the threshold: none (`constant`), one for each phase (`phase`), or per step (`step`).
        phases: Into how many equal phases a run is divided.
        max_order: The highest order of a forecast, 0 (reuse only) to 3; None is 2, and 0 where the scheduler draws
            new noise at every step, across which nothing can be forecast.
        poly: TeaCache's polynomial of the checkpoint, highest power first, which rescales changes of modulated_input;
            None leaves them as they are.

    Raises:
        ValueError: An argument is unknown or out of range.

    Example:
        >>> from search.profile.target import Target
        >>> from search.schedule.model.nodes import Tree
        >>> from search.spaces.gates import GatesSpace
        >>> target = Target("pixart", Tree("PixArtTransformer2DModel", {"transformer_blocks": 4}), steps=6)
        >>> space = GatesSpace(thresholds=[0.1], signals=["first_block_residual"], granularity="constant")
        >>> [gene.name for gene in space.genes(target)]
        ['threshold', 'signal', 'order', 'value', 'head', 'tail', 'warmup', 'max_run']
        >>> [gate] = space.decode([1, 0, 0, 1, 1, 0, 0, 0], target)["gates"]
        >>> gate["group"], gate["actions"], gate["value"]
        ('transformer_blocks.[1-3]', 'C G*4 C', 'residual')
    """

    thresholds: Sequence[float] = (0.008, 0.015, 0.03, 0.05, 0.08, 0.12, 0.18, 0.25, 0.4, 0.6)
    signals: Sequence[str] = SIGNALS
    granularity: Literal["constant", "phase", "step"] = "phase"
    phases: int = 4
    max_order: int | None = None
    poly: Sequence[float] | None = None
    key: ClassVar[str] = "gates"

    def __post_init__(self) -> None:
        if self.granularity not in GRANULARITIES:
            raise ValueError(
                f"granularity {self.granularity!r} is unknown; choose from {', '.join(GRANULARITIES)}, for example "
                "space.gates.granularity=phase"
            )
        if not self.signals or set(self.signals) - set(SIGNALS):
            raise ValueError(f"signals={list(self.signals)}: choose from {', '.join(SIGNALS)}")
        rising = all(a < b for a, b in zip(self.thresholds, self.thresholds[1:], strict=False))
        if not self.thresholds or self.thresholds[0] <= 0 or not rising:
            raise ValueError(f"thresholds={list(self.thresholds)} must rise from above 0, for example [0.03,0.08,0.12]")
        if self.max_order is not None and not 0 <= self.max_order <= 3:
            raise ValueError(f"max_order {self.max_order} is out of range; use 0 (reuse only) to 3")
        if not 1 <= self.phases <= 100:
            raise ValueError(f"phases {self.phases} is out of range; use 1 to 100")

    def genes(self, target: Target) -> list[Gene]:
        """The genes of the class, the factors last.

        Raises:
            ValueError: The teacher has fewer than 3 steps, no block passes on what it is given (UNets), or `max_order`
                is above 0, and the scheduler draws new noise at every step.
        """
        blocks = len(self._blocks(target))
        if target.reference < 3 or not blocks:
            raise ValueError(
                f"gates need 3 steps and blocks that are maps of their inputs; {target.tree.model_class} has {blocks} "
                f"such blocks and model.steps is {target.reference}; search space=bits, which needs neither"
            )
        genes = [
            Gene("threshold", 1 + len(self.thresholds)),
            Gene("signal", len(self.signals), ordered=False),
            Gene("order", 1 + self._order(target)),
            Gene("value", 2, ordered=False),
            Gene("head", blocks),
            Gene("tail", blocks),
            Gene("warmup", min(WARM_UP, target.reference - 3) + 1),
            Gene("max_run", min(LONGEST, target.reference - 3) + 1),
        ]
        return genes + self._scales(target)

    def decode(self, x: Sequence[int] | np.ndarray, target: Target) -> Mapping[str, Any]:
        """The gates part; `{}` where the threshold is off, is 0 at every step, or no step is left to decide.

        `head` and `tail` are lowered so that one block is left, and a signal of the block before the group has one.
        """
        names = [gene.name for gene in self.genes(target)]
        values = dict(zip(names, np.asarray(x, dtype=np.int64).tolist(), strict=True))
        if not values["threshold"]:
            return {}
        signal, order = self.signals[values["signal"]], values["order"]
        blocks = self._blocks(target)
        head = max(values["head"], int(signal in OF_BEFORE))
        if head >= len(blocks):  # one block, and nothing before it to measure
            return {}
        tail = min(values["tail"], len(blocks) - head - 1)
        gate: dict[str, Any] = {
            "group": block_selector(blocks[head : len(blocks) - tail], target.tree),
            "actions": self._actions(values["warmup"], target.steps),
            "value": ("out", "residual")[values["value"]],
            "then": f"F{order}" if order else "R",
            "signal": signal,
            "threshold": self._thresholds(values, target),
        }
        gate |= {"accumulate": True} if signal in SUMMED else {}
        gate |= {"poly": list(self.poly)} if self.poly and signal == "modulated_input" else {}
        gate |= {"max_run": values["max_run"]} if values["max_run"] else {}
        return {"gates": [gate]} if ASK in gate["actions"] and any(gate["threshold"]) else {}

    def presets(self, target: Target) -> dict[str, np.ndarray]:
        """The published rules whose threshold, signal and order this space has.

        TeaCache's is without the polynomial of its checkpoint unless `poly` gives it.
        """
        genes = self.genes(target)
        rows: dict[str, np.ndarray] = {}
        for name, threshold, rule in self._rules(self._order(target)):
            if rule["signal"] not in self.signals:
                continue
            levels: dict[str, int] = rule | {
                "threshold": 1 + self.thresholds.index(threshold),
                "signal": self.signals.index(rule["signal"]),
            }
            x = np.array([min(levels.get(gene.name, 0), gene.levels - 1) for gene in genes], dtype=np.int64)
            if self.decode(x, target):
                rows[name] = x
        return rows

    def _rules(self, highest: int) -> Iterator[tuple[str, float, dict[str, Any]]]:
        """Name, threshold and other genes of each published rule: the signal by name, the other genes by level."""
        for threshold in self.thresholds:
            for order in range(1, highest + 1):
                if threshold <= 0.03:
                    rule = {"signal": "first_block_forecast", "order": order, "head": 1, "warmup": 3}
                    yield f"CG-Taylor δ={threshold:g} O={order}", threshold, rule
            block = {"signal": "first_block_residual", "value": 1, "head": 1}
            if 0.05 <= threshold <= 0.18:
                yield f"FBCache {threshold:g}", threshold, block
                yield f"DBCache F1B0 W4MC3 {threshold:g}", threshold, block | {"warmup": 3, "max_run": 3}
            if threshold >= 0.12:
                yield f"TeaCache {threshold:g}", threshold, {"signal": "modulated_input", "value": 1}

    def _order(self, target: Target) -> int:
        return forecast_order(self.key, self.max_order, 2, target)

    def _scales(self, target: Target) -> list[Gene]:
        """The genes of the factors on the threshold."""
        count = len(FACTORS)
        if self.granularity == "phase":
            return [Gene(f"scale {p}", count, f"phase {p}", ordered=False) for p in range(self.phases)]
        steps = range(target.reference) if self.granularity == "step" else ()
        return [Gene(f"scale@{t}", count, ordered=False, step=t) for t in steps]

    def _thresholds(self, values: Mapping[str, int], target: Target) -> list[float]:
        """The threshold of every step [T], with the factor of the teacher's step nearest to it."""
        common = self.thresholds[values["threshold"] - 1]
        scales = [FACTORS[values[gene.name]] for gene in self._scales(target)] or [1.0]
        return [common * scales[t * len(scales) // target.reference] for t in target.at]

    @staticmethod
    def _actions(warmup: int, steps: int) -> str:
        first = min(1 + warmup, steps)
        asked = max(steps - first - 1, 0)
        return format_actions([OFF] * first + [ASK] * asked + [OFF] * (steps - first - asked))

    @staticmethod
    def _blocks(target: Target) -> list[str]:
        """The longest run of consecutive blocks with the same inputs and outputs."""
        runs: list[tuple[frozenset[str], list[str]]] = []
        for stack in target.tree.stack_contracts:
            streams = frozenset(stack.outputs)
            if not runs or runs[-1][0] != streams:
                runs.append((streams, []))
            runs[-1][1].extend(f"{stack.name}.{i}" for i in range(target.tree.stacks[stack.name]))
        return max((blocks for streams, blocks in runs if streams), key=len, default=[])
