"""The configuration of a run folder is data: of a bounded size, and nothing of this machine gets into it."""

import os
from pathlib import Path

import pytest
import yaml

from search.config.compose import compose_config, normalise_overrides
from search.config.saved import read_saved_config
from search.config.settings import Config


def test_what_was_saved_is_read_but_not_whom_the_user_trusted(tmp_path: Path) -> None:
    config = Config.check(compose_config(normalise_overrides(["trust=[numpy,./]", "+space=[cache,bits]"])))
    assert config.trust == ["numpy", "./"]
    config.save(tmp_path / "config.yaml")
    assert Config.load(tmp_path / "config.yaml") == config.model_copy(update={"trust": []})
    saved = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert "trust" not in saved


LAUGHS = "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (LAUGHS, "it has aliases"),
        ("a: &a\n  b: *a\n", "it has aliases"),
        ("seed: " + "[" * 30 + "]" * 30, r"seed.* is nested too deep, more than 20 levels"),
        ("[" * 100_000, "is not a configuration"),
        ("#" * 300_000, "more than the 262144 bytes"),
        ("model: {path: '${oc.env:HOME}'}", r"model.path=\$\{oc.env:HOME\}: write the value itself"),
        ("space: {a: {b: ['x${now:%H}']}}", r"space.a.b.0=x\$\{now"),
        ("'${oc.env:HOME}': 1", r"\$\{oc.env:HOME\}=\$\{oc.env:HOME\}: write the value itself"),
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("seed: " + "9" * 10_000, "is not a configuration"),
        ("\xff", "is not a configuration; a run folder has one"),
        ("a: [", "is not a configuration, or is incomplete"),
        ("1", "is not a configuration; a run folder has one in config.yaml"),
    ],
)
def test_what_is_not_read(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=words):
        read_saved_config(path)


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "no text"])
def test_only_text_in_a_regular_file_is_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "config.yaml"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="is not a configuration"):
        read_saved_config(path)


@pytest.mark.parametrize("value", ["a.b", "./nowhere", "/nowhere", "", 3])
def test_what_cannot_be_trusted_says_what_can(value: object) -> None:
    raw = compose_config(normalise_overrides([])) | {"trust": [value]}
    with pytest.raises(ValueError, match=r"trust.0=.*: give the name of a package, or a folder as ./<folder>"):
        Config.check(raw)
