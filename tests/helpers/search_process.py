"""Whole searches by what is typed: how they are started, waited for and read."""

import contextlib
import io
import json
import subprocess
import sys
import time
from pathlib import Path

from search.__main__ import main
from search.testing.models import tiny_folder
from tests.helpers.repository import ROOT
from tests.helpers.short_report import short_report


def command(runs: Path, *more: str) -> list[str]:
    """What starts a search on the tiny model that has a short report."""
    runs.parent.mkdir(parents=True, exist_ok=True)
    prompts = runs.parent / "prompts.txt"
    held_out = runs.parent / "held_out.txt"
    prompts.write_text("red apple\nblue boat\nred boat\n")
    held_out.write_text("blue apple\n3d boat\nflat apple\n")
    return [
        sys.executable,
        "-m",
        "tests.helpers.short_report",
        "search",
        "model=pixart",
        f"model.path={tiny_folder()}",
        "model.steps=6",
        "model.max_sequence_length=8",
        f"prompts.calibration={prompts}",
        f"prompts.held_out={held_out}",
        f"runs={runs}",
        "tracking.enabled=false",
        "compute.threads=1",
        "certify=off",
        *more,
    ]


def search(runs: Path, *more: str) -> subprocess.CompletedProcess:
    """A search in a process of its own."""
    return subprocess.run(command(runs, *more), capture_output=True, text=True, cwd=ROOT)


def search_here(runs: Path, *more: str) -> subprocess.CompletedProcess:
    """A search in this process, which has imported everything already."""
    typed, out, errors = command(runs, *more)[4:], io.StringIO(), io.StringIO()
    with short_report(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        code = main(typed)
    return subprocess.CompletedProcess(typed, code, out.getvalue(), errors.getvalue())


def folder(runs: Path) -> Path:
    return max(runs.glob("*/config.yaml"), key=lambda p: p.stat().st_mtime).parent


def front(runs: Path) -> list[tuple[str, float, float]]:
    """What must not depend on interruptions: digests and calibration scores of every evaluated candidate and front."""
    data = json.loads((folder(runs) / "front.json").read_text())
    entries = [
        (e["role"], e["calibration"]["drift"]["value"], e["calibration"]["macs"]["value"]) for e in data["entries"]
    ]
    points = [(p["digest"], p["drift"], p["macs"]) for p in data["points"]]
    history = [{k: v for k, v in h.items() if k != "seconds"} for h in data["history"]]
    return [entries, points, history]


def wait(until, seconds: float = 300) -> None:
    for _ in range(int(seconds * 20)):
        if until():
            return
        time.sleep(0.05)
    raise AssertionError("waited in vain")
