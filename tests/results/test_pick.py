"""Conditions on the scores of a front."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.results.pick import Condition, entries_within, held_out_score, parse_conditions, pick_entries

UNITS = {"latency": "ms", "memory": "MiB", "macs": "ratio", "drift": "ratio", "psnr": "dB", "speedup": "×", "ssim": ""}
KINDS = {name: "quality" if name in ("drift", "psnr", "ssim") else "cost" for name in UNITS}


def row(latency=400.0, memory=100.0, macs=0.5, drift=0.05, psnr=30.0, speedup=2.0, ssim=0.9):
    scores = dict(
        latency=latency, memory=memory, macs=macs, drift=drift, psnr=psnr, speedup=speedup, ssim=ssim
    )  # fmt: skip
    return {"name": f"{speedup}×", "role": "front", "held_out": {k: {"value": v} for k, v in scores.items()}}


ROWS = [row(), row(latency=200.0, memory=900.0, drift=0.1, speedup=4.0), row(latency=900.0, drift=0.01, speedup=1.1)]


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ("latency<=0.4s", [("latency", "<=", 400.0)]),
        ("latency<=400ms and memory<=10GB", [("latency", "<=", 400.0), ("memory", "<=", 10e9 / 2**20)]),
        ("memory<1GiB, macs<=45%", [("memory", "<", 1024.0), ("macs", "<=", 0.45)]),
        ("speedup>=2x and psnr>30 dB", [("speedup", ">=", 2.0), ("psnr", ">", 30.0)]),
        ("drift<=5e-2", [("drift", "<=", 0.05)]),
    ],
)
def test_units(text, limits):
    found = parse_conditions(text, ROWS, UNITS)
    assert [(c.name, c.sign, pytest.approx(c.limit)) for c in found] == limits


def test_limits_on_cost_give_the_truest_and_limits_on_quality_the_fastest():
    front = {"entries": ROWS, "units": UNITS, "recommended": "2.0×", "objectives": ["drift", "macs"], "kinds": KINDS}
    assert [r["name"] for r in pick_entries(front, "latency<=400ms")] == ["2.0×", "4.0×"]
    assert [r["name"] for r in pick_entries(front, "drift<=0.1")] == ["4.0×", "2.0×", "1.1×"]
    assert pick_entries(front, "latency<=400ms and memory<=500MB")[0]["name"] == "2.0×"


def test_whether_it_holds_for_sure():
    limit = Condition("latency", "<=", 400.0)
    kept = row()
    assert limit.holds(kept) and limit.surely(kept)
    kept["held_out"]["latency"] |= {"low": 390.0, "high": 401.0}
    assert limit.holds(kept) and not limit.surely(kept)


@given(st.floats(1e-6, 1e6))
def test_what_it_proposes_is_within_reach(value):
    rows = [row(drift=value, speedup=value)]
    for name, sign in (("speedup", ">="), ("drift", "<=")):
        with pytest.raises(ValueError, match="no schedule of this front") as error:
            entries_within(rows, [Condition(name, sign, 1e9 if sign == ">=" else -1.0)], KINDS)
        proposed = re.search(r'ask for "(.*?)"', str(error.value))[1]
        assert entries_within(rows, parse_conditions(proposed, rows, UNITS), KINDS) == rows


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("fast", "'fast' is not understood; use recommended, knee, all"),
        ("beauty>=1", "there is no score 'beauty'; there are latency, memory"),
        ("drift<=1-2", "'1-2' is not a number"),
        ("latency<=4GB", "latency is not in 'GB'; give a number, or one with ms, s, us"),
        ("ssim>=90%", "ssim is not in '%'; it has no unit: give a number"),
        ("latency<=1ms", 'latency<=1; the best is 200: ask for "latency<=200"'),
    ],
)
def test_mistakes_say_what_to_type(text, told):
    with pytest.raises(ValueError, match=re.escape(told)):
        entries_within(ROWS, parse_conditions(text, ROWS, UNITS), KINDS)


def test_scores_are_those_of_held_out_prompts():
    assert held_out_score(ROWS[1], "drift") == 0.1
