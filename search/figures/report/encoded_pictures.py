"""The pictures of a report as data URLs, small enough for one page."""

import base64
import io
import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from PIL import Image

from search.figures.pictures import difference
from search.results.result import Entry, Result

WIDEST = 256  # pixels of a picture in the page
SMALLEST = 24
MOST = 2_200_000  # characters of all pictures together; plotly.js has 4.8 million
QUALITY = 90  # of WebP


def encode_pictures(
    result: Result, track: Callable[[Sequence[Entry]], Iterable[Entry]]
) -> list[dict[str, list[str]] | None]:
    """For every entry its pictures, four times their differences to the teacher's, and the three of its worst run.

    They are made smaller until all of them together have at most MOST characters.
    """
    side = min(WIDEST, max((image.shape[0] for e in result.entries for image in e.images or ()), default=WIDEST))
    while True:
        encoded = [_encoded(result, entry, side) for entry in track(result.entries)]
        size = sum(len(url) for pictures in encoded for urls in (pictures or {}).values() for url in urls)
        if size <= MOST or side <= SMALLEST:
            return encoded
        side = max(SMALLEST, int(side * min(0.9, math.sqrt(MOST / size))))


def _encoded(result: Result, entry: Entry, side: int) -> dict[str, list[str]] | None:
    if not entry.images:
        return None
    urls = {"own": [_webp(image, side) for image in entry.images]}
    teacher = result.of("teacher")[0].images
    if teacher and entry.role != "teacher":
        pairs = zip(teacher, entry.images, strict=True)
        urls["difference"] = [_webp(difference(a, b), side) for a, b in pairs]
    if entry.worst and entry.worst.images:
        before, after = entry.worst.images
        urls["worst"] = [_webp(image, side) for image in (before, after, difference(before, after))]
    return urls


def _webp(image: np.ndarray, side: int) -> str:
    """A data URL of a picture [H, W, 3], at most `side` pixels high."""
    picture, (height, width) = Image.fromarray(image), image.shape[:2]
    if height > side:
        picture = picture.resize((max(1, round(width * side / height)), side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=QUALITY, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
