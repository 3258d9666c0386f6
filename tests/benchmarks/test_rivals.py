"""The caches of other tools are switched on for a run, and leave the model as it was."""

import pytest
import torch

from benchmarks.rival_caches import forget, rivals
from benchmarks.rivals import Measured, compare_at
from search.testing.models import tiny_model


@pytest.mark.slow
def test_each_of_diffusers_caches_changes_the_run_and_leaves_no_trace():
    pytest.importorskip("cache_dit")
    model, tried = tiny_model(), set()

    def run():
        forget(model)
        return model.sample([model.example] * 2, [0, 1])

    bare = run()
    for rival in [*rivals(model)][::-1]:  # the boldest setting of each tool
        kind = rival.name.split()[0]
        if kind in tried:
            continue
        tried.add(kind)
        with rival.switch(model):
            changed = run()
            assert torch.equal(run(), changed), rival.name  # nothing is remembered from run to run
        assert not torch.equal(changed, bare) and torch.equal(run(), bare), rival.name
    assert {"First", "MagCache", "TaylorSeer", "PAB", "FasterCache", "DBCache", "SCM"} <= tried


def test_ours_is_chosen_by_calibration_and_the_others_by_what_is_reported():
    def row(name, tool, macs, drift, calibration=float("nan")):
        return Measured(name, tool, macs, [drift] * 3, calibration)

    rows = [
        row("a", "ours", 0.3, 0.2, calibration=0.1),
        row("b", "ours", 0.3, 0.1, calibration=0.2),
        row("dear", "ours", 0.6, 0.0, calibration=0.0),
        row("rule", "rule", 0.3, 0.5),
        row("tool", "tool", 0.34, 0.4),
        row("dear tool", "tool", 0.4, 0.1),
        row("rule, fitted", "rule, fitted", 0.3, 0.3),
    ]
    chosen = {side: found.name for side, found in compare_at(rows, 0.34).items()}
    assert chosen == {"ours": "a", "best of others": "tool", "best tool": "tool", "best rule, fitted": "rule, fitted"}
    assert compare_at(rows[3:], 0.34) is None
