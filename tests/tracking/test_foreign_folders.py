"""Run folders and stores of somebody else: to whom nothing is sent, and one line for a store that cannot be used."""

import logging
import os
import shutil
import socket
import sqlite3
from contextlib import closing

import pytest

from search import export, promote
from search.promote import main as promote_main
from search.send import main as send
from search.tracking import quiet, spool, store, tracker, writing
from search.tracking.sending import send_searches
from tests.helpers.finished_search import made_result

NAME = "2026-01-02_030405_cache_tiny"
THERE = "http://collector.example:5000"


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("the network was used")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def foreign(tmp_path):
    """The folder of a search that names a server as its store, and waits to be sent there."""
    result = made_result(tmp_path, NAME)
    result.config["tracking"] = {"enabled": True, "uri": THERE}
    result.save()
    spool.add_to_spool(result.folder, THERE)
    return result


NAMES_IT = f"the search {NAME} names the MLflow store {THERE}; an address that stands in a run folder is not used until"


def test_an_address_in_a_folder_is_not_used_until_it_is_typed(foreign, tmp_path, no_network, capsys):
    with pytest.raises(ValueError, match=f"{NAMES_IT} it is typed: uri={THERE}, or uri=sqlite:///.*mlflow.db for"):
        promote(runs=tmp_path)
    with pytest.raises(ValueError, match=NAMES_IT):
        export(runs=tmp_path, alias="production", out=tmp_path / "s.json")
    for arguments in ([], [f"run={NAME}"]):
        assert send([f"runs={tmp_path}", *arguments]) == 2
        assert f"{NAME} was not sent: {NAMES_IT}" in " ".join(capsys.readouterr().err.split())
    assert promote_main([f"runs={tmp_path}"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert spool.unsent_folders(tmp_path) == {foreign.folder: THERE}  # it waits


def test_an_address_that_was_typed_is_used(foreign, tmp_path, monkeypatch):
    asked = []

    def connect(address):
        asked.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr(store, "connect_store", connect)
    with pytest.raises(ValueError, match=f"MLflow at {THERE}: it does not answer"):
        promote(runs=tmp_path, uri=THERE)
    with pytest.raises(ValueError, match=f"{NAME} was not sent: MLflow at {THERE}: it does not answer"):
        send_searches(runs=tmp_path, uri=THERE)
    assert asked == [THERE, THERE]


@pytest.mark.parametrize(
    ("named", "used"),
    [
        ("", True),
        ("sqlite:///{runs}/mlflow.db", True),
        ("sqlite:///{runs}/own.db", True),
        ("sqlite:///{runs}/none.db", False),
        ("sqlite:///{runs}/../own.db", False),
        ("sqlite:///{runs}/link.db", False),
        ("sqlite:///{runs}/own.db?mode=rwc", False),
        ("sqlite:///own.db", False),
        ("file://{runs}", False),
        ("http://x\n\x1b[2Jy", False),
        ("http://[::1", False),
    ],
)
def test_only_a_database_in_the_folder_of_runs_needs_no_typing(tmp_path, named, used):
    (tmp_path / "runs").mkdir()
    for place in (tmp_path / "own.db", tmp_path / "runs" / "own.db"):
        place.touch()
    (tmp_path / "runs" / "link.db").symlink_to(tmp_path / "own.db")
    address = named.format(runs=tmp_path / "runs")
    if used:
        assert store.address_to_use(tmp_path / "runs", "", address, tmp_path) == address or not address
    else:
        with pytest.raises(ValueError, match="an address that stands in a run folder is not used until") as told:
            store.address_to_use(tmp_path / "runs", None, address, tmp_path)
        assert str(told.value).isprintable()


def test_one_folder_that_cannot_be_sent_holds_up_no_other(foreign, tmp_path, monkeypatch, capsys):
    damaged, other = (made_result(tmp_path, f"2026-01-0{day}_000000_cache_tiny") for day in (1, 3))
    (damaged.folder / "front.json").write_text("{}")
    for result in (damaged, other):
        spool.add_to_spool(result.folder, store.store_address(tmp_path))
    monkeypatch.setattr(writing, "log_result", lambda *_: {"page": "#/x"})
    assert send([f"runs={tmp_path}"]) == 2
    said = capsys.readouterr()
    assert f"{other.search_id}  http://127.0.0.1:5000/#/x" in said.out
    assert f"{damaged.search_id} was not sent: " in said.err and "search_id is missing" in said.err
    assert list(spool.unsent_folders(tmp_path)) == [damaged.folder, foreign.folder]


def test_the_result_of_another_search_is_not_sent(tmp_path):
    """It would replace that search's runs in the store."""
    result = made_result(tmp_path, NAME)
    shutil.copytree(result.folder, tmp_path / "copy")
    with pytest.raises(ValueError, match=f"copy is the result of the search {NAME}; give the folder this name"):
        tracker.deliver_folder(tmp_path / "copy", tmp_path, "sqlite:///none")


@pytest.mark.parametrize("mark", [os.mkfifo, lambda path: path.symlink_to("/etc/passwd"), os.mkdir])
def test_a_mark_that_is_not_a_file_is_not_read(tmp_path, mark, capsys):
    result = made_result(tmp_path, NAME)
    mark(result.folder / "unsent")
    assert spool.unsent_folders(tmp_path) == {result.folder: ""}


# Stores that cannot be used


def of_another_program(file):
    with closing(sqlite3.connect(file)) as base:
        base.execute("create table experiments (a)")


def half_written(file):
    of_another_program(file)
    os.truncate(file, file.stat().st_size // 2)


def locked(file):
    base = sqlite3.connect(file, isolation_level=None)
    base.execute("begin exclusive")
    return base


def linked(file):
    file.symlink_to("/etc/passwd")


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (of_another_program, "the file is a database of another program"),
        (half_written, "database disk image is malformed"),
        (lambda file: file.write_text("this is no database"), "file is not a database"),
        (linked, "mlflow.db is not a file of this folder; type uri=sqlite:///<the file itself>"),
        (os.mkfifo, "mlflow.db is not a file of this folder"),
        (locked, "database is locked"),
    ],
)
def test_a_file_that_is_not_a_store_of_mlflow(tmp_path, monkeypatch, capfd, make, text):
    monkeypatch.setattr(store, "PATIENCE", 0.1)
    result = made_result(tmp_path, NAME)
    held = make(tmp_path / "mlflow.db")
    before = (tmp_path / "mlflow.db").read_bytes() if make is of_another_program else b""
    for command, arguments in ((promote_main, []), (send, [f"run={NAME}"])):
        assert command([f"runs={tmp_path}", *arguments]) == 2
        told = capfd.readouterr().err
        assert f"MLflow at sqlite:///{tmp_path}/mlflow.db: " in told and text in told and "Traceback" not in told
        assert told.startswith("error: ") and told.count("\n") <= 2
    assert spool.unsent_folders(tmp_path) == {result.folder: store.store_address(tmp_path)}
    if before:  # MLflow would have added its tables
        assert (tmp_path / "mlflow.db").read_bytes() == before
    del held


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("http://[::1", "Invalid IPv6 URL"),
        ("sqlite://", "the address of an SQLite store is sqlite:///<file>"),
        ("sqlite:////proc/none/x.db", "No such file or directory"),
        ("mysql://me:secret@127.0.0.1:1/x", "it does not answer"),
        ("postgresql://127.0.0.1:99999/x", "Port out of range"),
    ],
)
def test_odd_addresses_are_one_line_and_the_result_waits(tmp_path, capfd, address, text):
    result = made_result(tmp_path, NAME)
    assert send([f"runs={tmp_path}", f"run={NAME}", f"uri={address}"]) == 2
    told = capfd.readouterr().err
    assert told.startswith("error: ") and text in told and told.count("\n") <= 2 and "secret" not in told
    assert spool.unsent_folders(tmp_path) == {result.folder: address}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("update alembic_version set version_num = 'ffffffffffff'", "its tables are of another version of MLflow"),
        ("update alembic_version set version_num = '451aebb31d03'", "type: mlflow db upgrade"),
        ("drop table runs", "a database of another program"),
        ("begin immediate; create table t (x)", "database is locked"),
    ],
)
def test_a_store_of_another_version_or_in_use(store_of_mlflow, tmp_path, capfd, monkeypatch, change, text):
    result = made_result(tmp_path, NAME)
    shutil.copy(store_of_mlflow, tmp_path / "mlflow.db")
    base = sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None)
    moved = str(store_of_mlflow.parent), str(tmp_path)
    base.execute("update experiments set artifact_location = replace(artifact_location, ?, ?)", moved)
    for statement in change.split("; "):
        base.execute(statement)
    if "begin" not in change:
        base.close()
    capfd.readouterr()  # bars of what was made before
    assert send([f"runs={tmp_path}", f"run={NAME}"]) == 2
    told = capfd.readouterr().err
    assert told.startswith("error: ") and text in told and told.count("\n") <= 2 and "Traceback" not in told
    assert list(spool.unsent_folders(tmp_path)) == [result.folder]


