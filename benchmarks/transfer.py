"""python -m benchmarks.transfer: a schedule at another step count, size, guidance scale, batch, and under a LoRA.

Every cell is drift against the full run of that case on held-out prompts, and the share of its MACs. Cells are kept in
--cells, one JSON line each, so that a second call goes on; --write puts the table into docs/transfer.md.
"""

import argparse
import json
import re
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from rich.console import Console

from search.config.compose import compose_config, normalise_overrides
from search.config.load import held_out_prompts, model_from_config, prompts_from_config
from search.config.prompts import read_prompts
from search.config.settings import Config
from search.loop.run import run
from search.loop.search import Search
from search.models.base import to_schedule
from search.models.lora import merge
from search.models.training.lora import train
from search.objectives.drift import Drift
from search.objectives.psnr import Psnr
from search.results.compare import mean_interval
from search.results.front import read_front
from search.results.pick import pick_entries
from search.schedule import Schedule
from search.spaces.cache import CacheSpace
from search.validate.criteria import criteria_for, decide
from search.validate.repair import RepairSearch, carry_over
from search.validate.verifier import Verifier

DOCS = Path(__file__).parent.parent / "docs"
PICTURES, RUNS = 16, 52
MARKS = {True: "✓", False: "✗", None: "?"}
STEPS = (15, 25, 30, 50)
NATIVE = (30,)  # steps at which a search of its own is compared


@dataclass(frozen=True)
class Case:
    """Where a schedule goes: what is typed, and whether the LoRA of this benchmark is merged before."""

    name: str
    overrides: tuple[str, ...] = ()
    batch: int = 16
    lora: bool = False


