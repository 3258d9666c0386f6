"""The chart of a search: its front, the presets, and the candidates. PNG as bytes."""

from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

from search.figures.labels import LabelPlacer
from search.figures.style import BLUE, COLORS, DPI, INK, PALE, SOFT, figure_png
from search.results.certificates import criterion_limit
from search.results.result import FITTED, Entry, Result
from search.results.scores import Score

MARKERS = ("s", "^", "D", "v", "P", "X", "p", "h", "<", ">", "8", "d")  # as many families have different shapes
LEVELS = ("slow", "medium", "fast", "ultra")
LONGEST = 9  # characters of a variant that is written next to its point


def pareto_png(result: Result) -> bytes:
    """A chart: candidates on calibration prompts; front, presets and their intervals on held-out prompts."""
    x, y = result.axes
    figure = Figure(figsize=(9, 6.2), dpi=DPI)
    ax = figure.add_subplot()
    points = [p for p in result.points if x in p and y in p]
    ax.scatter([p[x] for p in points], [p[y] for p in points], s=10, color=PALE, linewidths=0)
    legend = [Line2D([], [], ls="", marker="o", ms=3.5, color=PALE, label="candidates (calibration)")]
    front = result.of("front")
    if front:
        ax.errorbar(
            *_coordinates(front, x, y), yerr=_error_bars(front, y), fmt="-o", color=BLUE, ms=6, lw=1.8, elinewidth=1.1,
            capsize=2.5, zorder=4,
        )  # fmt: skip
        legend.insert(0, Line2D([], [], marker="o", ms=6, color=BLUE, label="searched front"))
    for family, color, marker, entries in preset_families(result):
        ax.errorbar(
            *_coordinates(entries, x, y),
            yerr=_error_bars(entries, y),
            fmt="none",
            ecolor=color,
            alpha=0.4,
            elinewidth=1,
        )
        fitted = [entry for entry in entries if entry.is_fitted_preset]
        plain = [entry for entry in entries if not entry.is_fitted_preset]
        ax.plot(*_coordinates(plain, x, y), marker, ms=6.5, color=color, mec="white", mew=0.7, zorder=3)
        ax.plot(*_coordinates(fitted, x, y), marker, ms=5.5, mfc="white", mec=color, mew=1.3, zorder=3)
        legend.append(Line2D([], [], ls="", marker=marker, ms=6.5, color=color, label=family))
    if any(entry.is_fitted_preset for entry in result.entries):
        hollow = {"ls": "", "marker": "o", "ms": 5.5, "mfc": "white", "mec": SOFT, "mew": 1.3}
        legend.append(Line2D([], [], **hollow, label="hollow: with a fitted solver"))
    teacher = result.of("teacher")
    _scale(ax, result, x, y)
    if teacher and ax.get_yscale() == "linear":
        ax.plot(*_coordinates(teacher, x, y), "*", ms=12, color=INK, zorder=5, clip_on=False)
        legend.append(Line2D([], [], ls="", marker="*", ms=11, color=INK, label="teacher"))
    if (limit := criterion_limit(result, y)) is not None:
        ax.axhline(limit, color=SOFT, lw=1, ls=(0, (4, 3)), zorder=1)
        ax.text(0.995, limit, "criterion of every run", transform=ax.get_yaxis_transform(), ha="right", va="top",
                fontsize=8.5, color=SOFT)  # fmt: skip
    ax.set_xlabel(axis_label(result, x), fontsize=11)
    ax.set_ylabel(axis_label(result, y), fontsize=11)
    ax.grid(color="#ECEFF1", lw=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    for spine in ("left", "bottom"):
        ax.spines[spine].set_color(SOFT)
    rows = -(-len(legend) // 4)
    height = 5.58 + 0.205 * rows  # inches; the axes keep their size however many families there are
    figure.set_figheight(height)
    figure.subplots_adjust(left=0.085, right=0.975, top=1 - 0.71 / height, bottom=(0.62 + 0.205 * rows) / height)
    title = f"{result.model}, {result.space}: searched front and published rules"
    figure.text(0.085, 1 - 0.28 / height, title, fontsize=13, color=INK)
    figure.text(0.085, 1 - 0.54 / height, _prompts_line(result), fontsize=9.5, color=SOFT)
    figure.legend(
        handles=legend, loc="lower center", bbox_to_anchor=(0.53, 0.005), ncols=min(4, len(legend)), frameon=False,
        fontsize=9.5, columnspacing=2.2, handletextpad=0.6,
    )  # fmt: skip
    _write_labels(ax, result, x, y)
    return figure_png(figure)


def preset_families(result: Result) -> Iterator[tuple[str, str, str, list[Entry]]]:
    """Presets by family, each with its colour and marker: `FORA N=3` belongs to FORA, `10 steps` to fewer steps."""
    families: dict[str, list[Entry]] = {}
    for entry in result.of("preset"):
        families.setdefault(_family(entry.name)[0], []).append(entry)
    for i, (name, entries) in enumerate(families.items()):
        yield name, COLORS[(i + i // len(MARKERS)) % len(COLORS)], MARKERS[i % len(MARKERS)], entries


def _family(name: str) -> tuple[str, str]:
    """Family and variant of a preset's name; the variant starts with a number, an assignment, a level, or a comma."""
    words = name.removesuffix(FITTED).split()
    if words[1:] in (["steps"], ["step"]):
        return "fewer steps", words[0]
    starts = (
        i
        for i, word in enumerate(words)
        if i and (word in LEVELS or any(c.isdigit() or c == "=" for c in word) or words[i - 1][-1] in ",:")
    )
    start = next(starts, len(words))
    return " ".join(words[:start]).rstrip(",:"), " ".join(words[start:])


def _coordinates(entries: Sequence[Entry], x: str, y: str) -> tuple[list[float], list[float]]:
    return [e.held_out[x].value for e in entries], [e.held_out[y].value for e in entries]


def _error_bars(entries: Sequence[Entry], y: str) -> tuple[list[float], list[float]]:
    """Lengths of the 95 % intervals below and above the values; 0 if a score has no interval."""
    scores = [e.held_out[y] for e in entries]
    return [s.value - _bound_or_value(s.low, s) for s in scores], [_bound_or_value(s.high, s) - s.value for s in scores]


def _bound_or_value(bound: float | None, score: Score) -> float:
    return score.value if bound is None else bound


def is_log(result: Result, y: str) -> bool:
    """Whether an axis is logarithmic: for errors that span more than a factor of 20."""
    values = _finite_values(result, y)
    return result.better.get(y) != "higher" and min(values) > 0 and max(values) / min(values) > 20


def _finite_values(result: Result, y: str) -> list[float]:
    """The finite values of all entries but the teacher."""
    values = [e.held_out[y].value for e in result.entries if e.role != "teacher"]
    return [v for v in values if np.isfinite(v)] or [0.0]


def axis_limits(result: Result, y: str, log: bool) -> tuple[float, float]:
    """Ends of the y axis, with room around all values and intervals."""
    values = _finite_values(result, y)
    if log:
        lows = [s.low for s in (e.held_out[y] for e in result.entries) if s.low and s.value > 0]
        return max(min(values) / 4, min([*lows, *values]) * 0.85), max(values) * 1.6
    values += [e.held_out[y].value for e in result.of("teacher")]
    bounds = [bound for e in result.entries for bound in (e.held_out[y].low, e.held_out[y].high)]
    values += [bound for bound in bounds if bound is not None and np.isfinite(bound)]
    room = 0.06 * ((max(values) - min(values)) or 1)
    return min(values) - room, max(values) + room


def _scale(ax: Axes, result: Result, x: str, y: str) -> None:
    log = is_log(result, y)
    if log:
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        ax.yaxis.set_minor_formatter(NullFormatter())
    ax.set_ylim(*axis_limits(result, y, log))
    ax.set_xlim(0, max(e.held_out[x].value for e in result.entries) * 1.04 or 1)
    if x in result.shares:
        ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.0%}"))


def axis_label(result: Result, name: str) -> str:
    """The label of an axis: what a score is, its unit, and whether higher or lower is better."""
    unit = result.units.get(name, "")
    direction = f" · {result.better[name]} is better" if name in result.better else ""
    return result.labels.get(name, name) + (f" ({unit})" if unit not in ("", "ratio") else "") + direction


def _prompts_line(result: Result) -> str:
    held_out, calibration = (len(result.prompts.get(split, ())) for split in ("held_out", "calibration"))
    return (
        f"Front and rules: {held_out} held-out prompts, bars are 95 % intervals. "
        f"Grey: {len(result.points)} candidates on {calibration} calibration prompts."
    )


def _write_labels(ax: Axes, result: Result, x: str, y: str) -> None:
    """Write the scores of the recommended schedule, and the variants of presets next to their points."""
    labels = LabelPlacer(ax)
    places = {id(e): (e.held_out[x].value, e.held_out[y].value) for e in result.entries}
    front = result.of("front")
    labels.keep_free(places[id(e)] for e in (*front, *result.of("preset")))
    labels.keep_line_free([places[id(e)] for e in front])
    for e in front:
        score = e.held_out[y]
        labels.keep_line_free(
            [(e.held_out[x].value, _bound_or_value(bound, score)) for bound in (score.low, score.high)]
        )
    best = result.best
    if best.role == "front":
        ax.plot(*places[id(best)], "o", ms=14, mfc="none", mec=BLUE, mew=2, zorder=5)
        parts = [f"{best.held_out['speedup'].value:.2f}× faster"] if "speedup" in best.held_out else []
        parts += [f"PSNR {best.held_out['psnr'].value:.1f} dB"] if "psnr" in best.held_out else []
        text = "recommended\n" + ", ".join(parts)
        labels.write(places[id(best)], text, (30, 45, 60, 80), line=True, color=BLUE, fontsize=10.5, weight="bold")
    for _, color, _, group in preset_families(result):
        for e in group:
            variant = _family(e.name)[1]
            if not e.is_fitted_preset and 0 < len(variant) <= LONGEST and np.isfinite(places[id(e)]).all():
                labels.write(places[id(e)], variant, (8, 13, 19), required=False, color=_darker(color), fontsize=8)


def _darker(color: str) -> tuple[float, ...]:
    """A darker colour of the same hue, which is easier to read in small letters on white."""
    return tuple(0.72 * c for c in to_rgb(color))
