"""python -m benchmarks.experiments [NAME ...]: run the published searches at small scale, and write docs/seeds.md.

Every experiment is one command, `python -m search +experiment=NAME`; its run folder is kept in runs/. A row of the
table is written anew for each NAME (all of them without one), the others stay as they were measured
(docs/seeds.json).
"""

import argparse
import json
import subprocess
import sys
import textwrap
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from search.results.front import read_front
from search.results.result import first_of_each_kind

ROOT = Path(__file__).parent.parent
TABLE, PAGE = ROOT / "docs" / "seeds.json", ROOT / "docs" / "seeds.md"
SMALLER = ("prompts.calibration_count=4", "prompts.held_out_count=8", "tracking.enabled=false", "certify=off")
SHARES = (0.5, 0.33)  # of the teacher's cost, at which fronts are read off

# What the abstracts claim at their scale; none of it was reproduced at that scale.
CLAIMS = {
    "ecad": ("ECAD", "2506.15682", "PixArt-α: 2.58× instead of 2.35×, and 4.47 less COCO FID than the best before"),
    "ecad_working": ("ECAD, every child mutated", "2506.15682", "– (our variant)"),
    "fora": ("FORA", "2407.01425", "recomputing every N-th step; PixArt and DiT up to 8× faster, small loss at N=3"),
    "smoothcache": ("SmoothCache", "2411.10510", "8 to 71 % faster on DiT-XL, Open-Sora, Stable Audio"),
    "taylorseer": ("TaylorSeer", "2503.06923", "4.99× on FLUX, 5.00× on HunyuanVideo; DiT at 4.53× FID 3.41 lower"),
    "cg_taylor": ("CG-Taylor", "2508.02240", "3.17× on FLUX, 2.36× on DiT, 4.14× on Wan"),
    "teacache": ("TeaCache", "2411.19108", "FLUX about 2× at threshold 0.6; video up to 4.41×"),
    "fbcache": ("First Block Cache, DBCache", "", "FLUX.1-dev 1.80× at PSNR 33.8 dB, 2.47× at 31.8 dB (cache-dit)"),
    "autodiffusion": ("AutoDiffusion", "2309.10438", "ImageNet-64 at 4 steps: FID 17.86 instead of 138.66 (DDIM)"),
    "olss": ("OLSS", "2305.14677", "Stable Diffusion pictures within a second on an A100"),
    "s3": ("USF, S³", "2312.07243", "CIFAR-10: FID 2.69 at 10 NFE, 6.86 at 5; 2× on Stable Diffusion"),
    "cachequant": (
        "CacheQuant",
        "2503.01323",
        "5.18× faster and 4× smaller on Stable Diffusion, CLIP score 0.02 lower",
    ),
    "tstitch": ("T-Stitch", "2402.14167", "the first 40 % of DiT-XL's steps by a ten times faster DiT-S, no loss"),
    "teleport": ("Analytical teleportation", "2412.09726", "15 to 30 % of the steps skipped; CIFAR-10 FID 1.93"),
    "deepcache": ("DeepCache", "2312.00858", "2.3× on SD 1.5, CLIP score 0.05 lower; 4.1× on LDM-4-G, FID +0.22"),
    "faster_diffusion": ("Faster Diffusion", "2312.09608", "Stable Diffusion 41 % faster, DeepFloyd-IF 24 %"),
    "qdiffusion": ("Q-Diffusion", "2302.04304", "4-bit weights with FID at most 2.34 worse"),
}


@dataclass(frozen=True)
class Row:
    """What one run measured. `reached` are held-out drifts with intervals at no more than SHARES of the cost."""

    name: str
    model: str
    space: str
    cost: str
    evaluations: int
    block_executions: int
    seconds: float
    reached: list[list[float] | None]
    presets: list[list[float] | None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=sorted(CLAIMS))
    parser.add_argument("--runs", type=Path, default=ROOT / "runs")
    given = parser.parse_args()
    known = {row["name"]: row for row in json.loads(TABLE.read_text())} if TABLE.exists() else {}
    for name in given.names:
        known[name] = asdict(measure(name, given.runs))
        TABLE.write_text(json.dumps([known[n] for n in CLAIMS if n in known], indent=1) + "\n")
        PAGE.write_text(page([Row(**known[n]) for n in CLAIMS if n in known]), encoding="utf-8")


def measure(name: str, runs: Path) -> Row:
    """Run an experiment and read its front."""
    before = set(runs.glob("*/front.json"))
    began = time.monotonic()
    command = [sys.executable, "-m", "search", f"+experiment={name}", f"runs={runs}", *SMALLER]
    subprocess.run(command, cwd=ROOT, check=True)
    seconds = time.monotonic() - began
    (found,) = set(runs.glob("*/front.json")) - before
    data = read_front(found.parent)
    cost, _ = first_of_each_kind(data["objectives"], data["kinds"])
    teacher = next(e for e in data["entries"] if e["role"] == "teacher")["held_out"][cost]["value"]

    def best(role: str, share: float) -> list[float] | None:
        entries = [e["held_out"] for e in data["entries"] if e["role"] == role]
        cheap = [e for e in entries if e[cost]["value"] <= share * teacher * (1 + 1e-9)]
        drifts = min((e["drift"] for e in cheap), key=lambda d: d["value"], default=None)
        return drifts and [drifts["value"], drifts["low"], drifts["high"]]

    last = data["history"][-1]
    return Row(
        name,
        data["model"],
        data["space"],
        cost,
        int(last["evaluations"]),
        int(last["block_executions"]),
        round(seconds),
        [best("front", share) for share in SHARES],
        [best("preset", share) for share in SHARES],
    )


def page(rows: list[Row]) -> str:
    """The table: what the papers claim at their scale, and what was measured at ours."""
    about = (
        "Each row is one command, `python -m search +experiment=NAME`, on a bundled model of a few million parameters, "
        "here with 4 calibration and 8 held-out prompts, seed 0. `claim` is what the authors say at their scale: no "
        "claim was checked there, and "
        "figures of the two sides cannot be compared. Measured is the least drift (relative RMS distance of the final "
        "latents to the full run's, held-out prompts and noise, 95 % interval) at no more than a half and a third of "
        "the full cost; in brackets that of the best published rule of the same space, or of the plain sampler with "
        "fewer steps, at that cost. `–`: nothing so cheap was found or tried. With `refit: false` a schedule runs the "
        "pipeline's own solver, as published. "
        "`python -m benchmarks.experiments` writes this page."
    )
    lines = [
        "# Published searches, reproduced at small scale",
        "",
        textwrap.fill(about, 118, break_on_hyphens=False),
        "",
        "| work | claim | experiment | model, space | cost | drift at ½ | drift at ⅓ | evaluations, blocks |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        title, arxiv, claim = CLAIMS[row.name]
        work = f"[{title}](https://arxiv.org/abs/{arxiv})" if arxiv else title
        cells = [
            f"{_drift(found)} ({_drift(rule, short=True)})"
            for found, rule in zip(row.reached, row.presets, strict=True)
        ]
        lines.append(
            f"| {work} | {claim} | `{row.name}` | {row.model}, {row.space} | {row.cost} | {cells[0]} | {cells[1]} | "
            f"{row.evaluations}, {row.block_executions:,} |"
        )
    return "\n".join(lines) + "\n"


def _drift(found: list[float] | None, short: bool = False) -> str:
    if found is None:
        return "–"
    return f"{found[0]:.3f}" if short else f"{found[0]:.3f} [{found[1]:.3f}, {found[2]:.3f}]"


if __name__ == "__main__":
    main()
