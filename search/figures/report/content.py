"""What the report of a search shows, as JSON."""

import math
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from search.figures.charts import axis_label, axis_limits, is_log, preset_families
from search.figures.heatmap import ACTIONS, BRANCHES, FULL, Layout, row_label
from search.figures.report.encoded_pictures import encode_pictures
from search.results.attribution import recommendation_sentences
from search.results.certificates import criterion_limit, tested_words, worst_words
from search.results.result import Entry, Result
from search.results.scores import Score
from search.results.usage import usage_snippet
from search.schedule.plan.tokens import OWN

Track = Callable[[Sequence[Entry]], Iterable[Entry]]


def report_content(result: Result, track: Track = iter) -> dict[str, Any]:
    """All that the page shows, as data for JSON; numbers that are not finite are None."""
    names = list(dict.fromkeys(name for entry in result.entries for name in entry.held_out))
    costs = [name for name in names if result.kinds.get(name) == "cost"]
    x, y = result.axes
    ids = _ids(result)
    return {
        "title": f"{result.model}, {result.space}",
        "search": result.search_id,
        "summary": summary_sentences(result),
        "notes": [*([result.stopped] if result.stopped else []), *result.notes],
        "guard": result.guard,
        "scores": {name: _about(result, name) for name in names},
        "costs": costs,
        "qualities": [name for name in names if name not in costs],
        "objectives": [name for name in result.objectives if name in names],
        "x": x,
        "y": y,
        "families": _families(result),
        "entries": _entries(result, ids, track),
        "recommended": ids[result.number(result.best)],
        "limits": {name: limit for name in names if (limit := criterion_limit(result, name)) is not None},
        "points": _points(result),
        "history": [{k: _number(v) for k, v in row.items()} for row in result.history],
        "prompts": result.prompts,
        "shown": result.shown,
        "actions": ACTIONS,
        "branches": BRANCHES,
        "full": FULL,
        "own": OWN,
        "facts": _facts(result),
    }


def summary_sentences(result: Result) -> list[str]:
    """What was searched and what it gives, in sentences."""
    counts = {split: len(prompts) for split, prompts in result.prompts.items()}
    front, best = result.of("front"), result.best
    presets = [entry for entry in result.of("preset") if not entry.is_fitted_preset]
    sentences = [
        f"{_count(len(result.points), f'{result.space} schedule')} for {result.model} ran on "
        f"{_count(counts.get('calibration', 0), 'calibration prompt')}.",
        f"The {len(front)} best of them and {_count(len(presets), 'published rule')} were scored again on "
        f"{_count(counts.get('held_out', 0), 'held-out prompt')} and other noise: those are the scores on this page.",
    ]
    if best.role != "front":
        return [
            *sentences,
            "No schedule of this search is better than the teacher itself; a larger budget may find some.",
        ]
    s = best.held_out
    gives = [f"makes a picture {s['speedup'].value:.2f} times as fast as the teacher"] if "speedup" in s else []
    gives += [f"computes {100 * s['macs'].value:.0f} % of its MACs"] if "macs" in s else []
    sentences.append(f"Recommended is {best.name}: it {' and '.join(gives) or 'is on the front'}.")
    if "psnr" in s:
        sentences.append(
            f"Against the teacher's pictures its own have a PSNR of {s['psnr'].value:.1f} dB{_interval(s['psnr'])} on "
            "average."
        )
    return sentences + recommendation_sentences(result)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _entries(result: Result, ids: Sequence[str], track: Track) -> list[dict[str, Any]]:
    family = {id(entry): i for i, (*_, group) in enumerate(preset_families(result)) for entry in group}
    pictures = encode_pictures(result, track)
    return [
        {
            "id": ids[i],
            "name": entry.name,
            "role": entry.role,
            "family": family.get(id(entry)),
            "hollow": entry.is_fitted_preset,
            "digest": entry.schedule.digest,
            "held_out": {name: _score(s) for name, s in entry.held_out.items()},
            "calibration": {name: _score(s) for name, s in entry.calibration.items()},
            "gap": {name: _score(s) for name, s in entry.gap.items()},
            "change": {name: _score(s) for name, s in entry.change.items()},
            "behind": entry.behind,
            "worst": worst_words(entry, result.units.get(entry.worst.name, "")) if entry.worst else "",
            "plan": _plan(entry),
            "facts": _schedule_facts(entry),
            "apply": "\n".join(
                usage_snippet("schedule.json", (entry.schedule.to_dict().get("models") or {}).get("names"))
            ),
            "export": _export(result, entry),
            "pictures": pictures[i],
        }
        for i, entry in enumerate(result.entries)
    ]


def _ids(result: Result) -> list[str]:
    """Short digests for links, numbered if schedules are equal."""
    counts: dict[str, int] = {}
    ids = []
    for entry in result.entries:
        short = entry.schedule.digest.removeprefix("sha256:")[:12]
        counts[short] = counts.get(short, 0) + 1
        ids.append(short if counts[short] == 1 else f"{short}-{counts[short]}")
    return ids


def _score(score: Score) -> list[float | None]:
    return [_number(score.value), _number(score.low), _number(score.high)]


