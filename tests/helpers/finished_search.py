"""A finished search made by hand: real schedules of the tiny model, invented scores and pictures."""

from pathlib import Path

import numpy as np

from search import Schedule
from search.pareto.certificates import MissCount
from search.results.result import Entry, Result, WorstRun
from search.results.scores import Score
from search.testing.models import tiny_model

PROMPTS = ["red apple, 3d style", "blue boat, flat style", "red boat"]

CERTIFICATE = {
    "criterion": "psnr>=30", "share": 0.9, "confidence": 0.95, "runs": 32, "misses": 0, "prompts": 32, "noises": 1,
    "population": "a new prompt of this kind with new noise",
}  # fmt: skip


def made_result(folder: Path, name: str = "2026-01-02_030405_cache_tiny") -> Result:
    """Three schedules on the front, two presets and the teacher."""
    target = tiny_model().target
    rng = np.random.default_rng(0)
    pictures = [rng.integers(60, 200, (16, 16, 3)).astype(np.uint8) for _ in PROMPTS]

    def entry(title: str, role: str, actions: str, macs: float, drift: float) -> Entry:
        rules = [["transformer_blocks.*:*", actions]] if actions else []
        schedule = Schedule.from_dict(target.schedule({"plan": {"rules": rules}} if rules else {}))
        scores = {
            "drift": Score(drift, drift * 0.9, drift * 1.2),
            "psnr": Score(60 - 400 * drift, 58 - 400 * drift, 62 - 400 * drift),
            "ssim": Score(1 - drift, 1 - 1.1 * drift, 1 - 0.9 * drift),
            "macs": Score(macs),
            "latency": Score(100 * macs, 98 * macs, 103 * macs),
            "memory": Score(0.5),
            "speedup": Score(1 / macs, 0.98 / macs, 1.02 / macs),
        }
        shifted = [np.clip(p + int(200 * drift), 0, 255).astype(np.uint8) for p in pictures]
        calibration = {"drift": Score(drift * 0.8), "macs": Score(macs)}
        made = Entry(title, role, schedule, calibration, scores, shifted)
        if role != "teacher":
            made.worst = WorstRun("psnr", 50 - 400 * drift, PROMPTS[1], 10_001, [pictures[1], shifted[1]])
        if role == "front":
            made.tested = MissCount(32, 0, True) if drift < 0.1 else MissCount(9, 4, False)
        if made.tested and made.tested.certified:
            made.schedule = schedule.with_certificate(CERTIFICATE)
        return made

    entries = [
        entry("3.0× · drift 0.120", "front", "CRRRRC", 1 / 3, 0.12),
        entry("2.0× · drift 0.040", "front", "C(RC)*2 R", 0.5, 0.04),
        entry("1.2× · drift 0.010", "front", "CCCCRC", 5 / 6, 0.01),
        entry("FORA N=2", "preset", "(CR)*3", 0.5, 0.08),
        entry("TaylorSeer N=3 O=1", "preset", "CC F1 F1 C F1", 0.6, 0.09),
        entry("teacher", "teacher", "", 1.0, 0.0),
    ]
    (folder / name / "figures" / "grids").mkdir(parents=True)
    (folder / name / "config.yaml").write_text("seed: 0\n")
    result = Result(
        search_id=name,
        folder=folder / name,
        model="tiny",
        space="cache",
        objectives=["drift", "macs"],
        units={"drift": "ratio", "macs": "ratio", "psnr": "dB", "ssim": "", "latency": "ms", "memory": "MiB"},
        better={"drift": "lower", "psnr": "higher", "ssim": "higher", "macs": "lower", "speedup": "higher"},
        kinds={"drift": "quality", "psnr": "quality", "ssim": "quality"}
        | dict.fromkeys(("macs", "latency", "memory", "speedup"), "cost"),
        labels={
            "drift": "distance to the teacher's latents",
            "macs": "denoiser MACs",
            "psnr": "PSNR against the teacher's pictures",
        },
        shares=["macs"],
        entries=entries,
        history=[
            {
                "generation": g,
                "evaluations": 24 * (g + 1),
                "block_executions": 900 * (g + 1),
                "hypervolume": 0.7 + 0.02 * g,
            }
            for g in range(5)
        ],
        points=[
            {"macs": float(m), "drift": float(0.2 * (1 - m) ** 2 + 0.05 * rng.random()), "generation": 1, "digest": "x"}
            for m in rng.random(60)
        ],
        prompts={"calibration": ["red apple"], "held_out": PROMPTS},
        shown=PROMPTS,
        recommended="2.0× · drift 0.040",
        config={"model": {"name": "tiny", "steps": 6}, "seed": 0, "long": "x" * 900},
        environment={"torch": "2", "git": "abc"},
        certify={
            "criterion": "psnr>=30",
            "share": 0.9,
            "confidence": 0.95,
            "runs": 64,
            "new_runs": 90,
            "block_executions": 700,
        },
        attribution={
            "drift": 0.04,
            "macs": 0.5,
            "block_executions": 120,
            "parts": [
                {"name": "fitted solver", "drift": 0.09, "difference": 0.05, "low": 0.03, "high": 0.07, "macs": 0.5},
                {"name": "plan", "drift": 0.0, "difference": -0.04, "low": -0.05, "high": -0.03, "macs": 1.0},
            ],
        },
    )
    result.save()
    return result
