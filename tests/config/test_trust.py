"""A class that a run folder names is imported only if it is ours or the user trusts its code."""

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from search.config.compose import compose_config, normalise_overrides
from search.config.settings import CONF, Config
from search.config.trust import check_classes

RANDOM = "search.engines.random.RandomEngine"


@pytest.fixture(autouse=True)
def path_and_modules(monkeypatch: pytest.MonkeyPatch) -> Any:
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name in set(sys.modules) - before:
        if name.startswith("stranger"):
            del sys.modules[name]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Code that leaves a file when it is imported."""
    code = "import os\nfrom pathlib import Path\nPath({!r}).touch()\nclass Mine: pass\ndef make(): pass\n"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "stranger_a.py").write_text(code.format(str(tmp_path / "imported")))
    (tmp_path / "mine" / "stranger_b").mkdir()
    (tmp_path / "mine" / "stranger_b" / "__init__.py").write_text("from stranger_b.inner import Mine\n")
    (tmp_path / "mine" / "stranger_b" / "inner.py").write_text("class Mine: pass\n")
    return tmp_path / "mine"


def test_all_that_ships_may_be_named() -> None:
    for group in ("engine", "space", "objective", "model"):
        for file in (CONF / group).glob("*.yaml"):
            option = yaml.safe_load(file.read_text())
            if "_target_" not in option:  # that of the option that it inherits
                assert option["defaults"] == ["any"]
                continue
            component = {"_target_": option["_target_"]}
            check_classes({group: component if group in ("engine", "model") else {file.stem: component}})
    check_classes(dict(Config.check(compose_config(normalise_overrides([])))))


NOT_OURS = "a run folder may name a class of ours"
NO_CLASS = "is not a class that a run folder may name; of ours it may name those of search.engines"


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("os.system", rf"engine._target_=os.system: {NOT_OURS} \(search.engines\).* trust=os beside resume="),
        ("builtins.exec", NOT_OURS),
        ("subprocess.Popen", NOT_OURS),
        ("hydra.utils.instantiate", NOT_OURS),
        ("searching.engines.X", NOT_OURS),
        ("nothing", NOT_OURS),
        ("../x.y", "trust=<its package> beside resume="),
        ("search.results.disk.os.system", NO_CLASS),
        ("search.engines.nsga2.np.save", NO_CLASS),
        ("search.engines.nsga2.Nsga2Engine.tell", NO_CLASS),
        ("search.engines.random.draw", NO_CLASS),
        ("search.engines.random.EngineInputs", NO_CLASS),  # defined in another module
        ("search.engines.row_queue.RowQueue", NO_CLASS),
        ("search.engines.base.Engine", NO_CLASS),  # abstract
        ("search.engines.nowhere.X", NO_CLASS),
        ("search.engines.random.Nothing", NO_CLASS),
        ("search.engines.random", NO_CLASS),
        ("search.evaluate.memo.Memo", NO_CLASS),
        ("search.spaces.cache.CacheSpace", NO_CLASS),  # of another kind
    ],
)
def test_what_is_not_ours_is_refused(target: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check_classes({"engine": {"_target_": target}})


@pytest.mark.parametrize(
    "nested",
    [
        {"a": {"_target_": "os.system"}},
        {"a": [[{"b": {"_target_": "os.system"}}]]},
        {"_args_": [{"_target_": "os.system"}]},
        {"a": {"_target_": RANDOM, "_partial_": True, "b": {"_target_": "os.system"}}},
        {"a": {"_target_": 3}},
        {"a": {"_target_": "search.evaluate.memo.Memo"}},
    ],
)
@pytest.mark.parametrize("section", ["engine", "model", "space", "objective", "guard"])
def test_arguments_are_searched_in_every_section(section: str, nested: dict[str, Any]) -> None:
    ours = {
        "engine": RANDOM,
        "model": "search.models.pipeline.Pipeline",
        "space": "search.spaces.cache.CacheSpace",
        "objective": "search.objectives.drift.Drift",
        "guard": "search.objectives.drift.Drift",
    }[section]
    component = {"_target_": ours} | nested
    config = {section: component if section in ("engine", "model") else {"any.name": component}}
    with pytest.raises(ValueError, match=rf"^{section}\..*_target_=(os.system|3|search.evaluate)"):
        check_classes(config, ["numpy", "./"])
    with pytest.raises(ValueError, match=f"{section}._partial_ is set"):
        partial = {"_target_": ours, "_partial_": True}
        check_classes({section: partial if section in ("engine", "model") else {"x": partial}})


def test_nothing_is_imported_for_a_configuration_that_is_refused(folder: Path) -> None:
    config = {"engine": {"_target_": "stranger_a.Mine"}, "model": {"_target_": "os.system"}}
    with pytest.raises(ValueError, match="model._target_=os.system"):
        check_classes(config, [str(folder)])
    assert not (folder.parent / "imported").exists()
    check_classes({"engine": config["engine"]}, [str(folder)])
    assert (folder.parent / "imported").exists()


@pytest.mark.parametrize("target", ["stranger_a.Mine", "stranger_a.make", "stranger_b.Mine", "stranger_b.inner.Mine"])
def test_code_in_a_trusted_folder_or_package_is_used(folder: Path, target: str) -> None:
    config = {"engine": {"_target_": target}}
    top = target.partition(".")[0]
    with pytest.raises(ValueError, match=rf"type --config-dir <its folder>, .* or trust={top} beside resume="):
        check_classes(config)
    check_classes(config, [str(folder)])  # and puts it on the path
    check_classes(config, [top])


@pytest.mark.parametrize("target", ["stranger_a.os.system", "stranger_a.Path", "stranger_a.os.path.join"])
def test_what_trusted_code_imports_is_not_trusted(folder: Path, target: str) -> None:
    for trusted in (str(folder), "stranger_a"):
        sys.path.append(str(folder))
        with pytest.raises(ValueError, match=NOT_OURS):
            check_classes({"engine": {"_target_": target}}, [trusted])


@pytest.mark.parametrize("target", ["builtins.exec", "sys.exit", "os.system", "_io.open", "inner.Mine"])
def test_a_folder_is_what_lies_directly_in_it(folder: Path, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not what is built into Python, nor an environment with packages somewhere below it."""
    monkeypatch.chdir(folder)
    sys.path.append(str(folder / "stranger_b"))
    with pytest.raises(ValueError, match=NOT_OURS):
        check_classes({"engine": {"_target_": target}}, ["./", str(Path(sys.prefix)), "/"])


@pytest.mark.parametrize("target", ["stranger_a.Nothing", "stranger_b.nothing.Mine", "stranger_c.Mine"])
def test_what_does_not_exist_in_trusted_code_is_named(folder: Path, target: str) -> None:
    sys.path.append(str(folder))
    with pytest.raises(ValueError, match=rf"engine._target_={target}: "):
        check_classes({"engine": {"_target_": target}}, ["stranger_a", "stranger_b", "stranger_c"])


def test_the_folder_of_config_dir_is_trusted(folder: Path) -> None:
    raw = compose_config(normalise_overrides(["trust=numpy"]), str(folder))
    assert Config.check(raw).trust == ["numpy", str(folder)]
