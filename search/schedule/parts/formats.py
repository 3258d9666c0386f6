"""Number formats by name, adapted to the size of a layer, and packed sizes."""

import math
from collections.abc import Mapping

from search.schedule.parts.bits import FormatPart

# w: weight bits, g: inputs per scale (without: a whole row), a: activation bits, d: dynamic, its range that of each
# token (of a convolution: of each picture), s: static, its range calibrated, t: static, a range for each timestep.
FORMATS: Mapping[str, FormatPart] = {
    "w8": FormatPart(weight=8),
    "w8a8d": FormatPart(weight=8, activation=8),
    "w8a8s": FormatPart(weight=8, activation=8, static=True),
    "w8a8t": FormatPart(weight=8, activation=8, static=True, per_step=True),
    "w6": FormatPart(weight=6),
    "w5": FormatPart(weight=5),
    "w4": FormatPart(weight=4),
    "w4g128": FormatPart(weight=4, group=128),
    "w4a8d": FormatPart(weight=4, group=128, activation=8),
    "w4a8s": FormatPart(weight=4, activation=8, static=True),
    "w4a8t": FormatPart(weight=4, activation=8, static=True, per_step=True),
    "w4a6d": FormatPart(weight=4, group=128, activation=6),
    "w4a4d": FormatPart(weight=4, group=64, activation=4),
    "w4a4s": FormatPart(weight=4, activation=4, static=True),
    "w4a4t": FormatPart(weight=4, activation=4, static=True, per_step=True),
    "w3g128": FormatPart(weight=3, group=128),
    "w3a8d": FormatPart(weight=3, group=128, activation=8),
    "w2g64": FormatPart(weight=2, group=64),
    "elided": FormatPart(elided=True),
}
MIN_GROUP = 16  # smaller groups would be mostly scales


def formats_that_fit(name: str, inputs: int, split: int | None = None) -> tuple[str, FormatPart]:
    """A format of the table for a layer with so many inputs, or channels before a split: its id and itself.

    Its group divides the inputs.
    """
    form = FORMATS[name]
    if split and not form.elided:
        form = form.model_copy(update={"split": split})
    common = math.gcd(inputs, split or 0)
    if form.group and common % form.group:
        best = max(g for g in range(1, min(form.group, common) + 1) if common % g == 0)
        form = form.model_copy(update={"group": best if best >= min(MIN_GROUP, inputs) else None})
    return format_id(form), form


def format_id(form: FormatPart) -> str:
    """The id in the table, or one of the same pattern: `w4g64a8d`; with its split, `w4a8s/640`."""
    unsplit, seam = form.model_copy(update={"split": None}), f"/{form.split}" if form.split else ""
    for name, table_form in FORMATS.items():
        if table_form == unsplit:
            return name + seam
    group = f"g{form.group}" if form.group else ""
    kind = "t" if form.per_step else "s" if form.static else "d"
    activation = f"a{form.activation}{kind}" if form.activation else ""
    return f"w{form.weight}{group}{activation}{seam}"


def packed_bytes(form: FormatPart, outputs: int, inputs: int) -> int:
    """Nominal bytes of a weight: its bits, and per group a 16-bit scale and, below 8 bits, a 16-bit zero point."""
    assert form.weight is not None
    groups = outputs * (inputs // form.group if form.group else 2 if form.split else 1)
    return -(-outputs * inputs * form.weight // 8) + groups * (2 if form.weight == 8 else 4)
