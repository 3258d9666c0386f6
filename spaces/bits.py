"""Bits per layer: at which format each group of layers runs, and what is tabulated instead."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, ClassVar

import numpy as np

from search.profile.input_ranges import InputRanges, drawn_steps
from search.profile.target import Target
from search.schedule.apply.tables import elidable_layers
from search.schedule.model.layers import input_splits
from search.schedule.parts.bits import FormatPart
from search.schedule.parts.formats import FORMATS, formats_that_fit
from search.spaces.base import Space, require_steps
from search.spaces.gene import Gene

TIME = "time embedding"
CROSS = ("attn2",)  # attentions whose keys and values come from elsewhere than their queries
ENDS = ("conv_in", "conv_out")  # a UNet's first and last layer
ROUNDED = tuple(name for name, form in FORMATS.items() if not form.elided)
MEANS = (0.25, 0.5, 0.75)  # of the law of calibrated steps: from 0, the first step, to 1, the last
SPREADS = (0.1, 0.2, 0.4)
UNET = re.compile(r"((?:down_blocks|up_blocks)\.\d+|mid_block)\.(resnets|attentions|downsamplers|upsamplers)\.")


@dataclass(frozen=True)
class BitsSpace(Space):
    """A format per group of layers in the blocks. Level 0 is full precision, level i is formats[i-1].

    Layers of one input are one gene, as a library that runs them wants it: queries, keys and values of
    self-attention, keys and values of cross-attention. All layers outside of the blocks stay as they are
    (first and last layers are the most sensitive), but for one gene that tabulates the time embedding.

    Of a UNet, all ResNets of a block are one gene, and so are its attentions and its samplers; the first and the
    last layer are one with no less than 8 bits. With `split` convolutions that read a concatenation round its two
    parts apart (Q-Diffusion, arXiv:2302.04304).

    Genes are about layers, not steps. Uniform rows and MixDQ's (arXiv:2405.17873) content layers are presets.

    Args:
        formats: Names in `search.schedule.parts.formats.FORMATS`, falling from most to least bits: `w4a8d` has 4 bits
            per weight and dynamic 8-bit activations, `s` in place of `d` static ones, whose ranges are measured first,
            `t` static ones for each timestep.
        protect: Patterns of layers that stay at full precision (`transformer_blocks.0.*`).
        elide: Whether a gene tabulates the time embedding, which depends on the timestep alone.
        split: Whether the parts of a concatenation are rounded apart.
        law: Whether two genes choose the steps that the ranges of static formats are taken from.

    Raises:
        ValueError: A format is unknown, the formats do not fall in bits, or there is a law and no static format.

    Example:
        >>> from search.profile.target import Target
        >>> from search.schedule.model.nodes import Tree
        >>> from search.spaces.bits import BitsSpace
        >>> tree = Tree("PixArtTransformer2DModel", {"transformer_blocks": 2})
        >>> layers = {"transformer_blocks.0.ff.net.2": (128, 512), "transformer_blocks.1.ff.net.2": (128, 512)}
        >>> target = Target("pixart", tree, steps=4, layers=layers)
        >>> space = BitsSpace(formats=("w8a8d", "w4a8d"))
        >>> [(gene.name, gene.levels) for gene in space.genes(target)]
        [('transformer_blocks.0.ff.net.2', 3), ('transformer_blocks.1.ff.net.2', 3)]
        >>> space.decode([2, 0], target)["bits"]["layers"]
        {'transformer_blocks.0.ff.net.2': 'w4a8d'}
    """

    formats: tuple[str, ...] = ("w8a8d", "w4a8d", "w3a8d")
    protect: tuple[str, ...] = ()
    elide: bool = True
    split: bool = True
    law: bool = False
    key: ClassVar[str] = "bits"
    additive: ClassVar[bool] = True
    table_from_half_run: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for field in ("formats", "protect"):
            value = getattr(self, field)
            object.__setattr__(self, field, (value,) if isinstance(value, str) else tuple(value))
        for name in self.formats:
            if name not in ROUNDED:
                raise ValueError(
                    f"formats has {name!r}; choose from {', '.join(ROUNDED)}, for example "
                    "space.bits.formats=[w8a8d,w4a8d]"
                )
        bits = [_bits(name) for name in self.formats]
        if sorted(set(bits), reverse=True) != bits:
            best = sorted(set(self.formats), key=_bits, reverse=True)
            raise ValueError(
                f"formats {', '.join(self.formats)} do not fall from most to least bits; use "
                f"space.bits.formats=[{','.join(best)}]"
            )
        if self.law and not any(FORMATS[name].static and not FORMATS[name].per_step for name in self.formats):
            raise ValueError(
                f"law chooses the steps that static ranges are taken from, and none of {', '.join(self.formats)} has "
                "one for all steps; type space.bits.formats=[w8a8s], or leave space.bits.law out"
            )

    def genes(self, target: Target) -> list[Gene]:
        """One per group of layers, one for the time embedding, and with `law` its mean and its spread.

        Raises:
            ValueError: A pattern of `protect` matches no layer, no gene is left, or there are ranges for each timestep
                and only one.
        """
        if any(FORMATS[name].per_step for name in self.formats):
            require_steps("a range for each timestep", 2, target, "bits with space.bits.formats=[w8a8s]")
        groups = self.groups(target)
        genes = [Gene(name, 1 + len(self._formats(layers)), _place(layers, target)) for name, layers in groups.items()]
        if self._elided(target):
            genes.append(Gene(TIME, 2, TIME))
        if self.law:
            genes += [Gene("law.mean", 1 + len(MEANS), "law"), Gene("law.spread", len(SPREADS), "law")]
        if not genes:
            raise ValueError(
                f"space.bits has no genes on this {target.tree.model_class}; give it formats "
                "(space.bits.formats=[w8a8d]) and protect fewer layers"
            )
        return genes

    def groups(self, target: Target) -> dict[str, list[str]]:
        """Layers of one gene by its name: `transformer_blocks.0.attn1.to_q+to_k+to_v`, `down_blocks.0:resnets`.

        Layers outside of the blocks, protected layers, and layers that no format fits are in none of the groups.
        """
        for pattern in self.protect:
            if not any(fnmatchcase(name, pattern) for name in target.layers):
                raise ValueError(
                    f"protect has {pattern!r}, which matches none of {len(target.layers)} layers; they are called "
                    f"like {next(iter(target.layers), 'nothing')!r}"
                )
        layers_by_tie: dict[tuple[str, ...], list[str]] = {}
        for name in target.layers:
            if (tie := _tie(name, target)) and not any(fnmatchcase(name, pattern) for pattern in self.protect):
                layers_by_tie.setdefault(tie, []).append(name)
        return {_name(layers): layers for layers in layers_by_tie.values() if self._formats(layers)}

    def decode(self, x: Sequence[int] | np.ndarray, target: Target) -> Mapping[str, Any]:
        """The bits part; `{}` where every layer is at full precision.

        The group of a format, its number of inputs per scale, is lowered to a divisor of the layer's inputs.

        Raises:
            ValueError: A format is static, and the target has no ranges (`search.calibrate.ranges`).
        """
        levels = np.asarray(x, dtype=np.int64).tolist()
        law_steps = _law_steps(levels[-2], levels[-1], target) if self.law else None
        levels = levels[:-2] if self.law else levels
        groups, elided = self.groups(target), self._elided(target)
        wanted: dict[str, str] = {}
        for level, names in zip(levels, [*groups.values(), *([elided] if elided else [])], strict=True):
            if level:  # the table comes last: it may take layers out of a group
                wanted |= dict.fromkeys(names, "elided" if names is elided else self.formats[level - 1])
        splits = input_splits(target.layers) if self.split else {}
        formats: dict[str, Any] = {}
        layers: dict[str, str] = {}
        ranges: dict[str, list[list[float]]] = {}
        for name, form in wanted.items():
            layers[name], part = formats_that_fit(form, target.layers[name][1], splits.get(name))
            formats[layers[name]] = part.model_dump(exclude_defaults=True)
            if part.static:
                ranges[name] = _ranges(name, part, law_steps, target)
        content: dict[str, Any] = {"formats": formats, "layers": layers} | ({"ranges": ranges} if ranges else {})
        if target.ranges and any(form.get("per_step") for form in formats.values()):
            content["at"] = _reaching(target.ranges, target).at
        return {"bits": content} if layers else {}

    def presets(self, target: Target) -> dict[str, np.ndarray]:
        """Every format everywhere, with `law` also by PTQ4DM's, and MixDQ's split where weights have 8 and 4 bits."""
        groups = self.groups(target)
        size = len(self.genes(target))
        rows: dict[str, np.ndarray] = {}
        for level, name in enumerate(self.formats, 1):
            x = np.zeros(size, dtype=np.int64)
            x[: len(groups)] = [self._at_most(level, layers) for layers in groups.values()]
            rows[_label(name, any(UNET.match(layers[0]) for layers in groups.values()))] = x
            if self.law and FORMATS[name].static and not FORMATS[name].per_step:
                rows["PTQ4DM W{}A{}".format(*_bits(name))] = drawn = x.copy()
                drawn[-2:] = 1 + MEANS.index(0.5), SPREADS.index(0.4)
        at = {FORMATS[name].weight: level for level, name in reversed([*enumerate(self.formats, 1)])}
        content = [target.tree.node_of(layers[0]).component in ("attn2", "ff") for layers in groups.values()]
        if {8, 4} <= set(at) and any(content):
            x = np.zeros(size, dtype=np.int64)
            x[: len(groups)] = np.where(content, at[4], at[8])
            rows["MixDQ-like: text and ff W4, rest W8"] = x
        if self._elided(target):
            x = np.zeros(size, dtype=np.int64)
            x[len(groups)] = 1
            rows["time embedding tabulated"] = x
        return {name: x for name, x in rows.items() if x.any()}

    @property
    def needs_input_ranges(self) -> bool:
        """Whether a format is static: its ranges have to be measured before anything is decoded."""
        return any(FORMATS[name].static for name in self.formats)

    def _formats(self, layers: Sequence[str]) -> list[str]:
        """The formats that a group can have: the first ones of the list, which falls in bits."""
        return [name for name in self.formats if layers[0] not in ENDS or _bits(name)[0] >= 8]

    def _at_most(self, level: int, layers: Sequence[str]) -> int:
        """The level, or where the group lacks it the last one that rounds activations the same way."""
        form, allowed = FORMATS[self.formats[level - 1]], self._formats(layers)
        kind = (form.activation, form.static, form.per_step)
        others = [FORMATS[name] for name in allowed]
        same = [i for i, other in enumerate(others, 1) if (other.activation, other.static, other.per_step) == kind]
        return level if level <= len(allowed) else max(same, default=0)

    def _elided(self, target: Target) -> list[str]:
        layers = [name for name in target.layers if self.elide and elidable_layers(target.tree.model_class, name)]
        if "add_embedding.linear_1" in target.layers:  # SDXL: the text enters what the blocks are given
            layers = [name for name in layers if name.startswith("time_embedding.")]
        return layers


def _tie(name: str, target: Target) -> tuple[str, ...] | None:
    """What layers of one gene have in common; None for layers without one."""
    if match := UNET.match(name):
        return match[1], match[2]
    if name in ENDS:
        return ENDS
    if target.tree.node_of(name).block < 0 or elidable_layers(target.tree.model_class, name):
        return None
    parent, _, leaf = name.rpartition(".")
    if leaf not in ("to_q", "to_k", "to_v"):
        return (name,)
    apart = leaf == "to_q" and parent.rpartition(".")[2] in CROSS
    return (parent, str(target.layers[name][1]), "q" if apart else "")


def _name(layers: Sequence[str]) -> str:
    if match := UNET.match(layers[0]):
        return f"{match[1]}:{match[2]}"
    return layers[0] + "".join("+" + other.rpartition(".")[2] for other in layers[1:])


def _place(layers: Sequence[str], target: Target) -> str:
    """The genes of one block belong together."""
    node = target.tree.node_of(layers[0])
    if layers[0] in ENDS:
        return "ends"
    return f"block {node.block}" if len(target.tree.stacks) == 1 else f"{node.stack} {node.block}"


def _law_steps(mean: int, spread: int, target: Target) -> list[int] | None:
    """The teacher's steps that the law of these levels draws; None for all steps."""
    return drawn_steps(MEANS[mean - 1], SPREADS[spread], target.reference) if mean else None


