"""The published rules in docs/presets: each is representable, loads, and is still ours (tests/replay runs them)."""

from functools import cache

import numpy as np
import pytest
from hydra.utils import instantiate
from rich.console import Console

from benchmarks.presets import MORE, SPACES
from search.config.compose import compose_config, normalise_overrides
from search.config.settings import Config
from search.loop.search import Search
from search.schedule import Schedule
from search.spaces.joint import JointSpace
from tests.helpers.repository import ROOT

PRESETS = ROOT / "docs" / "presets"
FILES = sorted(PRESETS.glob("*/*.json"))


@cache
def config(model: str) -> Config:
    overrides = [f"+space=[{','.join(SPACES[model])}]", f"model={model}", *MORE.get(model, [])]
    small = [
        "tracking.enabled=false",
        "certify=off",
        "budget.evaluations=24",
        "initial=presets",
        "prompts.calibration_count=2",
    ]
    return Config.check(compose_config(normalise_overrides([*overrides, *small])))


@cache
def adapter(model: str):
    return instantiate(dict(config(model).model) | {"device": "cpu"})


def test_every_bundled_model_has_its_rules():
    assert {path.parent.name for path in FILES} == set(SPACES)
    assert all(len(list((PRESETS / model).glob("*.json"))) >= 12 for model in SPACES)


@pytest.mark.parametrize("file", FILES, ids=lambda f: f"{f.parent.name}/{f.stem}")
def test_a_rule_loads_and_says_what_it_is(file):
    schedule = Schedule.load(file)
    assert schedule.made["name"]
    assert Schedule.from_dict(schedule.to_dict()).digest == schedule.digest


@pytest.mark.parametrize("model", sorted(SPACES))
def test_rules_are_what_the_spaces_make_of_them_today(model):
    """But for those that are fitted to what was measured (SmoothCache's thresholds)."""
    space = JointSpace([instantiate(part) for part in config(model).space.values()])
    target = adapter(model).target
    made = {
        name: Schedule.from_dict(target.schedule(space.decode(row, target))).digest
        for name, row in space.presets(target).items()
    }
    kept = {s.made["name"]: s.digest for s in map(Schedule.load, sorted((PRESETS / model).glob("*.json")))}
    measured = {name for name in kept if name.startswith("SmoothCache")}
    assert {name: digest for name, digest in kept.items() if name not in measured} == made


@pytest.mark.slow
def test_a_searched_front_is_nowhere_behind_the_rules(tmp_path):
    """Weak dominance on the calibration prompts: for every rule something on the front costs and drifts no more."""
    search = Search(config("dit"), Console(quiet=True))
    search.prepare(tmp_path)
    search.loop()
    archive = np.array([entry["scores"] for entry in search.state.archive.values()])
    for name, row in search.state.presets.items():
        scores = search.evaluator.scorer.minimised(search.evaluator.values(search.candidates.plain_schedule(row)))
        assert (archive <= np.array(scores) * (1 + 1e-9)).all(axis=1).any(), name
