"""Figures of a search: the front, and the pictures before and after. PNG as bytes."""

import io
import textwrap
from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter
from PIL import Image

from search.figures.labels import LabelPlacer
from search.results.result import Entry, Result
from search.results.scores import Score

# Okabe and Ito's palette, which colour-blind readers can tell apart; families have marks of their own besides.
BLUE, ORANGE, GREEN, RED, PINK, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
INK, SOFT, PALE = "#202124", "#5F6368", "#C9CED6"
COLORS = (RED, GREEN, ORANGE, PINK, SKY, INK)
MARKS = ("s", "^", "D", "v", "P", "X", "p", "h", "<", ">", "8", "d")  # as many families have a shape of their own
LEVELS = ("slow", "medium", "fast", "ultra")
DPI = 110
LONGEST = 9  # characters of a variant that is written beside its point


def pareto_png(result: Result) -> bytes:
    """Candidates on calibration prompts; the front, the presets and their intervals on held-out prompts."""
    x, y = result.axes
    figure = Figure(figsize=(9, 6.2), dpi=DPI)
    ax = figure.add_subplot()
    points = [p for p in result.points if x in p and y in p]
    ax.scatter([p[x] for p in points], [p[y] for p in points], s=10, color=PALE, linewidths=0)
    legend = [Line2D([], [], ls="", marker="o", ms=3.5, color=PALE, label="candidates (calibration)")]
    front = result.of("front")
    if front:
        ax.errorbar(
            *_points(front, x, y), yerr=_reach(front, y), fmt="-o", color=BLUE, ms=6, lw=1.8, elinewidth=1.1,
            capsize=2.5, zorder=4,
        )  # fmt: skip
        legend.insert(0, Line2D([], [], marker="o", ms=6, color=BLUE, label="searched front"))
    for family, color, mark, entries in preset_families(result):
        ax.errorbar(*_points(entries, x, y), yerr=_reach(entries, y), fmt="none", ecolor=color, alpha=0.4, elinewidth=1)
        ax.plot(*_points(entries, x, y), mark, ms=6.5, color=color, mec="white", mew=0.7, zorder=3)
        legend.append(Line2D([], [], ls="", marker=mark, ms=6.5, color=color, label=family))
    teacher = result.of("teacher")
    _scale(ax, result, x, y)
    if teacher and ax.get_yscale() == "linear":
        ax.plot(*_points(teacher, x, y), "*", ms=12, color=INK, zorder=5, clip_on=False)
        legend.append(Line2D([], [], ls="", marker="*", ms=11, color=INK, label="teacher"))
    if y == "psnr":
        ax.axhline(result.no_visible_loss, color=SOFT, lw=1, ls=(0, (4, 3)), zorder=1)
        ax.text(0.995, result.no_visible_loss, "visible below", transform=ax.get_yaxis_transform(), ha="right",
                va="top", fontsize=8.5, color=SOFT)  # fmt: skip
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


def grid_png(result: Result, entry: Entry) -> bytes:
    """The teacher's pictures, this schedule's, and four times their difference; same prompts and noise."""
    teacher = result.of("teacher")[0]
    if not entry.images or not teacher.images:
        raise ValueError(f"{entry.name!r} has no pictures to show; searches of earlier versions kept none of presets")
    apart = [difference(a, b) for a, b in zip(teacher.images, entry.images, strict=True)]
    rows = [
        ("teacher", teacher.images, False),
        (_short(entry), entry.images, False),
        ("difference ×4", apart, False),
    ]
    return rows_png(rows, result.shown, scores_line(entry))


def difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Four times how far two pictures [H, W, 3] are apart."""
    return np.clip(4 * np.abs(a.astype(int) - b.astype(int)), 0, 255).astype(np.uint8)


def overview_png(result: Result, most: int = 5) -> bytes:
    """The teacher and up to `most` schedules of the front, slowest first; the recommended one is among them."""
    front = [e for e in result.of("front") if e.images][::-1]
    picked = {int(i) for i in np.linspace(0, len(front) - 1, min(most, len(front))).round()}
    wanted = next((i for i, e in enumerate(front) if e is result.best), None)
    if wanted is not None and wanted not in picked:
        inner = picked - {0, len(front) - 1} or picked
        picked = picked - {min(inner, key=lambda i: abs(i - wanted))} | {wanted}
    rows = [("teacher", result.of("teacher")[0].images or [], False)]
    rows += [(_short(front[i]), front[i].images or [], i == wanted) for i in sorted(picked)]
    return rows_png(rows, result.shown, f"{result.model}, {result.space}: same held-out prompts, same noise")


# Charts: what is drawn where.


def preset_families(result: Result) -> Iterator[tuple[str, str, str, list[Entry]]]:
    """Presets by family, each with its colour and mark: `FORA N=3` belongs to FORA, `10 steps` to fewer steps."""
    found: dict[str, list[Entry]] = {}
    for entry in result.of("preset"):
        found.setdefault(_family(entry.name)[0], []).append(entry)
    for i, (name, entries) in enumerate(found.items()):
        yield name, COLORS[(i + i // len(MARKS)) % len(COLORS)], MARKS[i % len(MARKS)], entries


def _family(name: str) -> tuple[str, str]:
    """Family and variant of a preset's name; the variant begins with a number, an assignment, a level, or a comma."""
    words = name.split()
    if words[1:] == ["steps"]:
        return "fewer steps", words[0]
    begins = (
        i
        for i, word in enumerate(words)
        if i and (word in LEVELS or any(c.isdigit() or c == "=" for c in word) or words[i - 1][-1] in ",:")
    )
    at = next(begins, len(words))
    return " ".join(words[:at]).rstrip(",:"), " ".join(words[at:])


def _points(entries: Sequence[Entry], x: str, y: str) -> tuple[list[float], list[float]]:
    return [e.held_out[x].value for e in entries], [e.held_out[y].value for e in entries]


def _reach(entries: Sequence[Entry], y: str) -> tuple[list[float], list[float]]:
    """How far the 95 % intervals go below and above the values; nothing where there is none."""
    scores = [e.held_out[y] for e in entries]
    return [s.value - _or(s.low, s) for s in scores], [_or(s.high, s) - s.value for s in scores]


def _or(bound: float | None, score: Score) -> float:
    return score.value if bound is None else bound


def is_log(result: Result, y: str) -> bool:
    """Errors that span more than a factor of 20 are drawn on a logarithmic axis."""
    values = _drawn(result, y)
    return result.better.get(y) != "higher" and min(values) > 0 and max(values) / min(values) > 20


def _drawn(result: Result, y: str) -> list[float]:
    """The finite values of everything but the teacher."""
    values = [e.held_out[y].value for e in result.entries if e.role != "teacher"]
    return [v for v in values if np.isfinite(v)] or [0.0]


def axis_limits(result: Result, y: str, log: bool) -> tuple[float, float]:
    values = _drawn(result, y)
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
    """Name the recommended schedule and every preset's variant."""
    labels = LabelPlacer(ax)
    spots = {id(e): (e.held_out[x].value, e.held_out[y].value) for e in result.entries}
    front = result.of("front")
    labels.keep_free(spots[id(e)] for e in (*front, *result.of("preset")))
    labels.keep_line_free([spots[id(e)] for e in front])
    for e in front:
        score = e.held_out[y]
        labels.keep_line_free([(e.held_out[x].value, _or(bound, score)) for bound in (score.low, score.high)])
    best = result.best
    if best.role == "front":
        ax.plot(*spots[id(best)], "o", ms=14, mfc="none", mec=BLUE, mew=2, zorder=5)
        parts = [f"{best.held_out['speedup'].value:.2f}× faster"] if "speedup" in best.held_out else []
        parts += [f"PSNR {best.held_out['psnr'].value:.1f} dB"] if "psnr" in best.held_out else []
        text = "recommended\n" + ", ".join(parts)
        labels.write(spots[id(best)], text, (30, 45, 60, 80), line=True, color=BLUE, fontsize=10.5, weight="bold")
    for _, color, _, group in preset_families(result):
        for e in group:
            variant = _family(e.name)[1]
            if 0 < len(variant) <= LONGEST and np.isfinite(spots[id(e)]).all():
                labels.write(spots[id(e)], variant, (8, 13, 19), must=False, color=_darker(color), fontsize=8)


