"""The MLflow store: its address, a client with short timeouts, and the command that opens it."""

import os
import re
import shlex
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit, urlunsplit

from search.files import check_folder_of_files, is_inside
from search.tracking.quiet import silence_imported_library, silent_libraries

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


class StoreError(ValueError):
    """An MLflow store that cannot be reached or used; the text names it, and the reason in one line."""


def store_address(root: Path, uri: str | None = None) -> str:
    """The address of the store: `uri`, or else the SQLite file in the folder of runs."""
    return uri or f"sqlite:///{root.resolve() / 'mlflow.db'}"


def address_to_use(root: Path, typed: str | None, named: str, folder: Path) -> str:
    """The store of a run folder: the typed address, else an SQLite file in the folder of runs that the folder names.

    A run folder may come from somebody else, so no other address in it is used that was not typed.

    Args:
        root: The folder of runs.
        typed: What the user gave as `uri=`, or nothing.
        named: What the run folder says, or an empty string.
        folder: The run folder.

    Raises:
        ValueError: The run folder names another address, and none was typed; the message says what to type.
    """
    default = store_address(root)
    if typed or not named or named == default:
        return typed or default
    file = _file(named) if re.fullmatch(r"sqlite:///[^?#%]+", named) else None
    if file is not None and file.is_file() and is_inside(file, root):
        return named
    shown = shlex.quote(printable(address_without_password(named)))
    raise ValueError(
        f"the search {folder.name} names the MLflow store {shown}; an address that stands in a run folder is not used "
        f"until it is typed: uri={shown}, or uri={default} for the one in {root}"
    )


def connect_store(address: str) -> "MlflowClient":
    """A client of the store and its registry.

    Raises:
        ValueError: The address is not one of a store, or the file is not a database of MLflow.
        OSError, sqlite3.Error: A database does not answer at all.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    _probe(address)
    from mlflow import MlflowClient

    silence_imported_library()
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

    if (experiment := client.get_experiment_by_name(name)) is None:  # else it says where files are
        location = None if _is_server(client.tracking_uri) else (_files(client.tracking_uri, root) / name).as_uri()
        try:
            return str(client.create_experiment(name, artifact_location=location))
        except MlflowException:  # another search has just created it
            if (experiment := client.get_experiment_by_name(name)) is None:
                raise
    check_artifacts(client.tracking_uri, experiment.artifact_location)
    if experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment.experiment_id)
    return str(experiment.experiment_id)


def check_artifacts(address: str, location: str) -> None:
    """Raise ValueError unless the files of an SQLite store are beside it: the database itself says where they are."""
    if not address.startswith("sqlite:"):
        return
    folder, parts = _file(address).parent, urlsplit(location)
    path = Path(unquote(parts.path))
    if parts.scheme not in ("", "file") or parts.netloc or not is_inside(path, folder):
        raise ValueError(
            f"its files are at {printable(location)}, and not in {folder}; type uri=sqlite:///<a new file> to send the "
            "searches to a new store"
        )
    if path.is_dir():
        check_folder_of_files(path)


def quoted(text: str) -> str:
    """A text in a condition of MLflow's search."""
    if "'" in text and '"' in text:
        raise ValueError(f"{text!r:.80} has two kinds of quotes, which MLflow cannot search for; rename it")
    return f'"{text}"' if "'" in text else f"'{text}'"


def printable(text: str) -> str:
    """A text of a file or of a library for one line on a terminal."""
    return "".join(c if c.isprintable() else " " for c in text)[:300]


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
    try:
        parts = urlsplit(uri)
    except ValueError:  # not an address at all
        return re.sub(r"//[^/]*@", "//***@", uri)
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
    if match := re.search(r"database schema \(found version (\w+), but expected (\w+)\)", text):
        return (
            f"its tables are of another version of MLflow ({match[1]}, and {match[2]} is installed); if they are older "
            "type: mlflow db upgrade <its address>, if they are newer: pip install -U mlflow"
        )
    lines = [line for line in text.splitlines() if not line.startswith("(raised as a result of")]  # SQLAlchemy's hint
    return printable(lines[0] if lines else type(error).__name__)


@contextmanager
def one_line_errors(address: str, before: str = "") -> Iterator[None]:
    """Whatever a store or the libraries below it raise becomes a StoreError of one line, and they print nothing."""
    try:
        with silent_libraries():
            yield
    except StoreError:
        raise
    except Exception as error:
        where = f"{before}MLflow at {printable(address_without_password(address))}"
        raise StoreError(f"{where}: {failure_reason(error)}") from error


def _probe(address: str) -> None:
    """Connect to a database once, because MLflow itself would retry for minutes; OSError or sqlite3.Error if it fails.

    A new SQLite file is put into WAL mode, in which it can be read while it is written. A database of another program
    is left alone, where MLflow would add its tables.
    """
    parts = urlsplit(address)
    if parts.scheme == "sqlite":
        file = _file(address)
        if not re.fullmatch(r"sqlite:///.*[^/]", address):
            raise ValueError("the address of an SQLite store is sqlite:///<file>")
        file.parent.mkdir(parents=True, exist_ok=True)
        for part in (file.with_name(file.name + ending) for ending in ("", "-wal", "-shm", "-journal")):
            if os.path.lexists(part) and not (part.is_file() and is_inside(part, file.parent)):
                raise ValueError(f"{part} is not a file of this folder; type uri=sqlite:///<the file itself>")
        with closing(sqlite3.connect(file, timeout=PATIENCE)) as base:
            tables = {name for (name,) in base.execute("select name from sqlite_master where type = 'table'")}
            if not tables:
                base.execute("pragma journal_mode=wal").fetchall()
            elif not {"alembic_version", "experiments", "runs"} <= tables:
                raise ValueError("the file is a database of another program")
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
