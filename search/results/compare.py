"""Statements about schedules that hold when prompts are resampled: means, intervals, differences, dominance."""

from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np

from search.objectives.base import Cost, Objective, Quality, Reward
from search.pareto.intervals import (
    bootstrap_interval,
    difference_interval,
    paired_difference_interval,
    surely_dominated,
)
from search.results.result import Entry
from search.results.scores import Score

Values = Mapping[str, Sequence[float]]


def summarise_scores(values: Values, objectives: Mapping[str, Objective]) -> dict[str, Score]:
    """Scores by name: costs as they are, means over prompts with intervals; objectives without values are left out."""
    scores = {}
    for name, objective in objectives.items():
        if name in values and isinstance(objective, Cost):
            scores[name] = Score(float(values[name][0]))
        elif name in values:
            scores[name] = mean_interval(values[name])
    return scores


def mean_interval(values: Sequence[float]) -> Score:
    """The mean over prompts with its 95 % bootstrap interval, the same for the same values."""
    sample = np.asarray(values, dtype=float)
    return Score(float(sample.mean()), *bootstrap_interval(sample, _rng()))


def held_out_gaps(held_out: Values, calibration: Values, objectives: Mapping[str, Objective]) -> dict[str, Score]:
    """Held-out minus calibration of every quality that both have; the intervals resample both."""
    found = {}
    for name, objective in objectives.items():
        if isinstance(objective, Quality) and name in held_out and name in calibration:
            a, b = np.asarray(held_out[name], dtype=float), np.asarray(calibration[name], dtype=float)
            found[name] = Score(float(a.mean() - b.mean()), *difference_interval(a, b, _rng()))
    return found


def mark_dominated(entries: Sequence[Entry], objectives: Mapping[str, Objective], searched: Sequence[str]) -> None:
    """Fill in how rewards differ from the teacher's, and who on the front is surely dominated in what was searched."""
    teacher = next(entry for entry in entries if entry.role == "teacher")
    for entry in entries:
        rewards = [name for name in entry.samples if isinstance(objectives.get(name), Reward)]
        entry.change = {name: paired_difference(entry, teacher, name) for name in rewards if entry is not teacher}
    front = [entry for entry in entries if entry.role == "front"]
    if not front:
        return
    signs = {name: 1 if objectives[name].better == "lower" else -1 for name in searched}
    costs = [name for name in searched if isinstance(objectives[name], Cost)]
    qualities = [name for name in searched if name not in costs]
    count = max(len(values) for entry in front for values in entry.samples.values())
    values = np.array([[signs[q] * np.array(entry.samples[q]) for q in qualities] for entry in front])
    prices = np.array([[signs[c] * entry.samples[c][0] for c in costs] for entry in front])
    shape = len(front), len(qualities), count
    found = surely_dominated(values.reshape(shape), prices.reshape(len(front), -1), _rng())
    for entry, by in zip(front, found, strict=True):
        entry.behind = "" if by is None else front[by].name


def paired_difference(a: Entry, b: Entry, name: str) -> Score:
    """Difference a - b on held-out prompts: paired if both have values by prompt, else from the intervals."""
    if name in a.samples and name in b.samples:
        x, y = np.asarray(a.samples[name], dtype=float), np.asarray(b.samples[name], dtype=float)
        return Score(float((x - y).mean()), *paired_difference_interval(x, y, _rng()))
    one, two = a.held_out[name], b.held_out[name]
    return Score(one.value - two.value, _low(one) - _high(two), _high(one) - _low(two))


def recommended_name(entries: Sequence[Entry]) -> str:
    """The name of the fastest entry of the front that is certified; where none is, of the highest PSNR.

    Entries that are surely dominated are left out, unless no others are certified. Of entries that do not surely differ
    in PSNR it is the fastest; of entries whose measured times overlap it is the one with the fewest MACs.
    """
    front = [entry for entry in entries if entry.role == "front"]
    certified = [entry for entry in front if entry.tested and entry.tested.certified]
    good = [entry for entry in certified if not entry.behind] or certified
    others = [entry for entry in front if not entry.behind]
    if not good and not others:
        return "teacher"
    if not good:
        best = max(others, key=lambda entry: entry.held_out["psnr"].value)
        good = [e for e in others if e is best or not _is_positive(paired_difference(best, e, "psnr"))]
    fastest = max(good, key=lambda entry: entry.held_out["speedup"].value)
    close = [e for e in good if _high(e.held_out["speedup"]) >= _low(fastest.held_out["speedup"])]
    return min(close, key=lambda e: (e.held_out["macs"].value, -e.held_out["speedup"].value)).name


def reward_warnings(
    entries: Sequence[Entry], objectives: Mapping[str, Objective], searched: Sequence[str], unused: Sequence[str]
) -> list[str]:
    """Warnings about schedules that surely beat the teacher in a searched quality and lose in an unused reward."""
    teacher = next(entry for entry in entries if entry.role == "teacher")
    lines = []
    for entry in entries:
        if entry.role != "front":
            continue
        up = [n for n in searched if isinstance(objectives[n], Quality) and _better(entry, teacher, n, objectives[n])]
        down = [n for n in unused if isinstance(objectives[n], Reward) and _better(teacher, entry, n, objectives[n])]
        if up and down:
            differences = [f"{name} {paired_difference(entry, teacher, name).value:+.3g}" for name in (up[0], down[0])]
            lines.append(
                f"{entry.name} has a better {up[0]} than the teacher, but {down[0]}, which was not searched, has "
                f"fallen ({', '.join(differences)}; both surely): the score may have improved and not the pictures"
            )
    return lines


def tuned_reward_warning(
    tuned_on: Collection[str], objectives: Mapping[str, Objective], searched: Iterable[str], reported: Iterable[str]
) -> str:
    """Says that only what the model was tuned on is searched; "" where another quality is."""
    qualities = [name for name in searched if isinstance(objectives[name], Quality)]
    if not qualities or not set(qualities) <= set(tuned_on):
        return ""
    guards = [name for name in reported if isinstance(objectives[name], Quality) and name not in tuned_on]
    judge = f"judge by {' and '.join(guards)} of guard=" if guards else "name one that was not, guard=[ssim]"
    return (
        f"the model was tuned on {' and '.join(qualities)}, and no other quality is searched: the score may improve "
        f"and not the pictures; search another beside, objective=[{qualities[0]},drift,macs], and {judge}"
    )


def _better(a: Entry, b: Entry, name: str, objective: Objective) -> bool:
    """Whether a is surely better than b."""
    if name not in a.samples or name not in b.samples:
        return False
    return _is_positive(
        paired_difference(a, b, name) if objective.better == "higher" else paired_difference(b, a, name)
    )


def _is_positive(difference: Score) -> bool:
    return _low(difference) > 0


def _low(score: Score) -> float:
    return score.value if score.low is None else score.low


def _high(score: Score) -> float:
    return score.value if score.high is None else score.high


def _rng() -> np.random.Generator:
    """A generator with a fixed seed, so that a result is the same whenever it is computed."""
    return np.random.default_rng(0)