@pytest.fixture(scope="module")
def store_of_mlflow(tmp_path_factory):
    root = tmp_path_factory.mktemp("store")
    client = store.connect_store(store.store_address(root))
    store.experiment_id(client, "tiny-cache", root)
    # A copy: MLflow keeps connections to its own file, which locks it.
    with closing(sqlite3.connect(root / "mlflow.db")) as base, closing(sqlite3.connect(root / "copy.db")) as copied:
        base.backup(copied)
        copied.execute("pragma journal_mode=delete")
    return root / "copy.db"


@pytest.mark.slow
def test_a_store_whose_files_are_elsewhere_is_refused(store_of_mlflow, tmp_path, no_network):
    result = made_result(tmp_path, NAME)
    shutil.copy(store_of_mlflow, tmp_path / "mlflow.db")
    for location in ("http://collector.example/x", "s3://bucket/x", "/elsewhere", "file://host/x"):
        with closing(sqlite3.connect(tmp_path / "mlflow.db")) as base, base:
            base.execute("update experiments set artifact_location = ?", (location,))
        found = tracker.deliver_result(result, tmp_path)
        assert f"its files are at {location}, and not in {tmp_path}; type uri=sqlite:///<a new file>" in found["error"]


def test_where_the_files_of_a_database_may_be(tmp_path):
    address = store.store_address(tmp_path)
    (tmp_path / "artifacts" / "a b").mkdir(parents=True)
    store.check_artifacts(address, (tmp_path / "artifacts" / "a b").as_uri())
    store.check_artifacts("http://host", "s3://bucket")  # a server looks after its own
    (tmp_path / "artifacts" / "a b" / "out").symlink_to("/etc")
    with pytest.raises(ValueError, match="out is a link that leads out of"):
        store.check_artifacts(address, (tmp_path / "artifacts" / "a b").as_uri())


def test_a_text_in_a_condition_is_quoted():
    assert [store.quoted(text) for text in ("a", "it's")] == ["'a'", '"it\'s"']
    with pytest.raises(ValueError, match="has two kinds of quotes, which MLflow cannot search for"):
        store.quoted("'\"")


def test_loggers_of_libraries_are_as_before_when_the_last_block_ends(caplog):
    log = logging.getLogger("alembic.runtime")
    log.setLevel(logging.INFO)
    first, second = quiet.silent_libraries(), quiet.silent_libraries()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    logging.getLogger("mlflow").setLevel(logging.INFO)  # as its import does
    quiet.silence_imported_library()
    log.critical("nobody reads this")
    assert logging.getLogger("mlflow").level == quiet.SILENT
    second.__exit__(None, None, None)
    assert (log.level, logging.getLogger("mlflow").level) == (logging.INFO, logging.INFO)
    assert not caplog.records
    quiet.silence_imported_library()
    assert log.level == logging.INFO
