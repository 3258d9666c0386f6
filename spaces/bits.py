"""Bits per layer: at which format each group of linear layers runs, and what is tabulated instead."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, ClassVar

import numpy as np

from search.schedule.bits import FORMATS, elidable, fit
from search.spaces.base import Gene, Space
from search.target import Target

TIME = "time embedding"
CROSS = ("attn2",)  # attentions whose keys and values come from elsewhere than their queries
ROUNDED = tuple(name for name, form in FORMATS.items() if not form.elided)


@dataclass(frozen=True)
class BitsSpace(Space):
    """A format per group of linear layers in the blocks. Level 0 is full precision, level i is formats[i-1].

    Layers of one input are one gene, as a library that runs them wants it: queries, keys and values of
    self-attention, keys and values of cross-attention. All layers outside of the blocks stay as they are
    (first and last layers are the most sensitive), but for one gene that tabulates the time embedding.

    `protect` are patterns of layers in blocks that stay as they are, too (`transformer_blocks.0.*`). Genes are
    about layers, not steps. Uniform rows and MixDQ's (arXiv:2405.17873) content layers are presets.
    """

    formats: tuple[str, ...] = ("w8a8d", "w4a8d", "w3a8d")
    protect: tuple[str, ...] = ()
    elide: bool = True
    key: ClassVar[str] = "bits"
    additive: ClassVar[bool] = True

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

    def genes(self, target: Target) -> list[Gene]:
        """One per group of layers. ValueError where a pattern protects nothing, or nothing is left."""
        levels = 1 + len(self.formats)
        genes = [Gene(name, levels, _block(layers, target)) for name, layers in self.groups(target).items()]
        if self._elided(target):
            genes.append(Gene(TIME, 2, TIME))
        if not genes:
            raise ValueError(
                f"space.bits has no genes on this {target.tree.model_class}; give it formats "
                "(space.bits.formats=[w8a8d]) and protect fewer layers"
            )
        return genes

    def groups(self, target: Target) -> dict[str, list[str]]:
        """Layers in blocks that share an input, by their gene's name `transformer_blocks.0.attn1.to_q+to_k+to_v`."""
        for pattern in self.protect:
            if not any(fnmatchcase(name, pattern) for name in target.layers):
                raise ValueError(
                    f"protect has {pattern!r}, which matches none of {len(target.layers)} layers; they are called "
                    f"like {next(iter(target.layers), 'nothing')!r}"
                )
        found: dict[tuple[str, ...], list[str]] = {}
        for name in target.layers if self.formats else ():
            guarded = any(fnmatchcase(name, pattern) for pattern in self.protect)
            inside = target.tree.node_of(name).block >= 0
            if inside and not guarded and not elidable(target.tree.model_class, name):
                found.setdefault(self._tie(name, target), []).append(name)
        return {
            layers[0] + "".join("+" + other.rpartition(".")[2] for other in layers[1:]): layers
            for layers in found.values()
        }

    def decode(self, x: Sequence[int] | np.ndarray, target: Target) -> Mapping[str, Any]:
        """The bits part; `{}` where every layer is at full precision. Groups of a format divide the inputs."""
        levels = np.asarray(x, dtype=np.int64).tolist()
        groups, elided = self.groups(target), self._elided(target)
        formats: dict[str, Any] = {}
        layers: dict[str, str] = {}
        for level, names in zip(levels, [*groups.values(), *([elided] if elided else [])], strict=True):
            for name in names if level else ():
                wanted = "elided" if names is elided else self.formats[level - 1]
                form, part = fit(wanted, target.layers[name][1])
                formats[form] = part.model_dump(exclude_defaults=True)
                layers[name] = form
        return {"bits": {"formats": formats, "layers": layers}} if layers else {}

    def presets(self, target: Target) -> dict[str, np.ndarray]:
        """Every format everywhere, and MixDQ's split where there are formats of 8 and 4 weight bits."""
        groups = self.groups(target)
        size = len(self.genes(target))
        found: dict[str, np.ndarray] = {}
        for level, name in enumerate(self.formats, 1):
            x = np.zeros(size, dtype=np.int64)
            x[: len(groups)] = level
            found[_label(name)] = x
        at = {FORMATS[name].weight: level for level, name in reversed([*enumerate(self.formats, 1)])}
        if {8, 4} <= set(at):
            content = [target.tree.node_of(layers[0]).component in ("attn2", "ff") for layers in groups.values()]
            x = np.zeros(size, dtype=np.int64)
            x[: len(groups)] = np.where(content, at[4], at[8])
            found["MixDQ-like: text and ff W4, rest W8"] = x
        if self._elided(target):
            x = np.zeros(size, dtype=np.int64)
            x[-1] = 1
            found["time embedding tabulated"] = x
        return {name: x for name, x in found.items() if x.any()}

    def _elided(self, target: Target) -> list[str]:
        return [name for name in target.layers if self.elide and elidable(target.tree.model_class, name)]

    @staticmethod
    def _tie(name: str, target: Target) -> tuple[str, ...]:
        """What layers of one gene have in common."""
        parent, _, leaf = name.rpartition(".")
        if leaf not in ("to_q", "to_k", "to_v"):
            return (name,)
        apart = leaf == "to_q" and parent.rpartition(".")[2] in CROSS
        return (parent, str(target.layers[name][1]), "q" if apart else "")


def _bits(name: str) -> tuple[int, int]:
    form = FORMATS[name]
    return form.weight or 16, form.activation or 16


def _label(name: str) -> str:
    weight, activation = _bits(name)
    return f"W{weight}" + (f"A{activation}" if activation < 16 else "")


def _block(layers: Sequence[str], target: Target) -> str:
    return f"block {target.tree.node_of(layers[0]).block}"
