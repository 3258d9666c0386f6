"""Every YAML fits the class it names, what ships is complete, and limits are told."""

import copy
import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest
import yaml

from search.config.compose import compose_config, normalise_overrides
from search.config.hints import closest_name_hint
from search.config.prompts import read_prompts
from search.config.settings import CONF, Config, all_keys

PARTS = sorted(p for g in ("model", "space", "engine", "objective") for p in (CONF / g).glob("*.yaml"))


@pytest.fixture(scope="module")
def defaults() -> dict[str, Any]:
    return compose_config(normalise_overrides([]))


def changed(raw: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    raw = copy.deepcopy(raw)
    *path, last = key.split(".")
    node = raw
    for part in path:
        node = node[part]
    node[last] = value
    return raw


def inherits_any(given: dict[str, Any]) -> bool:
    return given.get("defaults") == ["any"]


@pytest.mark.parametrize("path", PARTS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_yaml_fits_the_signature_of_its_class(path: Path) -> None:
    given = yaml.safe_load(path.read_text())
    if inherits_any(given):
        given = yaml.safe_load((CONF / "model" / "any.yaml").read_text()) | given
    module, _, name = given.pop("_target_").rpartition(".")
    cls = getattr(importlib.import_module(module), name)
    given.pop("defaults", None)
    first = ["start"] if path.parent.name == "engine" else []
    inspect.signature(cls).bind(*first, **given)


@pytest.mark.parametrize("path", PARTS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_spaces_and_objectives_have_a_place_of_their_own(path: Path) -> None:
    group = path.parent.name
    header = f"# @package {group}.{path.stem}"
    assert (path.read_text().splitlines()[0] == header) == (group in ("space", "objective"))


@pytest.mark.parametrize("group", ["model", "engine", "prompts", "budget", "compute"])
def test_every_option_composes_and_passes_the_check(group: str) -> None:
    for path in (CONF / group).glob("*.yaml"):
        if not inherits_any(yaml.safe_load(path.read_text())):
            Config.check(compose_config(normalise_overrides([f"{group}={path.stem}"])))


def test_options_that_inherit_from_any_pass_the_check() -> None:
    """One is composed; for the others that would be the same again."""
    base = compose_config(normalise_overrides(["model=any"]))
    options = {path.stem: yaml.safe_load(path.read_text()) for path in (CONF / "model").glob("*.yaml")}
    raw = {}
    for name, given in options.items():
        if inherits_any(given):
            given.pop("defaults")
            raw[name] = base | {"model": base["model"] | given}
            assert Config.check(raw[name]).model["name"] == name
    assert raw["ltx25"] == compose_config(normalise_overrides(["model=ltx25"]))


def test_defaults_are_the_promised_ones(defaults: dict[str, Any]) -> None:
    config = Config.check(defaults)
    assert list(config.space) == ["cache"]
    assert list(config.objective) == ["drift", "macs"]
    assert (config.model["name"], config.model["steps"], config.budget.evaluations) == ("pixart", 20, 300)
    assert config.prompts.calibration == "emoji_calibration.txt"


def test_public_models_choose_general_prompts_and_the_user_may_disagree() -> None:
    public = compose_config(normalise_overrides(["model=pixart_sigma_1024"]))
    assert public["prompts"]["calibration"] == "general_calibration.txt"
    assert "prompts" not in public["model"]
    assert (public["model"]["path"], public["model"]["dtype"]) == (
        "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS",
        "float16",
    )
    mine = compose_config(
        normalise_overrides(["model=pixart_sigma_1024", "prompts=emoji", "prompts.calibration=mine.txt"])
    )
    assert (mine["prompts"]["calibration"], mine["prompts"]["held_out"]) == ("mine.txt", "emoji_held_out.txt")


@pytest.mark.parametrize("kind", ["emoji", "general"])
def test_bundled_prompts_are_enough_and_disjoint(kind: str) -> None:
    calibration, held_out = read_prompts(f"{kind}_calibration.txt"), read_prompts(f"{kind}_held_out.txt")
    assert len(calibration) >= 8
    assert len(held_out) >= 16
    every = calibration + held_out
    assert len({prompt.lower() for prompt in every}) == len(every)


def test_saved_configuration_is_the_same_when_loaded(defaults: dict[str, Any], tmp_path: Path) -> None:
    config = Config.check(defaults)
    config.save(tmp_path / "config.yaml")
    assert Config.load(tmp_path / "config.yaml") == config
    (tmp_path / "other.yaml").write_text("- 1\n")
    with pytest.raises(ValueError, match="is not a configuration"):
        Config.load(tmp_path / "other.yaml")


@pytest.mark.parametrize(("before", "now"), [("seeds", "proposals"), ("none", "none"), ("intervals", "intervals")])
def test_configuration_saved_with_the_key_begin_loads(
    defaults: dict[str, Any], tmp_path: Path, before: str, now: str
) -> None:
    config = Config.check(defaults | {"initial": now})
    config.save(file := tmp_path / "config.yaml")
    file.write_text(file.read_text().replace(f"initial: {now}\n", f"begin: {before}\n"))
    assert "begin" in file.read_text()
    assert Config.load(file) == config


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("model.steps", 0, r"model\.steps=0: give a whole number from 1 to 1000, or null"),
        ("model.steps", True, "whole number"),
        ("model.steps", "abc", "model.steps=abc: give a whole number"),
        ("model.guidance_scale", float("nan"), "a number from 0 to 100"),
        ("model.height", 63, "a whole number from 16 to 8192 that 8 divides, or null"),
        ("model.dtype", "fp16", "'float32', 'float16' or 'bfloat16'"),
        ("model.name", "../up", "model.name="),
        ("model.stepz", 3, r"there is no model\.stepz\. Did you mean model\.steps\?"),
        ("model._target_", "no dots", "model._target_="),
        ("prompts.calibration_count", 0, "from 1 to 100000, or null"),
        ("prompts.seed", -1, "from 0 to 4294967295"),
        ("budget.evaluations", 0, "a whole number from 1 to .*, or null"),
        ("budget.minutes", 0, "a number from 0.01 to 1e.06, or null"),
        ("budget.evaluations", None, r"nothing ends the search.*budget\.evaluations=300"),
        ("compute.device", "gpu", "give auto, cpu, mps, cuda or cuda:<number>"),
        ("compute.threads", 0, "from 1 to 1024, or null"),
        ("tracking.enabled", "perhaps", "tracking.enabled=perhaps"),
        ("seed", 2**32, "from 0 to 4294967295"),
        ("sede", 1, r"there is no sede\. Did you mean seed\?"),
        ("runs", "", "runs="),
        ("space", {}, r"nothing to search; add \+space=cache"),
        ("space", {"cache": {}}, "space.cache._target_ is missing"),
        ("objective", {}, r"at least two, for example objective=\[drift,macs\]"),
    ],
)
def test_what_cannot_be_is_told_with_what_can(defaults: dict[str, Any], key: str, value: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Config.check(changed(defaults, key, value))


def test_all_mistakes_are_told_at_once(defaults: dict[str, Any]) -> None:
    raw = changed(changed(defaults, "seed", -1), "model.steps", 0)
    with pytest.raises(ValueError, match=r"model\.steps=0.*\n.*seed=-1"):
        Config.check(raw)


def test_of_many_mistakes_the_first_ones_are_told(defaults: dict[str, Any]) -> None:
    """A run folder of somebody else may have thousands, each with a text of its own."""
    with pytest.raises(ValueError, match=r"^there is no x0\.") as told:
        Config.check({f"x{i}": "y" * 1000 for i in range(1000)} | defaults)
    lines = str(told.value).splitlines()
    assert len(lines) == 9 and lines[-1] == "and 992 more" and len(str(told.value)) < 2000


def test_own_prompts(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("\ufeff# a comment\n a cat \n\nзелёный чай\r\n", encoding="utf-8")
    assert read_prompts(str(file)) == ["a cat", "зелёный чай"]
    with pytest.raises(ValueError, match=r"no prompt file '.*nowhere.txt'.*prompts\.calibration="):
        read_prompts(str(tmp_path / "nowhere.txt"))
    file.write_text("# nothing\n")
    with pytest.raises(ValueError, match="no prompt in"):
        read_prompts(str(file))
    file.write_bytes(b"caf\xe9 au lait")
    with pytest.raises(ValueError, match="not UTF-8 text .* at byte 3"):
        read_prompts(str(file))
    with pytest.raises(ValueError, match="no prompt file"):
        read_prompts(str(tmp_path))


def test_near_names() -> None:
    keys = all_keys()
    assert {"model.steps", "budget.minutes", "space.cache.granularity", "engine.population", "seed"} <= set(keys)
    assert closest_name_hint("bugdet", keys) == " Did you mean budget?"
    assert closest_name_hint("space.cache.max_orders", keys) == " Did you mean space.cache.max_order?"
    assert closest_name_hint("zzzzzz", keys) == ""
    assert closest_name_hint("seed", ["seed"]) == ""
