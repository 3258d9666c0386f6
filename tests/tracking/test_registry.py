"""Aliases in MLflow's registry: moved, followed, and what is said where there is none."""

import shutil

import pytest

from search import Schedule, export, promote
from search.export import main
from search.promote import main as promote_main
from search.tracking import registry, store, writing
from search.tracking.promotion import Promoted
from tests.helpers.finished_search import made_result

FIRST, SECOND = "2026-01-02_030405_cache_tiny", "2026-01-03_000000_cache_tiny"


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Two searches in one store."""
    runs = tmp_path_factory.mktemp("registry") / "runs"
    results = [made_result(runs, name) for name in (FIRST, SECOND)]
    assert not [found for r in results if "version" not in (found := writing.log_result(r, runs))]
    return runs, results


@pytest.mark.slow
def test_a_search_registers_what_it_recommends(stored):
    runs, _ = stored
    client = store.connect_store(store.store_address(runs))
    versions = sorted(client.search_model_versions("name = 'tiny-cache'"), key=lambda v: int(v.version))
    first, second = versions[:2]
    assert [v.tags["search_id"] for v in (first, second)] == [FIRST, SECOND]
    expected = {"name": "2.0× · drift 0.040", "role": "front", "speedup": "2", "psnr": "44", "drift": "0.04"}
    assert expected.items() <= first.tags.items()
    assert first.description == f"2.0× · drift 0.040, from search {FIRST}"
    assert client.get_model_version_by_alias("tiny-cache", "newest").version == second.version


@pytest.mark.slow
def test_an_alias_is_moved_and_followed(stored, tmp_path, capsys):
    runs, (first, second) = stored
    moved = promote(FIRST, runs=runs, alias="live")
    assert (moved.model, moved.version, moved.before) == ("tiny-cache", "1", None)
    (file,) = export(FIRST, alias="live", runs=runs, out=tmp_path / "a" / "schedule.json")
    assert Schedule.load(file) == first.best.schedule
    assert promote(SECOND, "speedup>=2.5", "live", runs=runs).before == "1"
    (file,) = export(model="tiny-cache", alias="live", runs=runs, out=tmp_path / "schedule.json")
    assert Schedule.load(file) == second.entries[0].schedule != first.best.schedule
    again = promote(FIRST, runs=runs, alias="live")  # back, and no second version of the same schedule
    assert again.version == "1" and str(again).startswith("live of tiny-cache is version 1 (was version 3)")
    assert promote_main([f"run={FIRST}", f"runs={runs}", "pick=FORA N=2"]) == 0
    told = capsys.readouterr().out
    assert "production of tiny-cache is version 4 (new): FORA N=2 of 2026-01-02_030405_cache_tiny" in told
    assert f"python -m search.export model=tiny-cache alias=production out=schedule.json runs={runs}" in told
    assert main(["model=tiny-cache", f"runs={runs}", f"out={tmp_path / 'fora.json'}"]) == 0
    assert Schedule.load(tmp_path / "fora.json") == first.of("preset")[0].schedule
    newest = store.connect_store(store.store_address(runs)).get_model_version_by_alias("tiny-cache", "newest")
    assert str(newest.version) == "2"


@pytest.mark.slow
def test_what_an_alias_names_is_checked_before_it_is_written(stored, tmp_path):
    runs, _ = stored
    client = store.connect_store(store.store_address(runs))
    promote(FIRST, "speedup>=1.1", "broken", runs=runs)
    version = client.get_model_version_by_alias("tiny-cache", "broken")
    (tmp_path / "schedule.json").write_text('{"format": "schedule/1", "plan": {"rules": []}}')
    client.log_artifact(version.run_id, str(tmp_path / "schedule.json"), registry.FOLDER)
    with pytest.raises(ValueError, match="tiny-cache@broken is not a schedule that can be applied, so nothing"):
        export(alias="broken", runs=runs, out=tmp_path / "out" / "schedule.json")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_mistakes_say_what_to_type(stored, tmp_path):
    runs, _ = stored
    out = tmp_path / "schedule.json"
    with pytest.raises(ValueError, match=r"has the alias 'prod'; there are: .*newest \(version 2\)"):
        export(alias="prod", runs=runs, out=out)
    with pytest.raises(ValueError, match=r"python -m search\.promote run=<search> alias=prod"):
        export(alias="prod", runs=runs, out=out)
    with pytest.raises(ValueError, match="there is no registered model 'tiny'; there are: tiny-cache"):
        export(model="tiny", runs=runs, out=out)
    with pytest.raises(ValueError, match="alias name .* is reserved"):
        promote(FIRST, runs=runs, alias="latest")
    with pytest.raises(ValueError, match=f"send the search there with: python -m search.send run={FIRST}x"):
        shutil.copytree(runs / FIRST, runs / f"{FIRST}x")
        promote(f"{FIRST}x", runs=runs)
    with pytest.raises(ValueError, match="is the name of a schedule.s file of tensors"):
        export(alias="newest", runs=runs, out=tmp_path / "x.safetensors")


def test_mistakes_that_need_no_store(tmp_path):
    made_result(tmp_path, FIRST)
    with pytest.raises(ValueError, match=r"there is no MLflow database .*mlflow\.db; type runs=.* or uri="):
        export(alias="production", runs=tmp_path)
    with pytest.raises(ValueError, match=r"there is no MLflow database"):
        promote(runs=tmp_path)
    with pytest.raises(ValueError, match="alias=production says which schedule; leave out pick="):
        export(pick="knee", alias="production", runs=tmp_path)
    with pytest.raises(ValueError, match="uri=http://x is where an alias is looked up; type alias=production"):
        export(uri="http://x", runs=tmp_path)
    with pytest.raises(ValueError, match="an alias names one schedule"):
        promote(pick="all", runs=tmp_path)
    (tmp_path / "mlflow.db").write_text("this is no database")
    with pytest.raises(ValueError, match="tiny-cache: MLflow at sqlite:///.*: file is not a database"):
        export(alias="production", runs=tmp_path)


def test_what_is_said_of_a_move():
    said = [str(Promoted("m", "live", "2", before, "s", "")) for before in (None, "1", "2")]
    assert said == [f"live of m is version 2 ({was}): s" for was in ("new", "was version 1", "as before")]
