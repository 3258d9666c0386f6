"""A run folder of somebody else is refused before anything of it is imported, loaded or run."""

import sys
from pathlib import Path

import pytest
import yaml

from search.config.compose import compose_config, normalise_overrides
from search.config.settings import Config
from search.loop import run as run_module
from search.loop.run import run

DRIFT, MACS = "search.objectives.drift.Drift", "search.objectives.macs.Macs"
REFUSED = "engine._target_=stranger_engine.Engine: a run folder may name a class of ours"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder with the configuration of a search; going on from it would raise AssertionError."""
    made = tmp_path / "runs" / "2026-01-02_cache_pixart"
    made.mkdir(parents=True)
    Config.check(compose_config(normalise_overrides([]))).save(made / "config.yaml")

    def resume(*_) -> None:
        raise AssertionError("the search is resumed")

    monkeypatch.setattr(run_module, "Search", resume)
    return made


def resume(folder: Path, *overrides: str) -> None:
    given = [f"resume={folder.name}", f"runs={folder.parent}", *overrides]
    run(Config.check(compose_config(normalise_overrides(given))))


def change(folder: Path, **sections: object) -> None:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | sections))


def test_a_folder_of_ours_is_resumed(folder: Path) -> None:
    with pytest.raises(AssertionError, match="the search is resumed"):
        resume(folder)


def test_a_class_that_is_not_ours_is_not_imported(folder: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    (tmp_path / "stranger_engine.py").write_text("raise SystemExit('imported')")
    change(folder, engine={"_target_": "stranger_engine.Engine"})
    with pytest.raises(ValueError, match=REFUSED):
        resume(folder)
    change(folder, engine={"_target_": "stranger_engine.Engine"}, trust=["stranger_engine"])
    with pytest.raises(ValueError, match=REFUSED):
        resume(folder)  # a folder cannot trust itself
    with pytest.raises(SystemExit, match="imported"):
        resume(folder, "trust=stranger_engine")
    assert "stranger_engine" not in sys.modules


def test_a_configuration_gets_nothing_of_this_machine(folder: Path) -> None:
    change(folder, engine={"_target_": "search.engines.bayes.BayesEngine", "storage": "${oc.env:HOME}.log"})
    with pytest.raises(ValueError, match=r"engine.storage=\$\{oc.env:HOME\}.log: write the value itself"):
        resume(folder)


def test_a_study_that_only_the_folder_names_is_not_opened(folder: Path) -> None:
    change(folder, engine={"_target_": "search.engines.bayes.BayesEngine", "storage": "mysql://somewhere/study"})
    with pytest.raises(ValueError, match="type engine=bayes engine.storage=mysql://somewhere/study beside resume="):
        resume(folder)
    with pytest.raises(AssertionError, match="the search is resumed"):
        resume(folder, "engine=bayes", "engine.storage=mysql://somewhere/study")


def test_a_pickled_checkpoint_is_refused_first(folder: Path) -> None:
    (folder / "checkpoint.pkl").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(ValueError, match=r"checkpoint.pkl is a pickle of an earlier version.*delete checkpoint\*.pkl"):
        resume(folder)


def test_arguments_that_a_class_does_not_take_are_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hydra.utils import instantiate

    monkeypatch.setattr(run_module, "Search", lambda config, *_: instantiate(config.objective["macs"]))
    change(folder, objective={"drift": {"_target_": DRIFT}, "macs": {"_target_": MACS, "levels": 3}})
    with pytest.raises(ValueError, match=f"config.yaml has arguments that its classes do not take: {MACS}: Macs"):
        resume(folder)