def _darker(color: str) -> tuple[float, ...]:
    """For small words: the same hue, easier to read on white."""
    return tuple(0.72 * c for c in to_rgb(color))


# Pictures.


def _short(entry: Entry) -> str:
    """A row's label: name and scores, one below the other."""
    s = entry.held_out
    lines = entry.name.split(" · ")
    return "\n".join([*lines, *([f"PSNR {s['psnr'].value:.1f} dB"] if "psnr" in s else [])])


def scores_line(entry: Entry) -> str:
    s = entry.held_out
    psnr = f" · PSNR {s['psnr'].value:.1f} dB" if "psnr" in s else ""
    macs = f" · {s['macs'].value:.0%} of the MACs" if "macs" in s else ""
    return entry.name + psnr + macs


def rows_png(rows: Sequence[tuple[str, Sequence[np.ndarray], bool]], prompts: Sequence[str], title: str) -> bytes:
    """Pictures in rows, small ones enlarged by a whole factor so that no pixel is invented."""
    columns = min(8, len(prompts))
    size = max(image.shape[0] for image in rows[0][1])
    shown = 264 if columns < 3 else 132  # pixels, so that a title has room above a single picture
    side = size * max(1, round(shown / size)) if size < 200 else max(192, shown)
    left, gap, top, bottom = 138, 8, 92, 10
    width, height = left + columns * (side + gap), top + len(rows) * (side + gap) + bottom
    figure = Figure(figsize=(width / 100, height / 100), dpi=100, facecolor="white")
    figure.text(10 / width, 1 - 12 / height, title, fontsize=11.5, color=INK, va="top")
    for j, prompt in enumerate(prompts[:columns]):
        text = _wrapped(prompt, side // 7)
        figure.text((left + j * (side + gap) + side / 2) / width, 1 - (top - 8) / height, text, fontsize=9, color=INK,
                    ha="center", va="bottom", linespacing=1.1)  # fmt: skip
    for i, (name, images, marked) in enumerate(rows):
        y = height - top - i * (side + gap) - side
        head, _, rest = name.partition("\n")
        middle = (y + side / 2) / height
        color = BLUE if marked else INK
        figure.text(
            (left - 12) / width,
            middle + 4 / height,
            head,
            fontsize=10.5,
            color=color,
            ha="right",
            va="bottom",
            weight="bold",
        )
        if marked:
            rest += "\nrecommended"
        figure.text(
            (left - 12) / width,
            middle,
            rest,
            fontsize=9,
            color=color if marked else SOFT,
            ha="right",
            va="top",
            linespacing=1.25,
        )
        for j, image in enumerate(images[:columns]):
            figure.figimage(_enlarged(image, side), left + j * (side + gap), y)
    return figure_png(figure)


def _wrapped(prompt: str, width: int) -> str:
    """At most three lines, broken at commas where that fits."""
    parts = prompt.split(", ")
    if len(parts) <= 3 and max(map(len, parts)) <= width:
        return ",\n".join(parts)
    return "\n".join(textwrap.wrap(prompt, width, max_lines=3, placeholder=" …"))


def _enlarged(image: np.ndarray, side: int) -> np.ndarray:
    height = round(side * image.shape[0] / image.shape[1])
    exact = side % image.shape[1] == 0
    way = Image.Resampling.NEAREST if exact else Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(image).resize((side, height), way))


def figure_png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