def _ranges(name: str, form: FormatPart, steps: Sequence[int] | None, target: Target) -> list[list[float]]:
    """Ranges of a layer's input over some of the teacher's steps or at each, on the sides of its split or of all."""
    if target.ranges is None or name not in target.ranges.layers:
        raise ValueError(
            f"the range of {name}'s input was not calibrated, and a static format needs it; use dynamic formats, "
            "space.bits.formats=[w8a8d,w4a8d], or search.calibrate.ranges.target_with_ranges(model, …) as the target"
        )
    measured = _reaching(target.ranges, target).per_step(name) if form.per_step else [target.ranges.over(name, steps)]
    if form.split is None:
        measured = [[(min(low for low, _ in sides), max(high for _, high in sides))] for sides in measured]
    return [[low, high] for sides in measured for low, high in sides]


def _reaching(ranges: InputRanges, target: Target) -> InputRanges:
    """Ranges of the teacher's steps; where the steps were moved beyond its first or last one, also there."""
    return ranges.reaching(target.sampler.get("timesteps", ()) if target.teacher else ())


def _bits(name: str) -> tuple[int, int]:
    form = FORMATS[name]
    return form.weight or 16, form.activation or 16


def _label(name: str, unet: bool) -> str:
    """`W4A8`; on a UNet, where it is that of Q-Diffusion, so called."""
    weight, activation = _bits(name)
    if unet and activation == 16:
        return f"W{weight} weights only"
    published = "Q-Diffusion " if unet and FORMATS[name].static else ""
    suffix = ", ranges per step" if FORMATS[name].per_step else ""
    return f"{published}W{weight}" + (f"A{activation}" if activation < 16 else "") + suffix
