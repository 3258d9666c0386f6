"""Figures of pictures: the teacher's, those of schedules, and their differences. PNG as bytes."""

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from search.figures.style import BLUE, INK, SOFT, figure_png
from search.results.certificates import worst_words
from search.results.result import Entry, Result


def grid_png(result: Result, entry: Entry) -> bytes:
    """The teacher's pictures, this schedule's, and four times their difference; the worst run first."""
    teacher = result.of("teacher")[0]
    if not entry.images or not teacher.images:
        raise ValueError(f"{entry.name!r} has no pictures to show; searches of earlier versions stored none of presets")
    pairs = list(zip(teacher.images, entry.images, strict=True))
    titles = list(result.shown)
    if entry.worst and entry.worst.images:
        pairs, titles = [(entry.worst.images[0], entry.worst.images[1]), *pairs], [worst_words(entry), *titles]
    rows = [
        ("teacher", [before for before, _ in pairs], False),
        (_row_label(entry), [after for _, after in pairs], False),
        ("difference ×4", [difference(*pair) for pair in pairs], False),
    ]
    return rows_png(rows, titles, scores_line(entry))


def difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Four times the absolute difference of two pictures uint8 [H, W, 3], cut off at 255."""
    clipped: np.ndarray = np.clip(4 * np.abs(a.astype(int) - b.astype(int)), 0, 255).astype(np.uint8)
    return clipped


def overview_png(result: Result, most: int = 5) -> bytes:
    """The teacher and up to `most` schedules of the front, slowest first; the recommended one is among them.

    Each row of a schedule begins with its worst run: the teacher's picture and its own.
    """
    front = [e for e in result.of("front") if e.images][::-1]
    picked = {int(i) for i in np.linspace(0, len(front) - 1, min(most, len(front))).round()}
    wanted = next((i for i, e in enumerate(front) if e is result.best), None)
    if wanted is not None and wanted not in picked:
        inner = picked - {0, len(front) - 1} or picked
        picked = picked - {min(inner, key=lambda i: abs(i - wanted))} | {wanted}
    shown, images = list(result.shown), list(result.of("teacher")[0].images or [])
    first: dict[int, list[np.ndarray]] = {i: e.worst.images for i in picked if (e := front[i]).worst and e.worst.images}
    if first:
        shown = ["worst run, teacher", "worst run", *shown]
        images = [np.full_like(images[0], 255)] * 2 + images
    rows = [("teacher", images, False)]
    rows += [(_row_label(front[i]), [*first.get(i, []), *(front[i].images or [])], i == wanted) for i in sorted(picked)]
    return rows_png(rows, shown, f"{result.model}, {result.space}: same held-out prompts, same noise")


def _row_label(entry: Entry) -> str:
    """The label of a row: name and scores, one per line."""
    s = entry.held_out
    lines = entry.name.split(" · ")
    lines += [f"PSNR {s['psnr'].value:.1f} dB"] if "psnr" in s else []
    lines += [f"worst {entry.worst.value:.3g}"] if entry.worst else []
    if entry.tested:
        lines += ["certified"] if entry.tested.certified else [f"{entry.tested.misses} of {entry.tested.runs} missed"]
    return "\n".join(lines)


def scores_line(entry: Entry) -> str:
    """Name, PSNR and MACs of an entry in one line."""
    s = entry.held_out
    psnr = f" · PSNR {s['psnr'].value:.1f} dB" if "psnr" in s else ""
    macs = f" · {s['macs'].value:.0%} of the MACs" if "macs" in s else ""
    return entry.name + psnr + macs


def rows_png(rows: Sequence[tuple[str, Sequence[np.ndarray], bool]], prompts: Sequence[str], title: str) -> bytes:
    """Pictures in rows under their prompts; small ones are enlarged by an integer factor, without interpolation.

    Args:
        rows: Of each row its label (a first line, and smaller ones), its pictures uint8 [H, W, 3], and whether it is
            the recommended one.
        prompts: Of the columns; at most eight are shown.
        title: Of the figure.
    """
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
    for i, (name, images, recommended) in enumerate(rows):
        y = height - top - i * (side + gap) - side
        head, _, rest = name.partition("\n")
        lines = rest.count("\n") + 1 + recommended
        middle = (y + side / 2 + 8 * max(0, lines - 3)) / height
        color = BLUE if recommended else INK
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
        if recommended:
            rest += "\nrecommended"
        figure.text(
            (left - 12) / width,
            middle,
            rest,
            fontsize=9,
            color=color if recommended else SOFT,
            ha="right",
            va="top",
            linespacing=1.25,
        )
        for j, image in enumerate(images[:columns]):
            figure.figimage(_enlarged(image, side), left + j * (side + gap), y)
    return figure_png(figure)


def _wrapped(prompt: str, width: int) -> str:
    """A prompt in at most three lines, broken at commas if these lines are short enough."""
    parts = prompt.split(", ")
    if len(parts) <= 3 and max(map(len, parts)) <= width:
        return ",\n".join(parts)
    return "\n".join(textwrap.wrap(prompt, width, max_lines=3, placeholder=" …"))


def _enlarged(image: np.ndarray, side: int) -> np.ndarray:
    """A picture [H, W, 3] at a width of `side` pixels."""
    height = round(side * image.shape[0] / image.shape[1])
    exact = side % image.shape[1] == 0
    resampling = Image.Resampling.NEAREST if exact else Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(image).resize((side, height), resampling))
