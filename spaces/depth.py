"""Depth schedules of UNets: how deep each step goes, and what it takes over from steps before."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from search.profile.target import Target
from search.schedule.model.nodes import ROOT, Tree
from search.schedule.parts.start import TRAINING, InjectPart
from search.schedule.plan.tokens import OFF
from search.spaces.base import START, Space, require_steps
from search.spaces.gene import Gene

UNETS = ("UNet2DConditionModel",)
KEYS = (0, 1, 2, 3, 5, 10, 15, 25, 35)  # steps of 50 whose encoder Faster Diffusion computes
CENTRE, POWER = 15 / 50, 1.4  # of DeepCache's uneven steps
PUBLISHED = (0.003, 500)  # Faster Diffusion's strength and timestep


@dataclass(frozen=True)
class DepthSpace(Space):
    """One gene a step, from the second on: how much of a UNet it computes. Skip connections are counted from the
    outermost, 0, which leaves `conv_in`.

    - 0: everything.
    - 1..K, for K skips: DeepCache (arXiv:2312.00858). The network is cut at skip K - level. The step computes the
      encoder down to the layer that this skip comes from and the decoder from the layer that it goes to; everything
      deeper is reused. Level 1 reuses the middle block alone; K, DeepCache's branch 0, computes `conv_in` and the last
      layer.
    - K+1: encoder propagation, Faster Diffusion (arXiv:2312.09608): `conv_in`, encoder and middle block are reused,
      the decoder runs with its own timestep.
    - K+2: the whole step is reused.

    A node that is reused gives what it gave at the last step that computed it, which the first step always did: a cut
    after a deeper one reads the deep values of the last full step and the newer ones between the cuts.

    Two more genes inject noise (search/schedule/apply/injection.py): `strengths`, level 0 none, and `below`, the
    timestep of 1000 under which it is done, whose level 0 is the first. They are idle where another space runs a
    solver table, which determines the noise of each step.

    Args:
        strengths: Factors on the initial latents that are added; empty for no genes of noise.
        below: Timesteps of 1000 under which noise is added.
        ahead: At most so many decoders in a row run as one batch (search/schedule/apply/ahead.py); 1 runs each alone.

    Raises:
        ValueError: A strength is not above 0 and at most 1, a timestep is out of range, or a value is given twice.

    Example:
        >>> from search.profile.target import Target
        >>> from search.schedule.model.nodes import Tree
        >>> from search.spaces.depth import DepthSpace
        >>> down, middle = [{"resnets": 1, "downsamplers": 1}, {"resnets": 1}], [{"resnets": 2}]
        >>> up = [{"resnets": 2, "upsamplers": 1}, {"resnets": 2}]
        >>> stacks = {"conv_in": [{}], "down_blocks": down, "mid_block": middle, "up_blocks": up}
        >>> target = Target("unet", Tree("UNet2DConditionModel", stacks), steps=4)
        >>> space = DepthSpace(strengths=[])
        >>> [(gene.name, gene.levels) for gene in space.genes(target)]
        [('depth@1', 7), ('depth@2', 7), ('depth@3', 7)]
        >>> space.decode([1, 0, 1], target)["plan"]["rules"]
        [['mid_block.0', 'CRCR']]
    """

    strengths: Sequence[float] = (0.001, 0.003, 0.01)
    below: Sequence[float] = (500, 250, 750)
    ahead: int = 1
    key: ClassVar[str] = "depth"

    def __post_init__(self) -> None:
        for name, most in (("strengths", 1), ("below", TRAINING)):
            values = tuple(getattr(self, name))
            object.__setattr__(self, name, values)
            for value in values:
                if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= most:
                    raise ValueError(
                        f"{name} has {value!r}; give numbers above 0, at most {most}, for example "
                        f"space.depth.{name}=[{PUBLISHED[name == 'below']}]"
                    )
            if len(set(values)) < len(values):
                raise ValueError(f"{name}={list(values)} has a value twice; leave it out")
        if isinstance(self.ahead, bool) or not isinstance(self.ahead, int) or not 1 <= self.ahead <= 1000:
            raise ValueError(f"ahead is {self.ahead!r}; give 1 to 1000 steps, for example space.depth.ahead=4")
        if self.strengths and not self.below:
            raise ValueError("below is empty; use space.depth.below=[500], or space.depth.strengths=[] for no noise")

    def genes(self, target: Target) -> list[Gene]:
        """`depth@t` of each step of the teacher's grid but the first, then the genes of noise.

        Raises:
            ValueError: The denoiser is not a UNet, its skip connections do not match, or the teacher has one step.
        """
        levels = len(self._reused(target))
        require_steps("depth", 2, target, "bits, which needs one")
        genes = [Gene(f"depth@{t}", levels, step=t) for t in range(1, target.reference)]
        if self.strengths:
            genes.append(Gene("inject strength", 1 + len(self.strengths), group=START))
            genes.append(Gene("inject below", len(self.below), group=START, ordered=False))
        return genes

    def decode(self, x: Sequence[int] | np.ndarray, target: Target) -> Mapping[str, Any]:
        """The plan part and the start part; `{}` where all is computed and nothing injected."""
        levels, reused = np.asarray(x, dtype=np.int64).tolist(), self._reused(target)
        tokens: dict[str, list[str]] = {}
        for step, at in enumerate(target.at):
            for name in reused[levels[at - 1]] if at and step else ():  # the first step computes, whichever it is
                tokens.setdefault(name, [OFF] * target.steps)[step] = "R"
        rules = [[name, "".join(actions)] for name, actions in tokens.items()]
        together = {"ahead": self.ahead} if self.ahead > 1 else {}
        plan: dict[str, Any] = {"plan": {"value": "out", "axis": "index", **together, "rules": rules}} if rules else {}
        return plan | self._start(levels[target.reference - 1 :], target)

    def encode(self, tokens: Mapping[str, Sequence[str]], target: Target) -> np.ndarray | None:
        """Genes for reuse of whole steps; None for forecasts, and for components, which have no genes here."""
        actions = tokens.get(ROOT, [OFF] * target.reference)
        if set(tokens) - {ROOT} or set(actions) - {OFF, "R"}:
            return None
        whole = len(self._reused(target)) - 1
        return self._row([whole if token == "R" else 0 for token in actions])

    def presets(self, target: Target) -> dict[str, np.ndarray]:
        """DeepCache at even and at centred steps, and Faster Diffusion, where they are not off at so many steps."""
        steps, skips = target.reference, len(self._reused(target)) - 3
        encoder = skips + 1
        rows: dict[str, np.ndarray] = {}
        for name, full in _deepcache(steps):
            for branch in (0, 1):
                row = [0 if t in full else max(1, skips - branch) for t in range(steps)]
                rows[f"DeepCache {name} branch {branch}"] = self._row(row)
        scaled = {round(key * steps / 50) for key in KEYS}
        every = {f" k={k}": set(range(0, steps, k)) for k in (2, 3, 5)}
        for name, keys in {"": scaled, **every}.items():
            row = [0 if t in keys else encoder for t in range(steps)]
            rows[f"Faster Diffusion{name}"] = self._row(row, noise=True)
            rows[f"Faster Diffusion{name}, no noise"] = self._row(row)
        return {name: x for name, x in rows.items() if x[: steps - 1].any()}

    def _start(self, levels: Sequence[int], target: Target) -> dict[str, Any]:
        if not self.strengths or not levels[0] or "coefficients" in target.sampler:
            return {}
        inject = {"strength": float(self.strengths[levels[0] - 1]), "below": float(self.below[levels[1]])}
        timesteps = target.timesteps  # on the scale that `below` counts in
        return {"start": {"kind": "noise", "inject": inject}} if InjectPart(**inject).steps(timesteps, TRAINING) else {}

    def _row(self, levels: Sequence[int], noise: bool = False) -> np.ndarray:
        """Genes from the level of every step; with the published noise where there are genes for it."""
        strength, below = PUBLISHED
        start = [0, 0] if self.strengths else []
        if noise and strength in self.strengths and below in self.below:
            start = [1 + list(self.strengths).index(strength), list(self.below).index(below)]
        return np.array([*levels[1:], *start], dtype=np.int64)

    @staticmethod
    def _reused(target: Target) -> list[list[str]]:
        """Names of the nodes that each level reuses; ValueError for denoisers other than UNets."""
        tree = target.tree
        if tree.model_class not in UNETS:
            raise ValueError(
                f"depth is for UNets ({', '.join(UNETS)}), whose skip connections a step can cut short; {target.name} "
                f"has a {tree.model_class}: use +space=cache, or +space=skip"
            )
        down, up = _layers(tree, "down_blocks"), _layers(tree, "up_blocks")
        given, taken = 1 + sum(map(len, down)), sum(map(len, up))
        if given != taken:
            raise ValueError(
                f"the decoder of {target.name} takes {taken} skip connections, and its encoder gives {given}: cuts are "
                "not known for such blocks; use +space=cache"
            )
        cuts = [_within(cut, down, up) for cut in reversed(range(given))]
        encoder = ["conv_in.0", *(f"down_blocks.{b}" for b in range(len(down))), "mid_block.0"]
        return [[], *cuts, encoder, [ROOT]]


Layers = list[list[list[str]]]  # of each block, of each of its layers: names of components


def _layers(tree: Tree, stack: str) -> Layers:
    """Components by the skip connection that they give or take: a residual block and its attention, or a downsampler.

    What brings a decoder's block to the next resolution comes after its last layer and belongs to none.
    """
    blocks: Layers = []
    for b in range(tree.stacks[stack]):
        outer = [c for c in tree.components(stack, b) if not tree.nodes[f"{stack}.{b}:{c}"].nested]
        residual = [c for c in outer if c.startswith("resnets.")]
        with_attention = [[c for c in (name, name.replace("resnets", "attentions")) if c in outer] for name in residual]
        blocks.append(with_attention + [[c] for c in outer if c.startswith("downsamplers.")])
    return blocks


def _within(cut: int, down: Layers, up: Layers) -> list[str]:
    """Nodes within a cut at a skip connection: those that give or take a deeper one, and the middle block."""
    names = []
    first = 1  # skip connection 0 is conv_in's
    for b, layers in enumerate(down):
        names += _deeper(f"down_blocks.{b}", layers, range(first, first + len(layers)), cut)
        first += len(layers)
    names.append("mid_block.0")
    for b, layers in enumerate(up):
        first -= len(layers)
        names += _deeper(f"up_blocks.{b}", layers, range(first + len(layers) - 1, first - 1, -1), cut)
    return names


def _deeper(block: str, layers: Sequence[Sequence[str]], skips: Sequence[int], cut: int) -> list[str]:
    """The block itself where all of its skip connections are deeper than the cut, else components of those that are."""
    if min(skips) > cut:
        return [block]
    return [f"{block}:{name}" for layer, skip in zip(layers, skips, strict=True) if skip > cut for name in layer]


def _deepcache(steps: int) -> Iterator[tuple[str, set[int]]]:
    """DeepCache's full steps: every N-th, or steps / N of them by the power law around a centre.

    The law is c + u^p, u even from (-c)^(1/p) to (T-c)^(1/p), with complex powers of which the real part counts; the
    power falls from 1.4 until there are as many distinct steps as wanted.
    """
    centre = round(CENTRE * steps)
    for n in (2, 3, 5):
        yield f"N={n}", set(range(0, steps, n))
        wanted = -(-steps // n)
        for power in np.arange(POWER, 1, -0.02):
            ends = complex(-centre) ** (1 / power), complex(steps - centre) ** (1 / power)
            places = np.trunc((np.linspace(*ends, wanted + 1) ** power).real).astype(int)
            full = {0, *(centre + place for place in np.unique(places)[1:-1].tolist())}
            if len(full) == wanted:
                yield f"N={n} centred", full
                break