def _number(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value


def _interval(score: Score) -> str:
    return "" if score.low is None or score.high is None else f" (95 %: {score.low:.1f} to {score.high:.1f})"


def _plan(entry: Entry) -> dict[str, Any]:
    """The heat map: rows by label, equal neighbours as one row with a count; and the same as text."""
    schedule, layout = entry.schedule, Layout.of(entry.schedule)
    steps = len(next(iter(layout.actions.values())))
    cells = "".join(layout.actions.values())
    share = {word: cells.count(letter) / len(cells) for letter, (word, _) in ACTIONS.items()}
    shares = [f"{word} {100 * part:.0f} %" for word, part in share.items() if part]
    plan: dict[str, Any] = {
        "steps": steps,
        "groups": [
            [row_label(kind, len(names)), _runs([(layout.actions[n], layout.bits.get(n)) for n in names])]
            for kind, names in layout.groups.items()
        ],
        "timesteps": (schedule.sampler or {}).get("timesteps"),
        "at": schedule.plan.at if set(schedule.plan.at) - {OWN} else "",
        "words": f"Heat-map of the plan, {len(layout.actions)} nodes by {steps} steps: {', '.join(shares)}.",
        "notation": "" if schedule.plan.is_off else str(schedule.plan).replace(" | ", " |\n"),
    }
    guidance = schedule.guidance
    if guidance is not None and not guidance.is_off:
        scale = guidance.scale or [guidance.call] * steps
        plan["guidance"] = {
            "branch": guidance.branch or "C" * steps,
            "scale": [None if value == guidance.call else value for value in scale],
            "call": guidance.call,
        }
    return plan


def _runs(rows: Sequence[tuple[str, float | None]]) -> list[tuple[int, str, float | None]]:
    """Rows [(actions, bits)] with the number of equal neighbours of each."""
    return [(len(list(same)), *row) for row, same in groupby(rows)]


def _schedule_facts(entry: Entry) -> list[tuple[str, str]]:
    """What a schedule decides besides its plan."""
    schedule = entry.schedule
    sampler = schedule.sampler or {}
    facts = [("steps", str(schedule.steps or "any number"))]
    if "class" in sampler:
        facts.append(("solver", sampler["class"] + (", fitted table" if "coefficients" in sampler else "")))
    if (guidance := schedule.guidance) is not None and guidance.scale:
        runs = [(value, len(list(same))) for value, same in groupby(guidance.scale)]
        facts.append(("guidance scale", ", ".join(f"{value:.3g} for {_count(n, 'step')}" for value, n in runs)))
    if schedule.bits:
        weights = [form.weight for form in schedule.bits.values() if form.weight]
        mean = f", {np.mean(weights):.1f} bits on average" if weights else ""
        facts.append(("rounded layers", f"{len(schedule.bits)}{mean}"))
    if schedule.corrections:
        facts.append(("corrected nodes", str(len(schedule.corrections))))
    if schedule.gates:
        facts.append(("gates", " | ".join(gate.text(schedule.tree) for gate in schedule.gates)))
    if schedule.models:
        names = [f"{letter}: {part.name or part.class_name}" for letter, part in schedule.models.names.items()]
        facts.append(("other denoisers", ", ".join(names)))
    if words := tested_words(entry):
        facts.append(("certificate", words))
    return [*facts, ("digest", schedule.digest)]


def _export(result: Result, entry: Entry) -> str:
    """The command that writes this schedule's file."""
    pick = [] if entry is result.best else [f"pick={entry.name}"]
    runs = str(result.config.get("runs", "runs"))
    folder = [] if runs == "runs" else [f"runs={runs}"]
    return shlex.join(["python", "-m", "search.export", f"run={result.search_id}", *pick, "out=schedule.json", *folder])


def _about(result: Result, name: str) -> dict[str, Any]:
    """How a score is named and drawn."""
    scores = [e.held_out[name] for e in result.entries if name in e.held_out]
    complete = len(scores) == len(result.entries)
    from_zero = result.kinds.get(name) == "cost" and result.better.get(name) != "higher"
    log = complete and not from_zero and is_log(result, name)
    low, high = (
        axis_limits(result, name, log) if complete and not from_zero else (0.0, max(_top(s) for s in scores) * 1.04)
    )
    unit = result.units.get(name, "")
    return {
        "label": axis_label(result, name),
        "better": result.better.get(name, ""),
        "unit": "" if unit == "ratio" else unit,
        "share": name in result.shares,
        "log": log,
        "range": [low, high or 1.0],
    }


def _top(score: Score) -> float:
    return max((v for v in (score.value, score.high) if v is not None and math.isfinite(v)), default=0.0)


def _families(result: Result) -> list[dict[str, Any]]:
    """The families of presets with their colours and markers, in the order of the entries' `family`."""
    return [{"name": name, "color": color, "mark": marker} for name, color, marker, _ in preset_families(result)]


def _points(result: Result) -> dict[str, list[Any]]:
    """Columns of candidates: scores on the calibration prompts, and the generation."""
    names = [name for name in (*result.objectives, "generation") if all(name in p for p in result.points)]
    return {name: [_five_digits(p[name]) for p in result.points] for name in names} if result.points else {}


def _five_digits(value: float) -> float | None:
    return None if _number(value) is None else float(f"{value:.5g}")


def _facts(result: Result) -> dict[str, list[tuple[str, str]]]:
    """What the search cost, and the environment that it ran in."""
    last: Mapping[str, float] = result.history[-1] if result.history else {}
    cost = [("candidates", f"{len(result.points):,}")]
    words = {"evaluations": "evaluations", "block_executions": "block executions", "seconds": "seconds of search"}
    cost += [(text, f"{last[name]:,.0f}") for name, text in words.items() if name in last]
    if last.get("unshared"):
        saved = 100 * (1 - last["block_executions"] / last["unshared"])
        cost.append(("saved by runs that begin alike", f"{saved:.0f} % of {last['unshared']:,.0f} block executions"))
    environment = [(k.replace("_", " "), str(v)) for k, v in result.environment.items() if v]
    return {"cost": cost, "environment": [("search", result.search_id), *environment]}
