"""Denoisers of public checkpoints: what is seen and counted of them is what was worked out by hand, and on the page."""

import re

import pytest
import yaml

from search.config.settings import CONF
from tests.models.public_sizes import BYTES, DATA, PAGE, elements, measured, row

FAST, RULE = ("sana",), "|---|---|---|---|---|---|---|---|---|"
LINES = PAGE.read_text(encoding="utf-8").splitlines()
NAMES = [pytest.param(name, marks=[] if name in FAST else pytest.mark.slow) for name in DATA]


@pytest.mark.parametrize("name", NAMES)
def test_it_is_what_was_worked_out_by_hand(name):
    """The published size, the contract, MACs as linear layers by their shapes with both products of each attention."""
    spec, found = DATA[name], measured(name)
    published = spec["parameters"]
    digits = len(str(published).partition(".")[2])
    assert round(found.parameters / 1e9, digits) == published
    assert list(found.stacks) == list(spec["stacks"])
    for stack, expected in spec["stacks"].items():
        attention = sum(2 * queries * keys * width for queries, keys, width in expected["attention"])
        assert found.block_macs(stack) == found.by_shape[found.block(stack)] + attention
        assert found.values(stack) == {path: BYTES * elements(shape) for path, shape in expected["components"].items()}
    attention = sum(2 * queries * keys * width for queries, keys, width in spec.get("attention", []))
    assert found.costs.floor_macs == found.by_shape[""] + attention
    assert row(name) in LINES


def test_the_page_has_every_public_model_or_another_size_of_it():
    named = {name for line in LINES[LINES.index(RULE) :] for name in re.findall(r"`(\w+)`", line)}
    options = {path.stem: yaml.safe_load(path.read_text()) for path in (CONF / "model").glob("*.yaml")}
    public = {k for k, given in options.items() if "/" in str(given.get("path")) or given.get("defaults") == ["any"]}
    assert named <= public and public - named == {
        *(f"pixart_{kind}" for kind in ("alpha_512", "alpha_1024", "sigma_512", "sigma_1024", "sigma_2k")),
        *("sdxl_turbo", "lcm_dreamshaper"),
    }
