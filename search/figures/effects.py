"""A figure of effects: a bar with its interval for every decision of a schedule, one panel per group."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from search.figures.style import BLUE, DPI, INK, ORANGE, PALE, SOFT, figure_png

Bar = tuple[str, float, float, float, float]  # name, value, low, high, share of MACs saved
ROW = 0.24  # inches


def bars_png(panels: Mapping[str, Sequence[Bar]], title: str, subtitle: str) -> bytes:
    """Left the drift that each decision adds, with its interval, right the MACs that it saves.

    Intervals of pale bars include 0; blue bars reduce the drift.
    """
    counts = [len(bars) for bars in panels.values()]
    height = 1.35 + ROW * sum(counts) + 0.42 * len(counts)
    figure = Figure(figsize=(9, height), dpi=DPI)
    top, bottom = 1 - 0.85 / height, 0.5 / height
    grid = figure.add_gridspec(
        len(counts), 2, height_ratios=counts, width_ratios=[2.2, 1], left=0.2, right=0.97, top=top, bottom=bottom,
        hspace=0.42 * len(counts) / max(ROW * sum(counts), 0.1) if len(counts) > 1 else 0, wspace=0.06,
    )  # fmt: skip
    figure.text(0.02, 1 - 0.18 / height, title, fontsize=13, color=INK, va="top")
    figure.text(0.02, 1 - 0.46 / height, subtitle, fontsize=9.5, color=SOFT, va="top")
    for i, (group, bars) in enumerate(panels.items()):
        places = np.arange(len(bars))
        names, value, low, high, saved = (list(column) for column in zip(*bars, strict=True))
        added = figure.add_subplot(grid[i, 0])
        is_certain = [lo > 0 or hi < 0 for lo, hi in zip(low, high, strict=True)]
        colors = [(ORANGE if v > 0 else BLUE) if s else PALE for v, s in zip(value, is_certain, strict=True)]
        value = np.nan_to_num(value)
        reach = [value - np.where(np.isnan(low), value, low), np.where(np.isnan(high), value, high) - value]
        added.barh(places, value, color=colors, height=0.7)
        added.errorbar(value, places, xerr=np.maximum(reach, 0), fmt="none", ecolor=SOFT, elinewidth=1, capsize=2)
        added.set_yticks(places, names, fontsize=8.5)
        added.axvline(0, color=SOFT, lw=0.8)
        added.set_title(group, fontsize=9.5, color=SOFT, loc="left", pad=3)
        macs = figure.add_subplot(grid[i, 1])
        macs.barh(places, 100 * np.nan_to_num(saved), color=SOFT, height=0.7)
        macs.set_yticks([])
        for ax in (added, macs):
            ax.set_ylim(len(bars) - 0.4, -0.6)
            ax.tick_params(labelsize=8.5, length=2, color=SOFT)
            ax.spines[["top", "right"]].set_visible(False)
            ax.grid(axis="x", color="#ECEFF1", lw=0.8)
            ax.set_axisbelow(True)
        if i == len(counts) - 1:
            added.set_xlabel("drift that it adds, 95 % interval", fontsize=9.5)
            macs.set_xlabel("saved, % of the teacher's MACs", fontsize=9.5)
    return figure_png(figure)
