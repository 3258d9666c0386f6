"""The MLflow store: its address, a client with short timeouts, and the command that opens it."""

import logging
import os
import re
import shlex
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

if TYPE_CHECKING:
    from mlflow import MlflowClient

PORT = 5000  # MLflow's default
PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
PATIENCE = 5  # seconds for a database to answer
# MLflow's own timeouts are minutes. Variables that are set already stay as they are.
SETTINGS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


def store_address(root: Path, uri: str | None = None) -> str:
    """The address of the store: `uri`, or else the SQLite file in the folder of runs."""
    return uri or f"sqlite:///{root.resolve() / 'mlflow.db'}"


def connect_store(address: str) -> "MlflowClient":
    """A client of the store and its registry; OSError or sqlite3.Error where a database does not answer at all."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    for chatty in ("alembic", "mlflow.store.db.utils", "mlflow.store.model_registry.abstract_store"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    _probe(address)
    from mlflow import MlflowClient

    if not address.startswith("sqlite:"):
        return MlflowClient(address, registry_uri=address)
    with _folder_lock(_file(address).parent):  # MLflow creates its tables now; two processes must not do it at once
        client = MlflowClient(address, registry_uri=address)
        client.search_experiments(max_results=1)
        client.search_registered_models(max_results=1)
    return client


def experiment_id(client: "MlflowClient", name: str, root: Path) -> str:
    """Id of the experiment; it is created, or restored if it was deleted. A server stores the files itself."""
    from mlflow.exceptions import MlflowException

    if (experiment := client.get_experiment_by_name(name)) is None:
        location = None if _is_server(client.tracking_uri) else (_files(client.tracking_uri, root) / name).as_uri()
        try:
            return str(client.create_experiment(name, artifact_location=location))
        except MlflowException:  # another search has just created it
            if (experiment := client.get_experiment_by_name(name)) is None:
                raise
    if experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment.experiment_id)
    return str(experiment.experiment_id)


def ui_command(root: Path, uri: str | None = None) -> str:
    """The command that opens the store."""
    if uri and _is_server(uri):
        return f"open {address_without_password(uri)}"
    where = address_without_password(uri) if uri else f"sqlite:///{root / 'mlflow.db'}"
    return f"mlflow ui --backend-store-uri {shlex.quote(where)} --port {PORT}"


def page_url(page: str, uri: str | None = None) -> str:
    """Address of a page, once MLflow's UI runs."""
    server = address_without_password(uri).rstrip("/") if uri and _is_server(uri) else f"http://127.0.0.1:{PORT}"
    return f"{server}/{page}"


def address_without_password(uri: str) -> str:
    """The address with `user:password@` replaced by `***@`, so that it can be printed."""
    parts = urlsplit(uri)
    if "@" not in parts.netloc:
        return uri
    return urlunsplit(parts._replace(netloc="***@" + parts.netloc.rpartition("@")[2]))


def failure_reason(error: Exception) -> str:
    """The reason of a failure in one line."""
    text = str(error).strip() or type(error).__name__
    if "Max retries exceeded" in text or "timed out" in text or isinstance(error, ConnectionError):
        return "it does not answer"
    if match := re.search(r"failed with error code (\d+)", text):
        return f"it answers with HTTP error {match[1]}"
    return text.splitlines()[0][:300]


def _probe(address: str) -> None:
    """Connect to a database once, because MLflow itself would retry for minutes; OSError or sqlite3.Error if it fails.

    A new SQLite file is put into WAL mode, in which it can be read while it is written.
    """
    parts = urlsplit(address)
    if parts.scheme == "sqlite":
        file = _file(address)
        file.parent.mkdir(parents=True, exist_ok=True)
        new = not file.exists()
        with closing(sqlite3.connect(file, timeout=PATIENCE)) as base:
            base.execute("pragma journal_mode=wal" if new else "pragma schema_version").fetchall()
    elif parts.hostname and (port := PORTS.get(parts.scheme.partition("+")[0])):
        socket.create_connection((parts.hostname, parts.port or port), PATIENCE).close()


@contextmanager
def _folder_lock(folder: Path) -> Iterator[None]:
    """Only one process of this machine at a time is in the block, where the system has locks."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(ImportError, OSError):
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _file(address: str) -> Path:
    return Path(address.removeprefix("sqlite:///"))


def _is_server(uri: str) -> bool:
    return uri.startswith("http")


def _files(uri: str, root: Path) -> Path:
    """Folder of the artifacts of a database: next to an SQLite file, else in the folder of runs."""
    base = _file(uri).parent if uri.startswith("sqlite:") else root
    return base.resolve() / "artifacts"
