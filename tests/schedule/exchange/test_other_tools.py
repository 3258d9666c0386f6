"""The real tools on the bundled models: the same layers run, and the same latents come out."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.helpers.repository import ROOT

pytestmark = pytest.mark.slow


def peer(tool: str, *arguments: str) -> dict[str, dict[str, Any]]:
    """What tests/helpers/other_tools.py prints, in a process of its own."""
    pytest.importorskip({"cache_dit": "cache_dit", "smoothcache": "SmoothCache", "deepcache": "DeepCache"}[tool])
    done = subprocess.run(
        [sys.executable, "-m", "tests.helpers.other_tools", tool, *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def is_the_same(found: dict[str, Any]) -> None:
    assert found["equal"] and found["repeats"] and found["same_layers"], found
    assert found["drift"] > 0.01, found  # something was reused


@pytest.mark.parametrize(("model", "first", "last"), [("pixart", 1, 2), ("dit", 3, 0), ("flux", 1, 1)])
def test_cache_dit_runs_an_exported_configuration_to_the_bit(model, first, last):
    found = peer("cache_dit", model, str(first), str(last))
    is_the_same(found["exact"])
    # A lossy file: cache-dit computes the first block and adds a residual where the schedule reuses the output.
    lossy = found["lossy"]
    assert lossy["their_layers"] > lossy["layers"] and 0.05 < lossy["difference"] < 0.25, lossy
    # A gate: of one picture both decide alike; of the two halves of guidance one takes the mean, the other the larger.
    if model == "flux":
        is_the_same(found["gate"])
    if model == "dit":
        assert not found["gate"]["same_layers"] and not found["gate"]["equal"], found["gate"]


@pytest.mark.parametrize("model", ["dit", "pixart"])
def test_smoothcache_runs_its_own_and_an_exported_file_to_the_bit(model):
    found = peer("smoothcache", model)
    for kind in ("own", "exported"):
        is_the_same({**found[kind], "repeats": True})
        # its helper counts calls and never begins again: without disable() the next picture is all computed
        assert not found[kind]["repeats"]


def test_deepcache_runs_as_its_settings_read_here_do():
    found = peer("deepcache", "0", "1", "2", "3", "6")
    for branch, one in found.items():
        assert one["equal"] and one["repeats"] and one["drift"] > 0.005, (branch, one)
        # its third branch of a block with two layers runs a downsampler whose output nobody reads
        assert one["same_layers"] == (branch != "2"), (branch, one)
