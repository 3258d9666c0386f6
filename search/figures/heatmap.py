"""A heat map of one schedule: what every node does at every step, its bits, and the guidance."""

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch

from search.figures.pictures import scores_line
from search.figures.style import BLUE, DPI, INK, ORANGE, PINK, SKY, SOFT, figure_png
from search.results.result import Entry
from search.schedule import Schedule
from search.schedule.model.nodes import ROOT
from search.schedule.plan.tokens import OFF, OWN

ACTIONS = {
    "C": ("compute", BLUE),
    "R": ("reuse", "#F3DFB8"),
    "F": ("forecast", ORANGE),
    "S": ("skip", PINK),
    "G": ("ask a gate", SKY),
    "-": ("not run", "#F4F5F7"),
}
BRANCHES = {
    "C": ("both branches", BLUE),
    "O": ("conditional only", SKY),
    "R": ("unconditional reused", "#F3DFB8"),
    "A": ("unconditional approximated", ORANGE),
    "M": ("branches merged", PINK),
}
FULL = 16  # bits of a layer that is not rounded, as bit operations count it


@dataclass(frozen=True)
class Layout:
    """The rows of a heat map.

    Attributes:
        groups: Names of nodes by the label of their group.
        actions: For each node a string with a letter of ACTIONS per step.
        bits: Mean weight bits of each node; empty if no layer is rounded.
    """

    groups: Mapping[str, list[str]]
    actions: Mapping[str, str]
    bits: Mapping[str, float]

    @classmethod
    def of(cls, schedule: Schedule) -> "Layout":
        """The rows of a schedule: the denoiser first, then nodes of one kind of component together."""
        names, tokens = schedule.table()
        rows = dict(zip(names, tokens, strict=True))
        groups = _groups(rows)
        order = [name for group in groups.values() for name in group]
        # a schedule for any number of steps computes everything, which is drawn as one step
        actions = {name: "".join(token[0] for token in rows[name]) or OFF for name in order}
        return cls(groups, actions, _bits(schedule, order))


def heatmap_png(entry: Entry) -> bytes:
    """A heat map as PNG: steps from left to right, nodes from top to bottom, one colour per action.

    The plan is above it as text. If the schedule has guidance of its own, a strip shows it; if it has rounded layers,
    a column on the right has the mean weight bits of every node.
    """
    schedule, layout = entry.schedule, Layout.of(entry.schedule)
    order, bits, guidance = list(layout.actions), layout.bits, entry.schedule.guidance
    codes = list(ACTIONS)
    image = np.array([[codes.index(letter) for letter in row] for row in layout.actions.values()])
    height, steps = image.shape
    row = float(np.clip(6 / height, 0.08, 0.2))
    guided = guidance is not None and not guidance.is_off
    width = max(6.5, min(0.34 * steps, 14) + 2.6 + 0.9 * bool(bits))
    figure = Figure(
        figsize=(width, row * height + 1.7 + 0.5 * guided),
        dpi=DPI,
        layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.06),
    )
    columns, strips = ([steps, 1.2] if bits else [1]), ([1.2, height] if guided else [1])
    grid = figure.add_gridspec(len(strips), len(columns), width_ratios=columns, height_ratios=strips)
    ax = figure.add_subplot(grid[-1, 0])
    _draw(ax, image, [color for _, color in ACTIONS.values()], row)
    _name_rows(ax, layout.groups, height)
    _name_steps(ax, schedule, steps)
    _name_models(ax, schedule, order.index(ROOT))
    handles = [ACTIONS[codes[i]] for i in np.unique(image)]
    if guided:
        handles += _draw_guidance(figure.add_subplot(grid[0, 0], sharex=ax), schedule)
    if bits:
        _draw_bits(figure.add_subplot(grid[-1, 1], sharey=ax), [bits[name] for name in order], row)
    solver = " · solver table" if "coefficients" in (schedule.sampler or {}) else ""
    figure.suptitle(
        f"{scores_line(entry)}{solver}\n{caption(schedule, int(11 * width))}",
        x=0.01, ha="left", fontsize=11, color=INK,
    )  # fmt: skip
    figure.legend(
        handles=[Patch(facecolor=color, edgecolor="#B0B5BB", lw=0.6, label=text) for text, color in handles],
        loc="outside lower left", ncols=len(handles), frameon=False, fontsize=9.5,
    )  # fmt: skip
    return figure_png(figure)


def caption(schedule: Schedule, most: int) -> str:
    """The plan in the plan notation, shortened to at most `most` characters."""
    return textwrap.shorten(schedule.plan_text, most, placeholder=" …")


