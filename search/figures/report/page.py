"""The report of a search as one page of HTML that asks nothing of the network: what it shows, put into report.html.

Names, prompts and everything else that is not ours reaches the page as JSON only and is shown as text; besides, the
page's own policy lets no script run but the two whose digests it names.
"""

import base64
import hashlib
import html
import io
import json
import math
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from search.figures.charts import axis_label, axis_limits, is_log, preset_families
from search.figures.heatmap import ACTIONS, BRANCHES, FULL, Layout, row_label
from search.figures.pictures import difference
from search.results.result import Entry, Result
from search.results.scores import Score
from search.results.usage import usage_snippet
from search.schedule.plan.tokens import OWN

WIDEST = 256  # pixels of a picture in the page
SMALLEST = 24
MOST = 2_200_000  # characters of all pictures together; plotly.js has 4.8 million
QUALITY = 90  # of WebP
Track = Callable[[Sequence[Entry]], Iterable[Entry]]


def report_page(result: Result, track: Track = iter) -> str:
    """The whole page; `track` is told of the entries whose pictures are being encoded."""
    from plotly.offline import get_plotlyjs

    data = json.dumps(report_content(result, track), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    texts = get_plotlyjs(), _file("report_plan.js") + _file("report.js")
    plotly, script = (text.replace("\r\n", "\n").strip() for text in texts)  # as a browser digests them
    parts = {
        "title": html.escape(f"{result.model}, {result.space}: schedules"),
        "policy": html.escape(_policy(plotly, script)),
        "style": _file("report.css"),
        "plotly": plotly,
        "data": data.replace("&", r"\u0026").replace("<", r"\u003c").replace(">", r"\u003e"),  # no tag can end it
        "script": script,
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _file("report.html"))


def report_content(result: Result, track: Track = iter) -> dict[str, Any]:
    """All that the page shows, as JSON without numbers that are not finite."""
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
        "visible": result.no_visible_loss,
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
    """What was searched and what it gives, a sentence each."""
    counts = {split: len(prompts) for split, prompts in result.prompts.items()}
    front, presets, best = result.of("front"), result.of("preset"), result.best
    told = [
        f"{_count(len(result.points), f'{result.space} schedule')} for {result.model} ran on "
        f"{_count(counts.get('calibration', 0), 'calibration prompt')}.",
        f"The {len(front)} best of them and {_count(len(presets), 'published rule')} were scored again on "
        f"{_count(counts.get('held_out', 0), 'held-out prompt')} and other noise: those are the scores on this page.",
    ]
    if best.role != "front":
        return [*told, "No schedule of this search is better than the teacher itself; a larger budget may find some."]
    s = best.held_out
    gives = [f"makes a picture {s['speedup'].value:.2f} times as fast as the teacher"] if "speedup" in s else []
    gives += [f"computes {100 * s['macs'].value:.0f} % of its MACs"] if "macs" in s else []
    told.append(f"Recommended is {best.name}: it {' and '.join(gives) or 'is on the front'}.")
    if "psnr" in s:
        told.append(
            f"Against the teacher's pictures its own have a PSNR of {s['psnr'].value:.1f} dB{_interval(s['psnr'])}; "
            f"differences are usually seen below {result.no_visible_loss:g} dB."
        )
    return told


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


# What is known of each schedule.


def _entries(result: Result, ids: Sequence[str], track: Track) -> list[dict[str, Any]]:
    family = {id(entry): i for i, (*_, group) in enumerate(preset_families(result)) for entry in group}
    pictures = _pictures(result, track)
    return [
        {
            "id": ids[i],
            "name": entry.name,
            "role": entry.role,
            "family": family.get(id(entry)),
            "digest": entry.schedule.digest,
            "held_out": {name: _score(s) for name, s in entry.held_out.items()},
            "calibration": {name: _score(s) for name, s in entry.calibration.items()},
            "gap": {name: _score(s) for name, s in entry.gap.items()},
            "change": {name: _score(s) for name, s in entry.change.items()},
            "behind": entry.behind,
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
    """Short digests, numbered where schedules are equal: what stands behind # in a link."""
    seen: dict[str, int] = {}
    found = []
    for entry in result.entries:
        short = entry.schedule.digest.removeprefix("sha256:")[:12]
        seen[short] = seen.get(short, 0) + 1
        found.append(short if seen[short] == 1 else f"{short}-{seen[short]}")
    return found


def _score(score: Score) -> list[float | None]:
    return [_number(score.value), _number(score.low), _number(score.high)]


def _number(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value


def _interval(score: Score) -> str:
    return "" if score.low is None or score.high is None else f" (95 %: {score.low:.1f} to {score.high:.1f})"


def _plan(entry: Entry) -> dict[str, Any]:
    """The heat-map: rows by label, equal neighbours as one row with a count; and the same as text."""
    schedule, layout = entry.schedule, Layout.of(entry.schedule)
    steps = len(next(iter(layout.actions.values())))
    cells = "".join(layout.actions.values())
    share = {word: cells.count(letter) / len(cells) for letter, (word, _) in ACTIONS.items()}
    shares = [f"{word} {100 * part:.0f} %" for word, part in share.items() if part]
    found: dict[str, Any] = {
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
        found["guidance"] = {
            "branch": guidance.branch or "C" * steps,
            "scale": [None if value == guidance.call else value for value in scale],
            "call": guidance.call,
        }
    return found


def _runs(rows: Sequence[tuple[str, float | None]]) -> list[tuple[int, str, float | None]]:
    """Rows with how often each stands below itself."""
    return [(len(list(same)), *row) for row, same in groupby(rows)]


def _schedule_facts(entry: Entry) -> list[tuple[str, str]]:
    """What else a schedule decides, besides its plan."""
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
    return [*facts, ("digest", schedule.digest)]


def _export(result: Result, entry: Entry) -> str:
    """What to type for this schedule's file."""
    pick = [] if entry is result.best else [f"pick={entry.name}"]
    runs = str(result.config.get("runs", "runs"))
    where = [] if runs == "runs" else [f"runs={runs}"]
    return shlex.join(["python", "-m", "search.export", f"run={result.search_id}", *pick, "out=schedule.json", *where])


# Pictures.


def _pictures(result: Result, track: Track) -> list[dict[str, list[str]] | None]:
    """For every entry its pictures and four times their difference to the teacher's, as small as they have to be."""
    side = min(WIDEST, max((image.shape[0] for e in result.entries for image in e.images or ()), default=WIDEST))
    while True:
        found = [_encoded(result, entry, side) for entry in track(result.entries)]
        size = sum(len(url) for pictures in found for urls in (pictures or {}).values() for url in urls)
        if size <= MOST or side <= SMALLEST:
            return found
        side = max(SMALLEST, int(side * min(0.9, math.sqrt(MOST / size))))


def _encoded(result: Result, entry: Entry, side: int) -> dict[str, list[str]] | None:
    if not entry.images:
        return None
    found = {"own": [_webp(image, side) for image in entry.images]}
    teacher = result.of("teacher")[0].images
    if teacher and entry.role != "teacher":
        pairs = zip(teacher, entry.images, strict=True)
        found["difference"] = [_webp(difference(a, b), side) for a, b in pairs]
    return found


def _webp(image: np.ndarray, side: int) -> str:
    """A data URL of a picture [H, W, 3], at most `side` pixels high."""
    picture, (height, width) = Image.fromarray(image), image.shape[:2]
    if height > side:
        picture = picture.resize((max(1, round(width * side / height)), side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=QUALITY, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


# What is known of the search.


def _about(result: Result, name: str) -> dict[str, Any]:
    """How a score is called and drawn."""
    known = [e.held_out[name] for e in result.entries if name in e.held_out]
    complete = len(known) == len(result.entries)
    from_zero = result.kinds.get(name) == "cost" and result.better.get(name) != "higher"
    log = complete and not from_zero and is_log(result, name)
    low, high = (
        axis_limits(result, name, log) if complete and not from_zero else (0.0, max(_top(s) for s in known) * 1.04)
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
    """The presets' families in the order of `family`, then the marks of the front and the teacher."""
    return [{"name": name, "color": color, "mark": mark} for name, color, mark, _ in preset_families(result)]


def _points(result: Result) -> dict[str, list[Any]]:
    """Candidates by column: scores on the calibration prompts, and the generation."""
    names = [name for name in (*result.objectives, "generation") if all(name in p for p in result.points)]
    return {name: [_short(p[name]) for p in result.points] for name in names} if result.points else {}


def _short(value: float) -> float | None:
    return None if _number(value) is None else float(f"{value:.5g}")


def _facts(result: Result) -> dict[str, list[tuple[str, str]]]:
    """What the search cost, and on what it ran."""
    last: Mapping[str, float] = result.history[-1] if result.history else {}
    cost = [("candidates", f"{len(result.points):,}")]
    words = {"evaluations": "evaluations", "block_executions": "block executions", "seconds": "seconds of search"}
    cost += [(text, f"{last[name]:,.0f}") for name, text in words.items() if name in last]
    if last.get("unshared"):
        saved = 100 * (1 - last["block_executions"] / last["unshared"])
        cost.append(("saved by runs that begin alike", f"{saved:.0f} % of {last['unshared']:,.0f} block executions"))
    environment = [(k.replace("_", " "), str(v)) for k, v in result.environment.items() if v]
    return {"cost": cost, "environment": [("search", result.search_id), *environment]}


# The file.


def _policy(*scripts: str) -> str:
    """Content security policy: these scripts, style and pictures that are in the page, and nothing else."""
    digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )


def _file(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")
