"""python -m benchmarks.presets MODEL: every published rule as a schedule file, and beside the searched front.

Searches all spaces of a bundled model together, from its published rules; writes the rules to docs/presets/MODEL,
the plot to docs/images/presets_MODEL.png, and the figures to docs/presets/MODEL/README.md. Rules run as published
(no fitted solver); drift is measured on calibration prompts and on held-out ones, both with 95 % intervals.
"""

import argparse
import textwrap
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib
import numpy as np
from rich.console import Console

from search.config.compose import compose_config, normalise_overrides
from search.config.load import HELD_OUT_SEED
from search.config.settings import Config
from search.evaluate.evaluator import Evaluator
from search.loop.search import Search
from search.objectives.drift import Drift
from search.objectives.macs import Macs
from search.pareto.domination import non_dominated
from search.pareto.intervals import paired_difference_interval
from search.results.folder import slug
from search.schedule import Schedule

matplotlib.use("Agg")
import matplotlib.pyplot as plt

DOCS = Path(__file__).parent.parent / "docs"
SPACES = {
    "pixart": ["timesteps", "cache", "guidance", "gates", "stitch"],
    "dit": ["timesteps", "cache", "guidance", "gates"],
    "sd": ["timesteps", "cache", "depth", "guidance"],
    "flux": ["timesteps", "cache", "gates"],
}
NO_SCALES = "space.guidance.scales=[]"  # a gene less per step to measure
MORE = {"pixart": ["model.small=pixart_small", NO_SCALES], "dit": [NO_SCALES], "sd": [NO_SCALES]}


@dataclass(frozen=True)
class Point:
    """A schedule's share of the teacher's MACs, and its drift per prompt on both splits."""

    name: str
    macs: float
    calibration: np.ndarray
    held_out: np.ndarray


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=sorted(SPACES))
    parser.add_argument("--evaluations", type=int, default=240)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    spaces = ",".join(SPACES[given.model])
    overrides = [f"+space=[{spaces}]", f"model={given.model}", *MORE.get(given.model, [])]
    overrides += [
        f"budget.evaluations={given.evaluations}",
        f"seed={given.seed}",
        "tracking.enabled=false",
        "certify=off",
    ]
    search = Search(Config.check(compose_config(normalise_overrides(overrides))), Console())
    with TemporaryDirectory() as folder:
        search.prepare(Path(folder))
        search.loop()
        rules = {name: search.candidates.plain_schedule(row) for name, row in search.state.presets.items()}
        front, presets = points(search, rules)
    folder = DOCS / "presets" / given.model
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.json"):
        old.unlink()
    for name, schedule in rules.items():
        schedule.with_made({"name": name, "call": dict(search.model.arguments)}).save(folder / f"{slug(name)}.json")
    plot(given.model, front, presets, DOCS / "images" / f"presets_{given.model}.png")
    (folder / "README.md").write_text(report(given.model, search, front, presets), encoding="utf-8")


def points(search: Search, rules: dict[str, Schedule]) -> tuple[list[Point], list[Point]]:
    """The front on the calibration prompts, and the rules."""
    config = search.config
    seeds = [HELD_OUT_SEED + config.prompts.seed + i for i in range(len(search.held_out))]
    objectives = {"drift": Drift(), "macs": Macs()}
    held_out = Evaluator(search.model, search.held_out, seeds, objectives, search.state.costs, search.memo)

    def point(name: str, schedule: Schedule) -> Point:
        known, other = search.evaluator.values(schedule), held_out.values(schedule)
        return Point(name, known["macs"][0], np.array(known["drift"]), np.array(other["drift"]))

    archive = list(search.state.archive.values())
    kept = non_dominated(np.array([entry["scores"] for entry in archive]))
    found = [point("", search.candidates.schedule_of(entry)) for entry, good in zip(archive, kept, strict=True) if good]
    return sorted(found, key=lambda p: p.macs), [point(name, schedule) for name, schedule in rules.items()]


