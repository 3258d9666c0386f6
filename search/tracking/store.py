"""Where MLflow keeps what was searched: the store's address, a client that gives up soon, what to type to look."""

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

PORT = 5000  # MLflow's own choice
PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
PATIENCE = 5  # seconds for a database to answer
# MLflow's own patience is minutes. What the environment says already stays.
SETTINGS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


def store_address(root: Path, uri: str | None = None) -> str:
    """The store that is meant: `uri`, or else the SQLite file of a runs folder."""
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
    with _one_at_a_time(_file(address).parent):  # MLflow's tables are made now, and not twice
        client = MlflowClient(address, registry_uri=address)
        client.search_experiments(max_results=1)
        client.search_registered_models(max_results=1)
    return client


def experiment_id(client: "MlflowClient", name: str, root: Path) -> str:
    """Id of the experiment, which is made or restored where it is not there. A server keeps the files itself."""
    from mlflow.exceptions import MlflowException

    if (found := client.get_experiment_by_name(name)) is None:
        kept = None if _is_server(client.tracking_uri) else (_files(client.tracking_uri, root) / name).as_uri()
        try:
            return client.create_experiment(name, artifact_location=kept)
        except MlflowException:  # another search was faster
            if (found := client.get_experiment_by_name(name)) is None:
                raise
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return found.experiment_id


def ui_command(root: Path, uri: str | None = None) -> str:
    """What to type to look at the store."""
    if uri and _is_server(uri):
        return f"open {address_without_password(uri)}"
    where = address_without_password(uri) if uri else f"sqlite:///{root / 'mlflow.db'}"
    return f"mlflow ui --backend-store-uri {shlex.quote(where)} --port {PORT}"


def page_url(page: str, uri: str | None = None) -> str:
    """Address of a page, once the UI is up."""
    server = address_without_password(uri).rstrip("/") if uri and _is_server(uri) else f"http://127.0.0.1:{PORT}"
    return f"{server}/{page}"


def address_without_password(uri: str) -> str:
    """The address without what a terminal should not show: `user:password@`."""
    parts = urlsplit(uri)
    if "@" not in parts.netloc:
        return uri
    return urlunsplit(parts._replace(netloc="***@" + parts.netloc.rpartition("@")[2]))


def failure_reason(error: Exception) -> str:
    """What went wrong in a few words, and not in five screens."""
    text = str(error).strip() or type(error).__name__
    if "Max retries exceeded" in text or "timed out" in text or isinstance(error, ConnectionError):
        return "it does not answer"
    if found := re.search(r"failed with error code (\d+)", text):
        return f"it answers with HTTP error {found[1]}"
    return text.splitlines()[0][:300]


def _probe(address: str) -> None:
    """Ask a database once, for MLflow itself would ask for minutes. A new SQLite file is read while it is written."""
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
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Processes of this machine one after the other, where the system has locks."""
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
    """Where the files of a database go: beside an SQLite file, else into the runs folder."""
    base = _file(uri).parent if uri.startswith("sqlite:") else root
    return base.resolve() / "artifacts"
