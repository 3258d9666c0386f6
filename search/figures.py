"""All figures: the front, the plans as heat-maps, the pictures before and after. PNG as bytes, HTML as text."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from search.result import Entry, Result

# Okabe and Ito's palette, which colour-blind readers can tell apart.
BLUE, ORANGE, GREEN, RED, GREY, INK = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#9AA0A6", "#202124"
ACTIONS = {"C": ("compute", BLUE), "R": ("reuse", "#F3E3C3"), "F": ("forecast", ORANGE), "S": ("skip", GREEN),
           "-": ("not run", "#FFFFFF")}  # fmt: skip
MARKS = ("s", "^", "D", "v", "P", "X", "o")


def axes_of(result: Result) -> tuple[str, str]:
    """Names on the x and y axis: the first cost and the first quality among the objectives."""
    costs = [o for o in result.objectives if o in ("macs", "latency", "memory")]
    qualities = [o for o in result.objectives if o not in costs]
    return (costs or ["macs"])[0], (qualities or ["drift"])[0]


def label(result: Result, name: str) -> str:
    words = {
        "macs": "denoiser MACs, share of the teacher's",
        "latency": "latency of one picture",
        "memory": "peak memory of kept values",
        "drift": "drift: distance of the final latents to the teacher's",
        "psnr": "PSNR against the teacher's pictures",
        "ssim": "SSIM against the teacher's pictures",
    }
    unit = result.units.get(name, "")
    return words.get(name, name) + (f" ({unit})" if unit not in ("", "ratio") else "")


def family(name: str) -> str:
    """`FORA N=3` belongs to FORA, `10 steps` to fewer steps."""
    return "fewer steps" if name.endswith(" steps") else name.split(" N=")[0].split(" α=")[0]


def pareto_png(result: Result) -> bytes:
    """Candidates, presets and the front; held-out scores with 95 % intervals."""
    x, y = axes_of(result)
    figure = Figure(figsize=(9, 5.6), dpi=110, layout="constrained")
    ax = figure.add_subplot()
    ax.scatter(
        [p[x] for p in result.points], [p[y] for p in result.points], s=9, color="#D5D9DE", linewidths=0,
        label=f"{len(result.points)} evaluated candidates (calibration prompts)",
    )  # fmt: skip
    families: dict[str, list[Entry]] = {}
    for entry in result.of("preset"):
        families.setdefault(family(entry.name), []).append(entry)
    palette = (RED, GREEN, ORANGE, "#CC79A7", "#56B4E9", INK)
    for i, (name, entries) in enumerate(families.items()):
        ax.plot(*_points(entries, x, y), MARKS[i % len(MARKS)], ms=6.5, color=palette[i % len(palette)],
                mec="white", mew=0.7, label=name)  # fmt: skip
    front = result.of("front")
    if front:
        xs, ys = _points(front, x, y)
        low = [max(v - (e.held_out[y].low or v), 0) for v, e in zip(ys, front, strict=True)]
        high = [max((e.held_out[y].high or v) - v, 0) for v, e in zip(ys, front, strict=True)]
        ax.errorbar(xs, ys, yerr=[low, high], fmt="-o", color=BLUE, ms=6, lw=1.6, elinewidth=1, capsize=2,
                    label="searched front, 95 % interval (held-out prompts)")  # fmt: skip
        best = result.best
        if best.role == "front":
            bx, by = best.held_out[x].value, best.held_out[y].value
            ax.plot([bx], [by], "o", ms=14, mfc="none", mec=BLUE, mew=2)
            ax.annotate(
                f"recommended: {best.held_out['speedup'].value:.2f}× faster,\n{best.held_out['psnr'].value:.1f} dB PSNR",
                (bx, by), xytext=(18, 26), textcoords="offset points", color=BLUE, fontsize=10,
                arrowprops={"arrowstyle": "-", "color": BLUE, "lw": 0.8},
            )  # fmt: skip
    values = [e.held_out[y].value for e in result.entries if e.role != "teacher"]
    if values and min(values) > 0 and max(values) / min(values) > 20:
        ax.set_yscale("log")
        ax.set_ylim(min(values) * 0.6, max(values) * 1.8)
    elif values:
        ax.set_ylim(min(0, *values), max(values) * 1.1)
    ax.set_xlabel(label(result, x))
    ax.set_ylabel(label(result, y))
    ax.set_title(f"{result.model}, {result.space}: searched front and published rules", loc="left", color=INK)
    ax.grid(color="#ECEFF1", lw=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=8.5, loc="best")
    return _png(figure)


def pareto_html(result: Result) -> str:
    """The same to click through, in one file that works offline."""
    import plotly.graph_objects as go

    x, y = axes_of(result)
    figure = go.Figure()
    figure.add_scatter(
        x=[p[x] for p in result.points], y=[p[y] for p in result.points], mode="markers", name="candidates (calibration)",
        marker={"size": 5, "color": "#C9CED6"}, text=[f"generation {p['generation']}" for p in result.points],
    )  # fmt: skip
    families: dict[str, list[Entry]] = {}
    for entry in result.of("preset"):
        families.setdefault(family(entry.name), []).append(entry)
    palette = (RED, GREEN, ORANGE, "#CC79A7", "#56B4E9", INK)
    symbols = ("square", "triangle-up", "diamond", "triangle-down", "cross", "x")
    for i, (name, entries) in enumerate(families.items()):
        xs, ys = _points(entries, x, y)
        figure.add_scatter(x=xs, y=ys, mode="markers", name=name, text=[_hover(e) for e in entries],
                           hoverinfo="text", marker={"size": 10, "color": palette[i % 6], "symbol": symbols[i % 6]})  # fmt: skip
    front = result.of("front")
    xs, ys = _points(front, x, y)
    figure.add_scatter(
        x=xs, y=ys, mode="lines+markers", name="searched front (held out)", text=[_hover(e) for e in front],
        hoverinfo="text", line={"color": BLUE}, marker={"size": 10, "color": BLUE},
        error_y={
            "type": "data", "symmetric": False, "thickness": 1,
            "array": [(e.held_out[y].high or v) - v for e, v in zip(front, ys, strict=True)],
            "arrayminus": [v - (e.held_out[y].low or v) for e, v in zip(front, ys, strict=True)],
        },
    )  # fmt: skip
    best = result.best
    if best.role == "front":
        figure.add_scatter(
            x=[best.held_out[x].value], y=[best.held_out[y].value], mode="markers", name="recommended",
            text=[_hover(best)], hoverinfo="text",
            marker={"size": 20, "color": "rgba(0,0,0,0)", "line": {"color": BLUE, "width": 3}},
        )  # fmt: skip
    positive = all(v > 0 for v in ys)
    figure.update_layout(
        title=f"{result.model}, {result.space}: searched front and published rules", template="plotly_white",
        xaxis_title=label(result, x), yaxis_title=label(result, y),
        yaxis_type="log" if positive and y == "drift" else "linear", hoverlabel={"align": "left"},
    )  # fmt: skip
    return figure.to_html(include_plotlyjs=True, full_html=True)


def heatmap_png(entry: Entry) -> bytes:
    """Steps across, nodes down, one colour per action; nodes of one component kind together."""
    names, tokens = entry.schedule.table()
    tree = entry.schedule.tree
    kinds = [ROOT_ROW] + [stack.name for stack in tree.contract]
    groups: dict[str, list[str]] = {}
    for name in names:
        kind = name.rpartition(":")[2] if ":" in name else ROOT_ROW if name == ROOT_ROW else ""
        if kind:
            groups.setdefault(kind, []).append(name)
    for extra in kinds[1:]:  # stacks and blocks only where they do something
        rows = [n for n in names if n.split(".")[0] == extra and ":" not in n]
        if any(t not in "C-" for n in rows for t in tokens[names.index(n)]):
            groups[extra] = rows
    order = [name for group in groups.values() for name in group]
    codes = list(ACTIONS)
    image = np.array([[codes.index(t[0]) for t in tokens[names.index(n)]] for n in order])
    steps = image.shape[1]
    figure = Figure(
        figsize=(max(5.5, 0.32 * steps + 2.2), 0.19 * len(order) + 1.7), dpi=110, layout="constrained"
    )
    ax = figure.add_subplot()
    ax.imshow(
        image,
        cmap=ListedColormap([c for _, c in ACTIONS.values()]),
        vmin=0,
        vmax=len(codes) - 1,
        aspect="auto",
    )
    ax.set_xticks(np.arange(-0.5, steps), minor=True)
    ax.set_yticks(np.arange(-0.5, len(order)), minor=True)
    ax.grid(which="minor", color="white", lw=0.8)
    ax.tick_params(which="both", length=0)
    ax.set_xticks(range(0, steps, max(1, steps // 10)))
    edge, ticks, texts = 0, [], []
    for kind, group in groups.items():
        ticks.append(edge + (len(group) - 1) / 2)
        texts.append(kind if len(group) == 1 else f"{kind}\n{len(group)} nodes")
        edge += len(group)
        ax.axhline(edge - 0.5, color=INK, lw=0.8)
    ax.set_yticks(ticks, texts)
    ax.set_xlabel("step")
    ax.set_title(f"{entry.name}{_scores(entry)}", loc="left", fontsize=10, color=INK)
    used = [codes[i] for i in np.unique(image)]
    ax.legend(
        handles=[Patch(facecolor=ACTIONS[c][1], edgecolor="#B0B5BB", label=ACTIONS[c][0]) for c in used],
        loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=9,
    )  # fmt: skip
    return _png(figure)


ROOT_ROW = "denoiser"


def grid_png(result: Result, entry: Entry) -> bytes:
    """The teacher's pictures, this schedule's, and four times their difference; same prompts and noise."""
    teacher = result.of("teacher")[0]
    if not entry.images or not teacher.images:
        raise ValueError(f"{entry.name!r} has no pictures to show")
    difference = [
        np.clip(4 * np.abs(a.astype(int) - b.astype(int)), 0, 255).astype(np.uint8)
        for a, b in zip(teacher.images, entry.images, strict=True)
    ]
    rows = [
        ("teacher", teacher.images),
        (entry.name.split(" · ")[0], entry.images),
        ("difference ×4", difference),
    ]
    return _rows(rows, result.shown, f"{entry.name}{_scores(entry)}")


def overview_png(result: Result) -> bytes:
    """The teacher and up to five schedules of the front, slowest first."""
    front = [e for e in result.of("front") if e.images][::-1]
    picked = (
        [front[i] for i in np.unique(np.linspace(0, len(front) - 1, min(5, len(front))).round().astype(int))]
        if front
        else []
    )
    rows = [("teacher", result.of("teacher")[0].images or [])]
    for e in picked:
        star = "\nrecommended" if e.name == result.recommended else ""
        rows.append((e.name.replace(" · ", "\n") + star, e.images or []))
    return _rows(rows, result.shown, f"{result.model}, {result.space}: same prompts, same noise")


def _rows(rows: Sequence[tuple[str, Sequence[np.ndarray]]], prompts: Sequence[str], title: str) -> bytes:
    columns = min(8, len(prompts))
    figure = Figure(figsize=(1.32 * columns + 1.2, 1.3 * len(rows) + 0.95), dpi=110, layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for i, (name, images) in enumerate(rows):
        for j in range(columns):
            ax = axes[i][j]
            ax.imshow(images[j], interpolation="nearest" if len(images[j]) < 128 else "antialiased")
            ax.set_xticks([])
            ax.set_yticks([])
            ax.spines[:].set_visible(False)
            if i == 0:
                ax.set_title(prompts[j].replace(", ", ",\n"), fontsize=7.5, color=INK)
        axes[i][0].set_ylabel(name, fontsize=9, rotation=0, ha="right", va="center", labelpad=8)
    figure.suptitle(title, fontsize=10, color=INK, x=0.01, ha="left")
    return _png(figure)


def _points(entries: Sequence[Entry], x: str, y: str) -> tuple[list[float], list[float]]:
    return [e.held_out[x].value for e in entries], [e.held_out[y].value for e in entries]


def _scores(entry: Entry) -> str:
    s: Any = entry.held_out
    parts = [
        f"PSNR {s['psnr'].value:.1f} dB" if "psnr" in s else "",
        f"MACs {s['macs'].value:.0%}" if "macs" in s else "",
    ]
    return "".join(f" · {part}" for part in parts if part)


def _hover(entry: Entry) -> str:
    lines = [f"<b>{entry.name}</b>"]
    for name, score in entry.held_out.items():
        interval = "" if score.low is None or score.high is None else f" [{score.low:.4g}, {score.high:.4g}]"
        lines.append(f"{name} {score.value:.4g}{interval}")
    return "<br>".join(lines)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
