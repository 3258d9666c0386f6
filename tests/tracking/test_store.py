"""Addresses, and stores that do not answer."""

import os
import socket
import sqlite3
from pathlib import Path

import pytest

from search.tracking import spool, store


def test_the_store_of_a_runs_folder_is_a_file_in_it(tmp_path):
    assert store.store_address(tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    assert store.store_address(tmp_path, "http://host") == "http://host"
    assert store.store_address(tmp_path, "") == store.store_address(tmp_path)


def test_what_to_type_for_the_ui(tmp_path):
    assert store.ui_command(Path("runs")) == "mlflow ui --backend-store-uri sqlite:///runs/mlflow.db --port 5000"
    assert "'sqlite:////a b/mlflow.db'" in store.ui_command(Path("/a b"))
    assert store.page_url("#/x") == "http://127.0.0.1:5000/#/x"
    assert store.ui_command(tmp_path, "http://host:80/") == "open http://host:80/"
    assert store.page_url("#/x", "http://host:80/mlflow/") == "http://host:80/mlflow/#/x"


def test_passwords_are_not_shown():
    assert store.address_without_password("https://me:secret@host:80/mlflow") == "https://***@host:80/mlflow"
    assert store.address_without_password("postgresql://me:secret@host/db") == "postgresql://***@host/db"
    assert store.address_without_password("sqlite:////a@b/mlflow.db") == "sqlite:////a@b/mlflow.db"
    assert "secret" not in store.ui_command(Path("runs"), "https://me:secret@host")
    assert "secret" not in store.page_url("#/x", "https://me:secret@host")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (Exception("HTTPConnectionPool(host='x'): Max retries exceeded with url: /api"), "it does not answer"),
        (ConnectionRefusedError(111, "Connection refused"), "it does not answer"),
        (Exception("Read timed out."), "it does not answer"),
        (Exception("API request to endpoint /x failed with error code 401 != 200"), "it answers with HTTP error 401"),
        (Exception("first line\nsecond line"), "first line"),
        (KeyError(), "KeyError"),
    ],
)
def test_what_went_wrong_is_told_in_few_words(error, words):
    assert store.failure_reason(error) == words


def test_databases_that_do_not_answer_are_found_out_at_once(tmp_path):
    (tmp_path / "mlflow.db").write_text("this is no database")
    with pytest.raises(sqlite3.DatabaseError, match="not a database"):
        store._probe(store.store_address(tmp_path))
    with socket.socket() as closed:  # bound, and not listening
        closed.bind(("127.0.0.1", 0))
        with pytest.raises(ConnectionRefusedError):
            store._probe(f"postgresql+psycopg2://me@127.0.0.1:{closed.getsockname()[1]}/db")


def test_a_new_database_is_read_while_it_is_written(tmp_path):
    store._probe(store.store_address(tmp_path / "new"))
    with sqlite3.connect(tmp_path / "new" / "mlflow.db") as base:
        assert base.execute("pragma journal_mode").fetchone() == ("wal",)
    with sqlite3.connect(tmp_path / "mlflow.db") as base:  # somebody's own stays as it is
        for table in ("alembic_version", "experiments", "runs"):
            base.execute(f"create table {table} (x)")
    store._probe(store.store_address(tmp_path))
    assert base.execute("pragma journal_mode").fetchone() == ("delete",)


@pytest.mark.slow
def test_what_the_environment_says_stays(tmp_path, monkeypatch):
    for name in store.SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "99")
    store.connect_store(store.store_address(tmp_path))
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "99"
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "1"


def test_a_mark_waits_until_it_is_sent(tmp_path):
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
        spool.add_to_spool(tmp_path / name, f"http://{name}")
    assert list(spool.unsent_folders(tmp_path).items()) == [(tmp_path / "a", "http://a"), (tmp_path / "b", "http://b")]
    spool.mark_sent(tmp_path / "a")
    spool.mark_sent(tmp_path / "a")
    assert spool.unsent_folders(tmp_path) == {tmp_path / "b": "http://b"}
