"""The search's run in MLflow while it goes on, and the sending of results, of those too that had to wait."""

import logging
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from search.config.settings import Config
from search.results import disk
from search.results.result import Result
from search.tracking import spool, store, writing

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

log = logging.getLogger("search")
PATIENCE = 60  # seconds that a finished search waits for what is still on its way
Row = Mapping[str, float]  # a generation


class Tracker:
    """Writes a row a generation, from a thread of its own: no store slows a search, and none ends it.

    What the store refuses is told once, and tried again with the next generation; `finish` sends all there is.
    """

    def __init__(self, config: Config, folder: Path, told: Callable[[str], None]) -> None:
        self.config, self.folder, self.told = config, folder, told
        self.store = store.store_address(Path(config.runs), config.tracking.uri)
        self.rows: SimpleQueue[Row | str] = SimpleQueue()  # a word is the last: the status that the run gets, if any
        self.thread = Thread(target=self._write, name="MLflow", daemon=True)
        self.silent = False

    def __enter__(self) -> "Tracker":
        self.thread.start()
        return self

    def generation(self, row: Row) -> None:
        """A generation is closed."""
        self.rows.put(dict(row))

    def finish(self, result: Result) -> dict[str, str]:
        """Send the result, then what earlier searches could not. Ids and pages, or what went wrong as `error`."""
        runs = Path(self.config.runs)
        spool.add_to_spool(result.folder, self.store)  # until it is sent, whatever happens now
        try:
            self._end("")
            if self.thread.is_alive():
                return {"error": f"MLflow at {store.address_without_password(self.store)}: it does not answer in time"}
            found = deliver_result(result, runs, self.store)
            if "error" not in found:
                deliver_waiting_results(runs, self.store)
        except KeyboardInterrupt:
            return {"error": "stopped by Ctrl-C"}
        return found

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if kind is not None:
            self._end("KILLED" if issubclass(kind, KeyboardInterrupt | SystemExit) else "FAILED", seconds=10)

    def _end(self, status: str, seconds: float = PATIENCE) -> None:
        self.rows.put(status)
        self.thread.join(seconds)

    def _write(self) -> None:
        client: MlflowClient | None = None
        run: Run | None = None
        waiting: list[Row] = []
        item: Row | str = {}
        while not isinstance(item, str):
            try:
                client = client or store.connect_store(self.store)
                run = run or writing.begin_run(client, self.config, self.folder)
                writing.log_generations(client, run, waiting)
                waiting = []
            except Exception as error:  # whatever it is, the search goes on
                self._refused(error)
            item = self.rows.get()
            if not isinstance(item, str):
                waiting.append(item)
        if item and client and run:
            try:
                client.set_terminated(run.info.run_id, item)
            except Exception as error:
                self._refused(error)

    def _refused(self, error: Exception) -> None:
        log.info("MLflow: %s", error, exc_info=not self.silent)
        if not self.silent:
            self.silent = True
            self.told(
                f"MLflow at {store.address_without_password(self.store)}: {store.failure_reason(error)}; "
                "the search goes on without it"
            )


def deliver_result(result: Result, root: Path, uri: str | None = None) -> dict[str, str]:
    """Log a result; until that has gone well, a mark in its folder says that it waits."""
    address = store.store_address(root, uri)
    spool.add_to_spool(result.folder, address)
    found = writing.log_result(result, root, address)
    if "error" not in found:
        spool.mark_sent(result.folder)
    return found


def deliver_waiting_results(root: Path, address: str) -> list[str]:
    """Send what waits for this store, as far as it takes it; returns the names of the searches that were sent."""
    sent = []
    for folder, where in spool.unsent_folders(root).items():
        if where != address:
            continue
        try:
            with disk.locked_run_folder(folder):  # a search that goes on there sends its own
                found = deliver_result(Result.load(folder), root, address)
        except ValueError as error:
            log.info("%s waits: %s", folder.name, error)
            continue
        if "error" in found:
            break
        sent.append(folder.name)
    return sent


def last_lines(found: Mapping[str, str], config: Config, folder: Path) -> list[str]:
    """What a finished search says of MLflow: where to look, or how to send what could not be sent."""
    if error := found.get("error"):
        where = "" if config.runs == "runs" else f" runs={shlex.quote(config.runs)}"
        return [
            f"[yellow]MLflow was not written: {escape(error)}[/yellow]",
            f"send       python -m search.send run={folder.name}{where}",
        ]
    runs, uri = Path(config.runs), config.tracking.uri
    pages = [store.page_url(found[page], uri) for page in ("page", "view") if page in found]
    return [
        f"review     {escape(store.ui_command(runs, uri))}",
        *(f"{'then open' if not i else '':>20}  {escape(page)}" for i, page in enumerate(pages)),
    ]