OTHERS = (
    Case("20 steps", ()),
    Case("LoRA", (), 16, True),
    Case("guidance scale 2", ("model.guidance_scale=2",)),
    Case("guidance scale 7", ("model.guidance_scale=7",)),
    Case("batch of 1", (), 1),
    Case("batch of 4", (), 4),
    Case("96 × 96 pixels", ("++model.height=96", "++model.width=96"), 8),
)
# model: its schedules by name (of docs/presets, or "searched"), and the cases beside the step counts
MODELS = {
    "pixart": (["searched"], OTHERS),
    "dit": (["smoothcache-alpha-0.1"], OTHERS[:1]),
    "flux": (["teacache-0.25"], OTHERS[:1]),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--runs", type=Path, default=Path("runs/transfer"))
    parser.add_argument("--cells", type=Path, default=Path("runs/transfer/cells.jsonl"))
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    given.cells.parent.mkdir(parents=True, exist_ok=True)
    known = [json.loads(line) for line in given.cells.read_text().splitlines()] if given.cells.is_file() else []
    for name in given.models:
        names, others = MODELS[name]
        cases = [*others[:1], *(Case(f"{t} steps", (f"model.steps={t}",)) for t in STEPS), *others[1:]]
        for chosen in names:
            for case in cases:
                if not any((c["model"], c["schedule"], c["case"]) == (name, chosen, case.name) for c in known):
                    cell: dict[str, Any] = {"model": name, "schedule": chosen, "case": case.name}
                    cell |= measure(name, chosen, case, given.runs)
                    known.append(cell)
                    with given.cells.open("a") as file:
                        file.write(json.dumps(cell, ensure_ascii=False) + "\n")
                    print(json.dumps(cell, ensure_ascii=False), flush=True)
    if given.write:
        path = DOCS / "transfer.md"
        text = re.sub(
            r"(<!-- table -->\n).*?(<!-- end -->)",
            lambda m: m[1] + table(known) + m[2],
            path.read_text(encoding="utf-8"),
            flags=re.S,
        )
        path.write_text(text, encoding="utf-8")


def measure(name: str, chosen: str, case: Case, runs: Path) -> dict[str, Any]:
    """Every variant's drift, interval, share of MACs and verdict."""
    preset = DOCS / "presets" / name / f"{chosen}.json"
    source = searched(name, 20, runs) if chosen == "searched" else Schedule.load(preset)
    config = Config.check(compose_config(normalise_overrides([f"model={name}", *case.overrides])))
    model = model_from_config(config)
    found: dict[str, Any] = {}
    if case.lora:
        found["lora"] = changed(model, config)
    calibration = prompts_from_config(config.prompts)[0]
    verifier = Verifier(model, held_out_prompts(config)[:PICTURES], batch=case.batch, keep=True)
    source = claimed(source, name)
    limits = criteria_for(source)
    moved = carry_over(source, model)
    repair = RepairSearch(source, moved, model, calibration, limits, True, 0)

    def cell(schedule: Schedule) -> dict[str, Any]:
        score = mean_interval(verifier.measure(schedule, PICTURES)["drift"])
        drift, macs = [score.value, score.low, score.high], repair.share(schedule)
        return {"drift": drift, "macs": macs, "passed": decide(limits[0], score)}

    found |= {"limit": limits[0].limit, "carried": cell(moved.schedule)}
    if repair.fits:
        found["refitted"] = cell(repair.fitted([]))
    last = found.get("refitted", found["carried"])
    if not last["passed"]:
        for steps in repair.repairs(RUNS, lambda text: None):
            if steps:
                found["repaired"] = cell(repair.fitted(steps)) | {"steps": sorted(steps), "runs": repair.runs}
                last = found["repaired"]
                if last["passed"]:
                    break
    rules = published(model)
    nearest = min(rules, key=lambda rule: abs(repair.share(rules[rule]) - last["macs"]))
    found["published"] = {"name": nearest} | cell(rules[nearest])
    steps = model.target.steps
    own = native(name, steps, runs, last["macs"]) if chosen == "searched" and steps in NATIVE else None
    if own is not None:
        found["native"] = cell(own)
    return found


def published(model: Any) -> dict[str, Schedule]:
    """FORA at every N that this step count has."""
    space, target = CacheSpace(), model.target
    rows = space.presets(target)
    return {n: to_schedule(model, space.decode(x, target)) for n, x in rows.items() if n.startswith("FORA")}


def searched(name: str, steps: int, runs: Path) -> Schedule:
    """The recommended schedule of a quick search, which is run where there is none yet."""
    for path in sorted(runs.glob("*/config.yaml")):
        model = Config.load(path).model
        if (model["name"], model["steps"]) == (name, steps) and (path.parent / "front.json").is_file():
            folder = path.parent
            break
    else:
        folder = run(_quick(name, steps, runs)).folder
    return Schedule.load(folder / pick_entries(read_front(folder), "recommended")[0]["file"])


def native(name: str, steps: int, runs: Path, most: float) -> Schedule | None:
    """Of a quick search at this step count: the least drift on calibration prompts within a share of the MACs."""
    folder = runs / f"native_{name}_{steps}"
    folder.mkdir(parents=True, exist_ok=True)
    search = Search(_quick(name, steps, runs), Console(stderr=True))
    search.prepare(folder)
    search.loop()
    known = [entry for entry in search.state.archive.values() if entry["values"]["macs"][0] <= most * 1.02]
    best = min(known, key=lambda entry: np.mean(entry["values"]["drift"]), default=None)
    return search.candidates.schedule_of(best) if best else None


def _quick(name: str, steps: int, runs: Path) -> Config:
    overrides = ["+space=cache", f"model={name}", f"model.steps={steps}", "budget=quick", "tracking.enabled=false"]
    return Config.check(compose_config(normalise_overrides([*overrides, f"runs={runs}"])))


def claimed(source: Schedule, name: str) -> Schedule:
    """With the drift that it has at home: of its file, or measured on 20 steps."""
    if "drift" in source.scores:
        return source
    config = Config.check(compose_config(normalise_overrides([f"model={name}"])))
    verifier = Verifier(model_from_config(config), held_out_prompts(config)[:PICTURES], batch=PICTURES)
    score = mean_interval(verifier.measure(source, PICTURES)["drift"])
    return source.with_scores({"drift": {"value": score.value, "ci": [score.low, score.high]}})


def changed(model: Any, config: Config) -> dict[str, float]:
    """Train a LoRA, merge it, and how far it moves the full run's latents and pictures."""
    prompts = held_out_prompts(config)[:8]
    inputs = prompts, range(8)
    before = model.sample(*inputs)
    with TemporaryDirectory() as folder:
        merge(model, train(model, read_prompts(config.prompts.calibration)[:16], folder))
    after = model.sample(*inputs)
    pictures = Psnr()(model.decode(after), model.decode(before))
    return {"drift": float(Drift()(after, before).mean()), "psnr": float(pictures.mean())}


def words(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return "–"
    value, low, high = cell["drift"]
    name = f"{cell['name']}: " if "name" in cell else ""
    steps = f", {len(cell['steps'])} steps computed" if "steps" in cell else ""
    name = "refused: " if "steps" in cell and not cell["passed"] else name
    return f"{name}{value:.3f} [{low:.3f}, {high:.3f}] at {cell['macs']:.0%} {MARKS[cell['passed']]}{steps}"


def table(cells: list[dict[str, Any]]) -> str:
    """A table for each schedule."""
    parts = []
    for key in dict.fromkeys((c["model"], c["schedule"]) for c in cells):
        rows = [c for c in cells if (c["model"], c["schedule"]) == key]
        limit = rows[0]["limit"]
        parts.append(
            f"`{key[0]}`, {key[1]}; allowed is a drift of {limit:.3f}.\n\n"
            "| case | by the rule alone | and fitted anew | and repaired | FORA, nearest cost | searched there |\n"
            "|---|---|---|---|---|---|\n"
            + "".join(
                f"| {c['case']} | "
                + " | ".join(words(c.get(k)) for k in ("carried", "refitted", "repaired", "published", "native"))
                + " |\n"
                for c in rows
            )
        )
    return "\n" + "\n".join(parts) + "\n"


if __name__ == "__main__":
    main()