def _draw(ax: Axes, image: np.ndarray, colors: list[str], row: float) -> None:
    width = 0.6 if row > 0.1 else 0.2
    ax.pcolormesh(image, cmap=ListedColormap(colors), vmin=0, vmax=len(colors) - 1, edgecolors="white", linewidth=width)
    ax.set_ylim(len(image), 0)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


def _name_rows(ax: Axes, groups: Mapping[str, list[str]], height: int) -> None:
    edge, ticks, texts = 0, [], []
    for kind, group in groups.items():
        ticks.append(edge + len(group) / 2)
        texts.append(row_label(kind, len(group), "\n"))
        edge += len(group)
        if edge < height:
            ax.axhline(edge, color=SOFT, lw=1)
    ax.set_yticks(ticks, texts)


def row_label(kind: str, count: int, between: str = " ") -> str:
    """The label of a group of `count` rows."""
    return kind if count == 1 else f"{kind}{between}blocks 0–{count - 1}"


def _name_steps(ax: Axes, schedule: Schedule, steps: int) -> None:
    """Label the steps, with their timesteps if the schedule states them."""
    shown = np.arange(0, steps, max(1, steps // 10))
    timesteps = (schedule.sampler or {}).get("timesteps")
    texts = [f"{i}\n{timesteps[i]:.0f}" if timesteps else str(i) for i in shown]
    ax.set_xticks(shown + 0.5, texts, fontsize=9)
    ax.set_xlabel("step, timestep" if timesteps else "step")


def _name_models(ax: Axes, schedule: Schedule, row: int) -> None:
    """Write the letter of the denoiser that runs, at steps of another one, on the row of the denoiser."""
    for t, letter in enumerate(schedule.plan.at):
        if letter != OWN:
            color = "white" if schedule.plan.tokens[ROOT][t] == OFF else INK
            ax.text(t + 0.5, row + 0.5, letter, ha="center", va="center", fontsize=7, color=color)


def _draw_guidance(ax: Axes, schedule: Schedule) -> list[tuple[str, str]]:
    """Draw the strip of guidance; returns the meaning of its colours."""
    guidance = schedule.guidance
    assert guidance is not None and schedule.steps is not None
    branch = guidance.branch or "C" * schedule.steps
    scale = guidance.scale or [guidance.call] * schedule.steps
    codes = list(BRANCHES)
    _draw(ax, np.array([[codes.index(b) for b in branch]]), [color for _, color in BRANCHES.values()], 0.2)
    for t, value in enumerate(scale):
        if value != guidance.call and branch[t] != "O":
            ax.text(
                t + 0.5,
                0.5,
                f"{value:.3g}",
                ha="center",
                va="center",
                fontsize=7.5,
                color="white" if branch[t] == "C" else INK,
            )
    ax.set_yticks([0.5], [f"guidance\n(else {guidance.call:g})"])
    ax.tick_params(labelbottom=False)
    return [BRANCHES[b] for b in codes if b in branch and b != "C"]


def _draw_bits(ax: Axes, bits: list[float], row: float) -> None:
    ax.pcolormesh(np.array(bits)[:, None], cmap="YlGnBu", vmin=0, vmax=FULL, edgecolors="white", linewidth=0.6)
    if row > 0.1:
        for y, value in enumerate(bits):
            color = "white" if value > 9 else INK
            ax.text(0.5, y + 0.5, f"{value:.3g}", ha="center", va="center", fontsize=7, color=color)
    ax.set_xticks([0.5], ["weight\nbits"], fontsize=9)
    ax.tick_params(length=0, labelleft=False)
    ax.spines[:].set_visible(False)


def _bits(schedule: Schedule, names: list[str]) -> dict[str, float]:
    """Mean weight bits of the rounded layers in every node; `{}` if the schedule rounds none."""
    bits: dict[str, list[float]] = {}
    for layer, form in schedule.bits.items():
        if form.weight:
            bits.setdefault(schedule.tree.node_of(layer).name, []).append(form.weight)
    return {name: float(np.mean(bits.get(name, [FULL]))) for name in names} if bits else {}


def _groups(rows: dict[str, list[str]]) -> dict[str, list[str]]:
    """Names of nodes by label: the denoiser, components by kind, stacks and blocks that have actions of their own."""
    groups: dict[str, list[str]] = {}
    for name in rows:
        stack, dot, _ = name.partition(".")
        kind = name.rpartition(":")[2] if ":" in name else stack + (" blocks" if dot else "")
        groups.setdefault(kind, []).append(name)
    stacks = [k for k, group in groups.items() if ":" not in group[0] and k != "denoiser"]
    for kind in stacks:
        if all(token in ("C", "-") for name in groups[kind] for token in rows[name]):
            del groups[kind]
    return groups
