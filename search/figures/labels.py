"""Labels next to the points of a chart, each at the nearest place where it covers nothing."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox

HALO = [withStroke(linewidth=2.5, foreground="white")]
ANGLES = (0, 45, -45, 90, -90, 135, -135, 180)  # degrees, the better places first
Point = tuple[float, float]


class LabelPlacer:
    """Writes labels on axes whose limits are set; stores the boxes that are taken, in pixels."""

    def __init__(self, ax: Axes) -> None:
        self.ax = ax
        self.renderer = FigureCanvasAgg(ax.figure).get_renderer()
        self.frame = ax.get_window_extent(self.renderer)
        self.taken: list[Bbox] = []

    def keep_free(self, points: Iterable[Point], half: float = 5) -> None:
        """Nothing is written within `half` pixels of these points of the data."""
        for x, y in self.ax.transData.transform(np.array([*points], dtype=float).reshape(-1, 2)):
            self.taken.append(Bbox([(x - half, y - half), (x + half, y + half)]))

    def keep_line_free(self, points: Sequence[Point]) -> None:
        """Nothing is written on the line through these points of the data."""
        corners = self.ax.transData.transform(np.array(points, dtype=float).reshape(-1, 2))
        for a, b in zip(corners, corners[1:], strict=False):
            dots = max(2, int(np.hypot(*(b - a)) / 8)) if np.isfinite([a, b]).all() else 0
            for x, y in (a + (b - a) * share for share in np.linspace(0, 1, dots)):
                self.taken.append(Bbox([(x - 2, y - 2), (x + 2, y + 2)]))

    def write(
        self, point: Point, text: str, reach: Sequence[float], line: bool = False, required: bool = True, **style: Any
    ) -> None:
        """Write `text` at one of the distances `reach` (in points) from a point, with a line to it if asked for.

        If every place covers something, a `required` label goes where it covers the least; others are left out.
        """
        least, best = np.inf, None
        for distance in reach:
            for angle in ANGLES:
                annotation = self._annotate(point, text, distance, np.radians(angle), line, style)
                box = self._text_box(annotation)
                inside = (
                    self.frame.x0 < box.x0
                    and box.x1 < self.frame.x1
                    and self.frame.y0 < box.y0 < box.y1 < self.frame.y1
                )
                covered = sum(_overlap(box, taken) for taken in self.taken) + (0 if inside else 1e6)
                if covered < least:
                    least, best, annotation = covered, annotation, best
                if annotation is not None:
                    annotation.remove()
                if least == 0:
                    break
            if least == 0:
                break
        if best is not None and least > 0 and not required:
            best.remove()
        elif best is not None:
            self.taken.append(self._text_box(best))

    def _annotate(
        self, point: Point, text: str, distance: float, angle: float, line: bool, style: dict[str, Any]
    ) -> Any:
        dx, dy = distance * np.cos(angle), distance * np.sin(angle)
        arrow = {"arrowstyle": "-", "color": style["color"], "lw": 1, "shrinkB": 9} if line else None
        return self.ax.annotate(
            text,
            point,
            (dx, dy),
            textcoords="offset points",
            ha="left" if dx > 1 else "right" if dx < -1 else "center",
            va="bottom" if dy > 1 else "top" if dy < -1 else "center",
            arrowprops=arrow,
            path_effects=HALO,
            zorder=6,
            **style,
        )

    def _text_box(self, annotation: Annotation) -> Bbox:
        """The box of an annotation's text, without its line."""
        annotation.update_positions(self.renderer)
        return Text.get_window_extent(annotation, self.renderer)


def _overlap(a: Bbox, b: Bbox) -> float:
    width, height = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
    return float(max(width, 0) * max(height, 0))