def behind(front: list[Point], rule: Point) -> tuple[bool, bool, bool]:
    """Whether the front is at least as good at no more MACs: on calibration prompts, on held-out ones, and surely so
    there (the paired interval of the difference lies above 0)."""
    rng = np.random.default_rng(0)
    cheaper = [p for p in front if p.macs <= rule.macs * (1 + 1e-9)]
    best = min(cheaper, key=lambda p: p.calibration.mean(), default=None)
    if best is None:
        return False, False, False
    low, _ = paired_difference_interval(rule.held_out, best.held_out, rng)
    known = best.calibration.mean() <= rule.calibration.mean() * (1 + 1e-9)
    return bool(known), bool(best.held_out.mean() <= rule.held_out.mean()), low > 0


def report(model: str, search: Search, front: list[Point], presets: list[Point]) -> str:
    """The page of a model: how many rules the front beats, and every rule's figures."""
    verdicts = [behind(front, rule) for rule in presets]
    known, held, surely = (sum(v[i] for v in verdicts) for i in range(3))
    summary = (
        f"`python -m benchmarks.presets {model}`: {len(presets)} published rules as schedule files, run as published, "
        f"and the front of {len(search.state.archive)} schedules that a search of {', '.join(SPACES[model])} has "
        "tried. Compared is the schedule of the front with the least drift on calibration prompts at no more MACs than "
        f"the rule. The front is at least as good as **{known} of {len(presets)}** rules on the calibration prompts "
        f"(it is searched from them), as **{held}** on held-out prompts and noise, for {surely} of them surely (paired "
        "95 % intervals)."
    )
    lines = [
        f"# Published rules on {model}",
        "",
        textwrap.fill(summary, 118, break_on_hyphens=False),
        "",
        f"![Drift over MACs](../../images/presets_{model}.png)",
        "",
        "| rule | MACs | drift, calibration | drift, held out | front at no more MACs, held out |",
        "|---|---|---|---|---|",
    ]
    for rule, (_, _, sure) in sorted(zip(presets, verdicts, strict=True), key=lambda pair: pair[0].macs):
        cheaper = [p for p in front if p.macs <= rule.macs * (1 + 1e-9)]
        best = min(cheaper, key=lambda p: p.calibration.mean(), default=None)
        other = "–" if best is None else f"{best.held_out.mean():.3f}{' *' if sure else ''}"
        lines.append(
            f"| [{rule.name}]({slug(rule.name)}.json) | {rule.macs:.2f} | {rule.calibration.mean():.3f} | "
            f"{rule.held_out.mean():.3f} | {other} |"
        )
    lines += [
        "",
        "\\* surely less than the rule's. Drift: relative RMS distance of the final latents to the teacher's.",
    ]
    return "\n".join(lines) + "\n"


def plot(model: str, front: list[Point], presets: list[Point], out: Path) -> None:
    """Drift on held-out prompts over MACs."""
    figure, axes = plt.subplots(figsize=(9, 5.5), layout="constrained")
    families: dict[str, list[Point]] = {}
    for rule in presets:
        families.setdefault(rule.name.split()[0].rstrip(","), []).append(rule)
    markers = "os^vD<>pPX*h"
    colours = plt.get_cmap("tab20").colors
    for i, (family, rules) in enumerate(sorted(families.items())):
        style = {"marker": markers[i % len(markers)], "color": colours[i % 20], "s": 34, "label": family}
        axes.scatter([r.macs for r in rules], [r.held_out.mean() for r in rules], zorder=3, **style)
    shown = [p for p in front if p.macs < 0.999]
    axes.plot(
        [p.macs for p in shown], [p.held_out.mean() for p in shown], color="black", lw=1.8, label="searched front"
    )
    axes.set_yscale("log")
    axes.set_ylim(bottom=5e-4)  # rules that save nothing drift by rounding alone
    axes.set_xlabel("MACs, share of the teacher's")
    axes.set_ylabel("drift on held-out prompts")
    axes.set_title(f"{model}: published rules and the searched front")
    axes.grid(alpha=0.25)
    figure.legend(*axes.get_legend_handles_labels(), fontsize=8, loc="outside right upper")
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    main()
